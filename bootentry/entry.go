package bootentry

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxEntryBytes is the largest file that GRUB reads as an entry.
const maxEntryBytes = 1 << 20

// An Entry is a type 1 entry. Keys, also those that are not known here, keep
// their order and spelling.
type Entry struct {
	Name  string // of its file
	text  []byte // as it was read
	lines []line
}

type line struct {
	key    string // "" for a comment
	prefix string // all that comes before the value: the key and blanks
	value  string
}

// ReadBLS reads an entry's file.
func ReadBLS(file string) (*Entry, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxEntryBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxEntryBytes {
		return nil, fmt.Errorf("read %s: more than %d bytes are no boot entry", file, maxEntryBytes)
	}
	return ParseBLS(filepath.Base(file), data), nil
}

// ParseBLS reads an entry's text as systemd-boot does. Lines without a value are
// left out: they say nothing, and GRUB reads nothing after one of them.
func ParseBLS(name string, data []byte) *Entry {
	e := &Entry{Name: name, text: data}
	for text := range bytes.FieldsFuncSeq(data, func(r rune) bool { return r == '\n' || r == '\r' }) {
		s := strings.Trim(string(text), " \t")
		if strings.HasPrefix(s, "#") {
			e.lines = append(e.lines, line{value: s})
			continue
		}
		i := strings.IndexAny(s, " \t")
		if i < 0 {
			continue
		}
		value := strings.TrimLeft(s[i:], " \t")
		e.lines = append(e.lines, line{key: s[:i], prefix: s[:len(s)-len(value)], value: value})
	}
	return e
}

// Format gives the entry's text.
func (e *Entry) Format() []byte {
	var b bytes.Buffer
	for _, l := range e.lines {
		b.WriteString(l.prefix + l.value + "\n")
	}
	return b.Bytes()
}

