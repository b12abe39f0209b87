package disk

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"initoverlayfs/initrd/compress"
)

// fakeroot forgets extended attributes, and those of the class trusted an
// ordinary user cannot set at all. So a tar is unpacked without them, and
// debugfs puts them into the finished filesystem.

// xattrs are the extended attributes of a tree: path, name, value.
type xattrs map[string]map[string][]byte

// Records of a PAX header, as GNU tar writes them.
const (
	paxXattr   = "SCHILY.xattr."
	paxACL     = "SCHILY.acl."
	paxSELinux = "RHT.security.selinux"
)

// readXattrs reads the extended attributes in a tar archive, in any compression
// of an initramfs.
func (m *maker) readXattrs(name string) (_ xattrs, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := unpacked(f)
	if err != nil {
		return nil, fmt.Errorf("tar %s: %w", name, err)
	}
	defer content.Close()
	found := xattrs{}
	for r := tar.NewReader(content); ; {
		if err := m.ctx.Err(); err != nil {
			return nil, err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("tar %s: %w", name, err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := found.add(h); err != nil {
			return nil, fmt.Errorf("tar %s: %s: %w", name, h.Name, err)
		}
	}
}

// unpacked reads a tar archive without its compression.
func unpacked(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(r, mib)
	const magic, at, record = "ustar", 257, 512
	head, err := in.Peek(record)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	format, ok := compress.Detect(head)
	if !ok || format == compress.None || len(head) == record && string(head[at:at+len(magic)]) == magic {
		return io.NopCloser(in), nil
	}
	p := &pieces{in: in, format: format}
	p.ReadCloser, err = compress.NewReader(format, in)
	return p, err
}

// pieces reads compressed pieces that follow each other, as parallel compressors
// write them.
type pieces struct {
	io.ReadCloser // of the current one
	in            *bufio.Reader
	format        compress.Format
}

func (p *pieces) Read(b []byte) (int, error) {
	for {
		n, err := p.ReadCloser.Read(b)
		switch {
		case n > 0:
			return n, nil // an error comes again
		case !errors.Is(err, io.EOF):
			return 0, err
		}
		head, _ := p.in.Peek(4) // of the end there is nothing
		if format, ok := compress.Detect(head); !ok || format != p.format {
			return 0, io.EOF
		}
		if err := p.Close(); err != nil {
			return 0, err
		}
		if p.ReadCloser, err = compress.NewReader(p.format, p.in); err != nil {
			return 0, err
		}
	}
}

// add takes over what one header says. A later one for the same path replaces an
// earlier one, unless it is another name of that file.
func (x xattrs) add(h *tar.Header) error {
	of := map[string][]byte{}
	for key, value := range h.PAXRecords {
		if attr, ok := strings.CutPrefix(key, paxXattr); ok {
			of[attr] = []byte(value)
		}
	}
	for key, value := range h.PAXRecords {
		switch kind, isACL := strings.CutPrefix(key, paxACL); {
		case isACL && of["system.posix_acl_"+kind] == nil:
			return &HintedError{errors.New("its access list is there as text only"), "pack it with tar --xattrs --xattrs-include='*'"}
		case key == paxSELinux && of["security.selinux"] == nil:
			of["security.selinux"] = append([]byte(value), 0)
		}
	}
	name := path.Join("/", h.Name)
	if len(of) == 0 {
		if h.Typeflag != tar.TypeLink {
			delete(x, name)
		}
		return nil
	}
	if strings.ContainsAny(name, "\n\r") {
		return errors.New("debugfs takes no line breaks in a path")
	}
	x[name] = of
	return nil
}

// setXattrs puts extended attributes into a new ext4.
func (m *maker) setXattrs(disk *os.File, p *Partition, x xattrs) error {
	if len(x) == 0 {
		return nil
	}
	dir, err := os.MkdirTemp(m.work, "xattrs-")
	if err != nil {
		return err
	}
	var script bytes.Buffer
	n := 0
	for _, file := range slices.Sorted(maps.Keys(x)) {
		for _, attr := range slices.Sorted(maps.Keys(x[file])) {
			value := filepath.Join(dir, fmt.Sprint(n))
			n++
			if err := os.WriteFile(value, x[file][attr], privateMode); err != nil {
				return err
			}
			fmt.Fprintf(&script, "ea_set -f %s %s %s\n", debugfsQuote(value), debugfsQuote(file), debugfsQuote(attr))
		}
	}
	commands := filepath.Join(dir, "commands")
	if err := os.WriteFile(commands, script.Bytes(), privateMode); err != nil {
		return err
	}
	binary, err := tool("debugfs")
	if err != nil {
		return err
	}
	cmd := m.command(binary, "-w", "-f", commands, fmt.Sprintf("%s?offset=%d", disk.Name(), p.Offset))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("debugfs: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	// Its exit status says nothing of its commands; it begins with its version.
	if _, failures, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n"); failures != "" {
		return fmt.Errorf("debugfs: set extended attributes: %s", failures)
	}
	return os.RemoveAll(dir)
}

func debugfsQuote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
