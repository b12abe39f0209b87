// The copyright command prints the copyright file of a package, in Debian's
// machine-readable format: our own terms, and those of the Go modules and of the
// Go library that are linked into our programs, each with the full text that
// its authors ask to be kept.
//
//	copyright PACKAGE...
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const header = `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: initoverlayfs
Comment: The programs are linked statically. What is named by a path other than
 * are the Go modules, and the Go library, that they contain.

Files: *
Copyright: the initoverlayfs authors
License: Apache-2.0

`

// apache is on every Debian system; packages refer to that copy.
const apache = `License: Apache-2.0
 Licensed under the Apache License, Version 2.0; you may not use this work except
 in compliance with it. The work comes on an "as is" basis, without warranties or
 conditions of any kind. On Debian systems the license is in
 /usr/share/common-licenses/Apache-2.0, elsewhere beside this file.
`

func main() {
	text, err := document(os.Args[1:])
	if err == nil {
		_, err = os.Stdout.Write(text)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "copyright: %v\n", err)
		os.Exit(1)
	}
}

func document(packages []string) ([]byte, error) {
	folders, err := linked(packages)
	if err != nil {
		return nil, err
	}
	out := bytes.NewBufferString(header)
	for _, name := range slices.Sorted(maps.Keys(folders)) {
		if err := stanza(out, name, folders[name]); err != nil {
			return nil, fmt.Errorf("module %s: %w", name, err)
		}
	}
	out.WriteString(apache)
	return out.Bytes(), nil
}

// linked gives the modules other than our own that the packages are linked
// from, and the Go library, with the folder of each.
func linked(packages []string) (map[string]string, error) {
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=Standard,Module"}, packages...)...)
	cmd.Stderr = os.Stderr
	list, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%v: %w", cmd, err)
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	folders := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(list)); ; {
		var p struct {
			Standard bool
			Module   *struct {
				Path, Dir string
				Main      bool
			}
		}
		err := d.Decode(&p)
		switch {
		case errors.Is(err, io.EOF):
			return folders, nil
		case err != nil:
			return nil, fmt.Errorf("%v: %w", cmd, err)
		case p.Standard:
			folders["go"] = strings.TrimSpace(string(root))
		case p.Module != nil && !p.Module.Main:
			folders[p.Module.Path] = p.Module.Dir
		}
	}
}

var holder = regexp.MustCompile(`(?m)^[^\w\n]*Copyright.*\d{4}.*$`)

// apacheText is the license from its title to its end.
var apacheText = regexp.MustCompile(`(?s) *Apache License\s+Version 2\.0, January 2004.*?END OF TERMS AND CONDITIONS`)

// stanza writes what a module says of itself.
func stanza(out io.Writer, name, folder string) error {
	text, notice, err := read(folder)
	if err != nil {
		return err
	}
	license, err := recognise(text)
	if err != nil {
		return err
	}
	var holders []string
	for _, line := range holder.FindAllString(text+"\n"+notice, -1) {
		line = strings.Trim(line, " \t#*/")
		if !slices.Contains(holders, line) {
			holders = append(holders, line)
		}
	}
	if len(holders) == 0 {
		holders = []string{"the authors of " + name}
	}
	fmt.Fprintf(out, "Files: %s/*\nCopyright: %s\nLicense: %s\n", name, strings.Join(holders, "\n "), license)
	if license != "Apache-2.0" {
		fmt.Fprint(out, indented(apacheText.ReplaceAllString(text, "(The Apache License, Version 2.0: see the end of this file.)")))
	}
	if notice != "" {
		fmt.Fprintf(out, "Comment: its notice:\n%s", indented(notice))
	}
	fmt.Fprintln(out)
	return nil
}

// read gives the license of a folder, and its notice if there is one.
func read(folder string) (license, notice string, err error) {
	for _, name := range []string{"LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING"} {
		text, err := os.ReadFile(filepath.Join(folder, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return "", "", err
		}
		note, err := os.ReadFile(filepath.Join(folder, "NOTICE"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", "", err
		}
		more, err := others(folder)
		return string(text) + more, string(note), err
	}
	return "", "", fmt.Errorf("no license in %s", folder)
}

// others gives the terms that lie beside a module's license: of fonts, of code by
// others, and the FreeType License, which is the one of two that we choose.
func others(folder string) (string, error) {
	var out strings.Builder
	for _, pattern := range []string{"LICENSE-SIL", "THIRD_PARTY_LICENSES/*", "licenses/ftl.txt"} {
		paths, err := filepath.Glob(filepath.Join(folder, pattern))
		if err != nil {
			return "", err
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&out, "\n\n%s:\n\n%s", filepath.Base(path), text)
		}
	}
	return out.String(), nil
}

// recognise gives the short names of the licenses in a text. One that is not
// known is an error: somebody has to read it.
func recognise(text string) (string, error) {
	words := strings.Join(strings.Fields(text), " ")
	// The license of fonts begins as that of Expat does.
	words = strings.ReplaceAll(words, "Permission is hereby granted, free of charge, to any person obtaining a copy of the Font Software", "")
	var names []string
	for _, known := range []struct{ name, phrase string }{
		{"Apache-2.0", "Apache License Version 2.0"},
		{"Expat", "Permission is hereby granted, free of charge"},
		{"BSD-3-clause", "may be used to endorse or promote products"},
		{"OFL-1.1", "SIL OPEN FONT LICENSE Version 1.1"},
		{"CC-BY-4.0", "Creative Commons Attribution 4.0 International Public License"},
		{"BSL-1.0", "Boost Software License - Version 1.0"},
		{"FTL", "The FreeType Project LICENSE"},
		{"BSD-2-clause", "Redistribution and use in source and binary forms"},
	} {
		if strings.Contains(words, known.phrase) && (known.name != "BSD-2-clause" || !slices.Contains(names, "BSD-3-clause")) {
			names = append(names, known.name)
		}
	}
	if len(names) == 0 {
		return "", errors.New("its license is not known here")
	}
	return strings.Join(names, " and "), nil
}

// indented gives a text as a field's continuation lines.
func indented(text string) string {
	var out strings.Builder
	for line := range strings.Lines(strings.TrimSpace(text) + "\n") {
		line = strings.TrimRight(line, " \t\r\n")
		if line == "" {
			line = "."
		}
		fmt.Fprintf(&out, " %s\n", line)
	}
	return out.String()
}
