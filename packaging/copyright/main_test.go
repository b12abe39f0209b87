package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRecognise(t *testing.T) {
	const (
		bsd   = "Redistribution and use in source and binary\n   forms, with or without modification"
		names = "may be used to endorse or promote\nproducts"
		mit   = "Permission is hereby\ngranted, free of charge"
	)
	for text, want := range map[string]string{
		"Apache License\n  Version 2.0, January 2004": "Apache-2.0",
		mit:               "Expat",
		bsd:               "BSD-2-clause",
		bsd + names:       "BSD-3-clause",
		bsd + names + mit: "Expat and BSD-3-clause",
		bsd + "\nSIL OPEN FONT LICENSE Version 1.1 - 26 February\nPermission is hereby granted, free of charge, to any person\nobtaining a copy of the Font Software": "OFL-1.1 and BSD-2-clause",
		"Creative Commons Attribution 4.0\nInternational Public License":                                                                                              "CC-BY-4.0",
		"  The FreeType Project LICENSE\n": "FTL",
		"All rights kept.":                 "",
	} {
		if got, err := recognise(text); got != want || (err == nil) != (want != "") {
			t.Errorf("recognise(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
}

// The file of storage-init names the one module that it is linked from, with
// its terms; that of the command line has all of its modules.
func TestDocument(t *testing.T) {
	for program, want := range map[string][]string{
		"storage-init":  {"go", "golang.org/x/sys"},
		"initoverlayfs": {"go", "golang.org/x/sys", "github.com/spf13/cobra", "github.com/klauspost/compress"},
	} {
		text, err := document([]string{"initoverlayfs/cmd/" + program})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range want {
			if !strings.Contains(string(text), "\nFiles: "+name+"/*\nCopyright: ") {
				t.Errorf("%s: nothing about %s in\n%s", program, name, text)
			}
		}
		if got := strings.Count(string(text), "\nFiles: "); program == "storage-init" && got != len(want)+1 {
			t.Errorf("%s: %d paragraphs, want %d:\n%s", program, got, len(want)+1, text)
		}
		if !strings.Contains(string(text), "Redistributions in binary form must reproduce") {
			t.Errorf("%s: the terms of the Go library are missing", program)
		}
	}
}

func TestStanza(t *testing.T) {
	folder := func(files map[string]string) string {
		dir := t.TempDir()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	var out strings.Builder
	if err := stanza(&out, "example.org/a", folder(map[string]string{
		"LICENSE": "Apache License Version 2.0", "NOTICE": "Copyright 2020 A\n\nand B",
	})); err != nil {
		t.Fatal(err)
	}
	want := "Files: example.org/a/*\nCopyright: Copyright 2020 A\nLicense: Apache-2.0\nComment: its notice:\n Copyright 2020 A\n .\n and B\n\n"
	if out.String() != want {
		t.Errorf("stanza gave %q, want %q", out.String(), want)
	}
	// The terms that are on every system are not repeated among others.
	out.Reset()
	if err := stanza(&out, "example.org/b", folder(map[string]string{
		"LICENSE": "Permission is hereby granted, free of charge\n  Apache License\n  Version 2.0, January 2004\nlong\nEND OF TERMS AND CONDITIONS\nthe end",
	})); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Contains(got, "long") || !strings.Contains(got, "Permission") ||
		!strings.Contains(got, "License: Apache-2.0 and Expat\n") || !strings.Contains(got, " the end\n") {
		t.Errorf("stanza gave %q", got)
	}
	// The terms of fonts and of others' code are part of a module's.
	out.Reset()
	dir := folder(map[string]string{"LICENSE": "Permission is hereby granted, free of charge", "LICENSE-SIL": "Copyright 2010 F\nSIL OPEN FONT LICENSE Version 1.1"})
	if err := os.MkdirAll(filepath.Join(dir, "THIRD_PARTY_LICENSES"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "THIRD_PARTY_LICENSES", "C"), []byte("Copyright 1984 C"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := stanza(&out, "example.org/c", dir); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Copyright: Copyright 2010 F\n Copyright 1984 C\n", "License: Expat and OFL-1.1\n", " LICENSE-SIL:\n .\n Copyright 2010 F\n", " C:\n .\n Copyright 1984 C\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("stanza gave %q, without %q", out.String(), want)
		}
	}
	for name, files := range map[string]map[string]string{
		"no license":         {"README": "MIT"},
		"an unknown license": {"LICENSE": "do what you like"},
	} {
		if err := stanza(&out, "example.org/a", folder(files)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
