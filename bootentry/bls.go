package bootentry

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// temporary is the name of an entry while it is written. There is one writer at a
// time; what a killed one left is overwritten, and loaders do not look at it.
const temporary = ".initoverlayfs.tmp"

func entriesDir(boot string) string { return filepath.Join(boot, "loader", "entries") }

// Entries reads all entries below $BOOT, sorted by name. What is no regular file
// or too large is passed over, as by the loaders.
func Entries(boot string) ([]*Entry, error) {
	dir := entriesDir(boot)
	files, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	var entries []*Entry
	for _, f := range files {
		if !isConf(f.Name()) {
			continue
		}
		file := filepath.Join(dir, f.Name())
		info, err := os.Stat(file)
		if errors.Is(err, fs.ErrNotExist) || err == nil && (!info.Mode().IsRegular() || info.Size() > maxEntryBytes) {
			continue
		}
		if err != nil {
			return nil, err
		}
		e, err := ReadBLS(file)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// PlainEntries gives the entries that the distribution made for a kernel, the
// best template first. Where several systems share $BOOT, tokens (the entry token
// and the machine ID) tell which is ours; without any, every system's are taken.
func PlainEntries(boot, version string, tokens ...string) ([]*Entry, error) {
	entries, err := Entries(boot)
	if err != nil {
		return nil, err
	}
	rank := make(map[*Entry]int)
	entries = slices.DeleteFunc(entries, func(e *Entry) bool {
		_, _, ours := e.Ours()
		rank[e] = e.rank(version, tokens)
		return ours || e.Get("linux") == "" || rank[e] == 0 || !e.belongs(tokens)
	})
	slices.SortStableFunc(entries, func(a, b *Entry) int { return rank[b] - rank[a] })
	return entries, nil
}

// rank says how surely an entry is that of a kernel; 0 is not.
func (e *Entry) rank(version string, tokens []string) int {
	if version == "" {
		return 0
	}
	id, field := e.ID(), e.Get("version")
	// A version may end in what looks like a counter.
	named := func(name string) bool { return id == name || strings.TrimSuffix(e.Name, ".conf") == name }
	exact := slices.ContainsFunc(tokens, func(token string) bool { return named(token + "-" + version) })
	switch {
	case exact && e.Tries().Counted:
		// An older kernel-install leaves the former entry beside the new one.
		return 4
	case exact:
		return 3
	case strings.Contains(id, "-"+version+"~"):
		return 0 // Fedora's debug entry, which has the kernel's plain version
	case field == version:
		return 2
	case field == "" && strings.HasSuffix(id, "-"+version):
		return 1
	default:
		return 0
	}
}

// belongs reports whether an entry is of the system with these tokens.
func (e *Entry) belongs(tokens []string) bool {
	if len(tokens) == 0 || slices.ContainsFunc(tokens, func(token string) bool { return strings.HasPrefix(e.Name, token+"-") }) {
		return true
	}
	if id := e.Get("machine-id"); id != "" {
		return slices.Contains(tokens, id)
	}
	before, _, _ := strings.Cut(e.Name, "-")
	return !isMachineID(before)
}

func isMachineID(s string) bool {
	return len(s) == 32 && !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) })
}

// Plan says what a kernel's entries shall be.
type Plan struct {
	Boot     string // $BOOT, the folder that has loader/entries
	Version  string // of the kernel
	Plain    *Entry // what ours are derived from: of PlainEntries, or of NewEntry
	Initrd   string // mini-initramfs as the boot loader sees it: below Prefix, with a leading slash
	Previous string // that of the previous pair, or ""
	// Tries are the boots that a new entry gets to prove itself where the plain
	// entry has no counter (kernel-install's /etc/kernel/tries); 0 is no counting.
	Tries uint32
	// Tokens are as in PlainEntries: entries of other systems stay.
	Tokens []string
}

// Written is what WriteBLS left behind.
type Written struct {
	Current string   // ID of the entry of the newest pair
	Names   []string // file names of all entries that are ours
	Changed bool     // something was written or removed
	First   bool     // the kernel had no entry of ours before
}

