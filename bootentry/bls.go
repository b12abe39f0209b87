package bootentry

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Names of what loaders do not look at: an entry while it is written, and a second
// name of one that is replaced. There is one writer at a time; what a killed one
// left is removed by the next.
const (
	temporaryPattern = ".initoverlayfs.*.tmp"
	keptPattern      = ".initoverlayfs.*.old"
)

func numbered(pattern string, n int) string {
	return strings.Replace(pattern, "*", strconv.Itoa(n), 1)
}

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
	// Flush makes all of $BOOT readable without its filesystem's journal, which no
	// loader replays; nil: there is none.
	Flush func() error
}

func (p *Plan) flush() error {
	if p.Flush == nil {
		return nil
	}
	return p.Flush()
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
//
// A loader that does not replay the journal may see a folder of before with files
// of after, and the reverse. So new files are flushed before they get their names,
// and old ones keep another name until that is flushed: whatever of the folder
// has reached the disk, each name in it leads to a whole file.
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
	var pending []*Entry
	for _, w := range wanted {
		data := w.Format()
		i := slices.IndexFunc(there, func(e *Entry) bool {
			return strings.EqualFold(w.ID(), e.ID()) && bytes.Equal(data, e.text)
		})
		if i >= 0 {
			written.Names = append(written.Names, there[i].Name)
			continue
		}
		pending = append(pending, w)
		written.Names = append(written.Names, w.Name)
	}
	var replaced, unwanted []*Entry
	for _, e := range there {
		switch _, version, ours := e.Ours(); {
		case slices.ContainsFunc(pending, func(w *Entry) bool { return strings.EqualFold(w.Name, e.Name) }):
			replaced = append(replaced, e)
		case ours && version == p.Version && e.belongs(p.Tokens) && !slices.Contains(written.Names, e.Name):
			unwanted = append(unwanted, e)
		}
	}
	written.Changed = len(pending)+len(unwanted) > 0
	return written, p.replace(pending, replaced, unwanted)
}

// replace writes the pending entries, some of which replace others, and removes the
// unwanted ones.
func (p *Plan) replace(pending, replaced, unwanted []*Entry) (err error) {
	dir := entriesDir(p.Boot)
	kept, err := filepath.Glob(filepath.Join(dir, keptPattern))
	if err != nil {
		return err
	}
	if len(kept) > 0 {
		if err := p.flush(); err != nil {
			return err
		}
	}
	if err := sweep(dir); err != nil || len(pending)+len(unwanted) == 0 {
		return err
	}
	defer func() {
		if err != nil {
			_ = p.flush() // it is told what failed first
			err = errors.Join(err, sweep(dir))
		}
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for n, e := range pending {
		if err := writeFile(filepath.Join(dir, numbered(temporaryPattern, n)), e.Format()); err != nil {
			return err
		}
	}
	for n, e := range slices.Concat(replaced, unwanted) {
		// A FAT has no second names. Nor has it a journal.
		err := os.Link(filepath.Join(dir, e.Name), filepath.Join(dir, numbered(keptPattern, n)))
		if err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := errors.Join(syncPath(dir), p.flush()); err != nil {
		return err
	}
	for n, e := range pending {
		path := filepath.Join(dir, e.Name)
		if err := os.Rename(filepath.Join(dir, numbered(temporaryPattern, n)), path); err != nil {
			return err
		}
		// A FAT has freed the data of the old file before it has written where
		// that of the new one is.
		if err := errors.Join(syncPath(path), syncPath(dir)); err != nil {
			return err
		}
	}
	if _, err := removeFiles(p.Boot, unwanted); err != nil {
		return err
	}
	if err := p.flush(); err != nil {
		return err
	}
	return sweep(dir)
}

// sweep removes what a writer has left, itself or one that was killed.
func sweep(dir string) error {
	return errors.Join(removeGlob(dir, keptPattern), removeGlob(dir, temporaryPattern))
}

func removeGlob(dir, pattern string) error {
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	for _, path := range found {
		if failed := os.Remove(path); !errors.Is(failed, fs.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	return err
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
	dir := entriesDir(boot)
	if err := sweep(dir); err != nil {
		return nil, err
	}
	return removeFiles(boot, slices.DeleteFunc(there, func(e *Entry) bool {
		_, v, ours := e.Ours()
		return !ours || v != version || !e.belongs(tokens)
	}))
}

// removeFiles removes entries and gives their names. One that is gone already is as
// good: kernel-install removes by a pattern that may fit ours.
func removeFiles(boot string, entries []*Entry) ([]string, error) {
	dir := entriesDir(boot)
	var removed []string
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, err
		}
		removed = append(removed, e.Name)
	}
	if len(removed) == 0 {
		return nil, nil
	}
	return removed, syncPath(dir)
}

// writeFile writes a durable file.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncPath makes a file or folder durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