// Get gives the last value of a key, as systemd-boot does, or "".
func (e *Entry) Get(key string) string {
	values := e.All(key)
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// All gives the values of a key that may be there more than once.
func (e *Entry) All(key string) []string {
	var values []string
	for _, l := range e.lines {
		if key != "" && l.key == key {
			values = append(values, l.value)
		}
	}
	return values
}

// Initrds gives the archives that the entry loads, in order. What GRUB would put in
// the place of a variable is not among them.
func (e *Entry) Initrds() []string {
	var archives []string
	for _, value := range e.All("initrd") {
		for word := range strings.FieldsSeq(value) {
			if strings.HasPrefix(word, "/") {
				archives = append(archives, word)
			}
		}
	}
	return archives
}

// Prefix gives what an entry of $BOOT puts before the path of a file there, found
// by where its kernel lies: nothing if $BOOT is a filesystem of its own; else GRUB
// is told "/boot/vmlinuz-V", on a btrfs "/root/boot/vmlinuz-V". Nothing is also
// what a kernel gives that lies elsewhere.
func (e *Entry) Prefix(boot string) string {
	linux := e.Get("linux")
	for rest := linux; strings.HasPrefix(rest, "/"); {
		if info, err := os.Stat(filepath.Join(boot, rest)); err == nil && info.Mode().IsRegular() {
			return linux[:len(linux)-len(rest)]
		}
		next := strings.IndexByte(rest[1:], '/')
		if next < 0 {
			break
		}
		rest = rest[1+next:]
	}
	return ""
}

// add appends a line in the columns that kernel-install writes.
func (e *Entry) add(key, value string) {
	e.lines = append(e.lines, line{key: key, prefix: fmt.Sprintf("%-10s ", key), value: value})
}

// ID is the name without the boot counter and .conf: what GRUB calls the entry's
// ID. That of systemd-boot has .conf behind it.
func (e *Entry) ID() string {
	id, _ := splitName(e.Name)
	return id
}

// Tries is the state of the entry's boot counter.
func (e *Entry) Tries() Tries {
	_, tries := splitName(e.Name)
	return tries
}

// Tries is a boot counter, which systemd-boot keeps in the name of an entry.
type Tries struct {
	Counted    bool // it is there; a boot that succeeded has removed it
	Left, Done uint32
}

// splitName takes a file name apart. The counter is +LEFT or +LEFT-DONE; in the
// version of a kernel a plus sign may be something else.
func splitName(name string) (id string, tries Tries) {
	id = name
	if isConf(name) {
		id = name[:len(name)-len(".conf")]
	}
	i := strings.LastIndexByte(id, '+')
	if i < 0 {
		return id, Tries{}
	}
	left, done, both := strings.Cut(id[i+1:], "-")
	l, err := strconv.ParseUint(left, 10, 31)
	if err != nil {
		return id, Tries{}
	}
	var d uint64
	if both {
		if d, err = strconv.ParseUint(done, 10, 31); err != nil {
			return id, Tries{}
		}
	}
	return id[:i], Tries{Counted: true, Left: uint32(l), Done: uint32(d)}
}

// isConf reports whether a boot loader takes the file for an entry.
func isConf(name string) bool {
	n := len(name) - len(".conf")
	return n > 0 && name[0] != '.' && strings.EqualFold(name[n:], ".conf")
}

// Role says which of our entries one is.
type Role string

// The entries that we make of a kernel.
const (
	Current  Role = "current"  // boots the newest pair
	Previous Role = "previous" // boots the pair before it
	Plain    Role = "plain"    // boots the plain initramfs, where the distribution made no entry
)

const (
	markBegin = "# initoverlayfs: "
	markEnd   = " (generated, changes are lost)"
)

func mark(role Role, version string) line {
	return line{value: markBegin + string(role) + " " + version + markEnd}
}

// Ours gives the role and the kernel's version of an entry that this package
// made, and whether it made it.
func (e *Entry) Ours() (role Role, version string, ours bool) {
	for _, l := range e.lines {
		text, is := strings.CutPrefix(l.value, markBegin)
		if l.key != "" || !is {
			continue
		}
		word, version, _ := strings.Cut(strings.TrimSuffix(text, markEnd), " ")
		return Role(word), version, true
	}
	return "", "", false
}

// Template is what an entry is made of where the distribution made none.
type Template struct {
	Token     string // kernel-install's entry token: the machine ID or a name
	Version   string // of the kernel
	Title     string // PRETTY_NAME of os-release
	MachineID string // "" where the token is not the machine ID
	SortKey   string // IMAGE_ID or ID of os-release
	Options   string // the kernel's command line
	Linux     string // path of the kernel as the boot loader sees it
	Initrds   []string
}

// NewEntry makes a plain entry, as kernel-install would. WriteBLS writes it, too,
// when it is the plan's plain entry. It has the name that the distribution's own
// has, and is replaced when the distribution writes that.
func NewEntry(t Template) *Entry {
	e := &Entry{Name: t.Token + "-" + t.Version + ".conf", lines: []line{mark(Plain, t.Version)}}
	for _, f := range [][2]string{
		{"title", t.Title}, {"version", t.Version}, {"machine-id", t.MachineID},
		{"sort-key", t.SortKey}, {"options", t.Options}, {"linux", t.Linux},
	} {
		if value := strings.Join(strings.Fields(f[1]), " "); value != "" {
			e.add(f[0], value)
		}
	}
	for _, initrd := range t.Initrds {
		e.add("initrd", initrd)
	}
	return e
}

// suffixes of the names, and of the fields that the menu is sorted by and shows.
// Package documentation says why they are what they are.
const (
	currentName      = ".initoverlayfs"
	previousName     = ".backup.initoverlayfs"
	previousNameGrub = "~initoverlayfs"
	currentVersion   = ".initoverlayfs"
	previousVersion  = "~initoverlayfs"
	currentTitle     = " (initoverlayfs)"
	previousTitle    = " (initoverlayfs, previous)"
)

// derive makes an entry of ours from the plain one. Its name has no counter.
func (e *Entry) derive(role Role, version, initrd string) *Entry {
	name, versionSuffix, titleSuffix := currentName, currentVersion, currentTitle
	if role == Previous {
		name, versionSuffix, titleSuffix = previousName, previousVersion, previousTitle
		if e.ForGrub() {
			name = previousNameGrub
		}
	}
	d := &Entry{Name: e.ID() + name + ".conf", lines: []line{mark(role, version)}}
	if e.Get("title") == "" {
		d.add("title", "Linux "+version+titleSuffix)
	}
	var placed bool
	for _, l := range e.lines {
		switch l.key {
		case "": // comments tell how the plain entry was made
			continue
		case "title":
			l.value = appendTo(l.value, titleSuffix)
		case "version":
			l.value = appendTo(l.value, versionSuffix)
		case "initrd":
			if placed {
				continue
			}
			d.lines = append(d.lines, e.initrds(l.prefix, initrd)...)
			placed = true
			continue
		}
		d.lines = append(d.lines, l)
	}
	if !placed {
		d.add("initrd", initrd)
	}
	return d
}

// ForGrub reports whether an entry has keys that only GRUB knows.
func (e *Entry) ForGrub() bool {
	return slices.ContainsFunc(e.lines, func(l line) bool { return strings.HasPrefix(l.key, "grub_") })
}

// initrds are the lines of ours in the place of all those of the plain entry. The
// mini-initramfs has taken over the microcode and ACPI tables that the plain
// initramfs began with, and the full tree all the rest: what else the plain entry
// loads, such as GRUB's $tuned_initrd, would be unpacked into a root that is left
// behind. Only microcode in a file of its own was never part of the source, and
// has to come first.
func (e *Entry) initrds(prefix, initrd string) []line {
	var lines []line
	for _, archive := range e.Initrds() {
		if isMicrocode(path.Base(archive)) && safePath(archive) {
			lines = append(lines, line{"initrd", prefix, archive})
		}
	}
	return append(lines, line{"initrd", prefix, initrd})
}

// isMicrocode knows the names that distributions, kernel-install's plugins and
// GRUB's list of early images give to files of microcode.
func isMicrocode(name string) bool {
	return strings.Contains(name, "ucode") || strings.Contains(name, "microcode") ||
		name == "intel-uc.img" || name == "amd-uc.img"
}

// appendTo appends to a value, inside the quotes that systemd-boot takes off.
func appendTo(value, suffix string) string {
	if n := len(value); n > 1 && value[0] == '"' && value[n-1] == '"' {
		return value[:n-1] + suffix + `"`
	}
	return value + suffix
}

// safePath reports whether a path means itself to every loader: GRUB reads it as
// a word of its script language.
func safePath(p string) bool {
	return strings.HasPrefix(p, "/") && !strings.ContainsFunc(p, func(r rune) bool { return !plainRune(r) })
}

func plainRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._+~:=,@%^-", r)
}