// WriteBLS makes the entries of a kernel what the plan says, each by one rename,
// the one of the newest pair last. An entry that is there with this content is
// left alone, and so is its counter; new content begins with a full counter.
// Entries of ours that the plan has no more are removed in the end. An entry under
// one of our names that is not ours is an error, before anything is written.
func WriteBLS(p Plan) (*Written, error) {
	wanted, err := p.entries()
	if err != nil {
		return nil, err
	}
	there, err := Entries(p.Boot)
	if err != nil {
		return nil, err
	}
	for _, e := range there {
		if _, _, ours := e.Ours(); !ours && slices.ContainsFunc(wanted, func(w *Entry) bool { return strings.EqualFold(w.ID(), e.ID()) }) {
			return nil, fmt.Errorf("write %s: it is there and was not made by initoverlayfs", filepath.Join(entriesDir(p.Boot), e.Name))
		}
	}
	written := &Written{Current: wanted[len(wanted)-1].ID()}
	written.First = !slices.ContainsFunc(there, func(e *Entry) bool {
		role, version, _ := e.Ours()
		return role == Current && version == p.Version && e.belongs(p.Tokens)
	})
	for _, w := range wanted {
		data := w.Format()
		i := slices.IndexFunc(there, func(e *Entry) bool {
			return strings.EqualFold(w.ID(), e.ID()) && bytes.Equal(data, e.text)
		})
		if i >= 0 {
			written.Names = append(written.Names, there[i].Name)
			continue
		}
		if err := writeEntry(entriesDir(p.Boot), w.Name, data); err != nil {
			return nil, err
		}
		written.Names, written.Changed = append(written.Names, w.Name), true
	}
	removed, err := removeEntries(p.Boot, there, func(e *Entry, version string) bool {
		return version == p.Version && e.belongs(p.Tokens) && !slices.Contains(written.Names, e.Name)
	})
	written.Changed = written.Changed || len(removed) > 0
	return written, err
}

// entries are those of the plan, in the order in which they are written: whenever
// that is interrupted, each boots something that is there.
func (p *Plan) entries() ([]*Entry, error) {
	switch {
	case p.Plain == nil || p.Plain.Get("linux") == "":
		return nil, errors.New("boot entries: a plain entry with a kernel is needed")
	case p.Version == "" || !safePath("/"+p.Version):
		return nil, fmt.Errorf("boot entries: %q is no kernel version", p.Version)
	case p.Plain.ID() == "" || filepath.Base(p.Plain.Name) != p.Plain.Name:
		return nil, fmt.Errorf("boot entries: %q is no name of an entry", p.Plain.Name)
	case !safePath(p.Initrd):
		return nil, fmt.Errorf("boot entries: %q is no path that every boot loader understands", p.Initrd)
	case p.Previous != "" && !safePath(p.Previous):
		return nil, fmt.Errorf("boot entries: %q is no path that every boot loader understands", p.Previous)
	}
	var entries []*Entry
	if _, _, ours := p.Plain.Ours(); ours {
		entries = append(entries, p.Plain)
	}
	if p.Previous != "" {
		entries = append(entries, p.Plain.derive(Previous, p.Version, p.Previous))
	}
	current := p.Plain.derive(Current, p.Version, p.Initrd)
	tries := p.Tries
	if t := p.Plain.Tries(); t.Counted {
		tries = t.Left + t.Done
	}
	if tries > 0 {
		current.Name = fmt.Sprintf("%s+%d.conf", current.ID(), tries)
	}
	return append(entries, current), nil
}

// RemoveBLS removes the entries of a kernel that are ours, whatever their names
// and counters, and gives the names. Tokens are as in PlainEntries.
func RemoveBLS(boot, version string, tokens ...string) ([]string, error) {
	there, err := Entries(boot)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(entriesDir(boot), temporary)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return removeEntries(boot, there, func(e *Entry, v string) bool { return v == version && e.belongs(tokens) })
}

// removeEntries removes the entries of ours that are unwanted. One that is gone
// already is as good: kernel-install removes by a pattern that may fit ours.
func removeEntries(boot string, entries []*Entry, unwanted func(e *Entry, version string) bool) ([]string, error) {
	dir := entriesDir(boot)
	var removed []string
	for _, e := range entries {
		if _, version, ours := e.Ours(); !ours || !unwanted(e, version) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, err
		}
		removed = append(removed, e.Name)
	}
	if len(removed) == 0 {
		return nil, nil
	}
	return removed, syncDir(dir)
}

// writeEntry writes a file beside, makes it durable, and gives it its name.
func writeEntry(dir, name string, data []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file := filepath.Join(dir, temporary)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(file, filepath.Join(dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
