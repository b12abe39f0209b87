package bootconf

import (
	"errors"
	"strconv"
	"strings"
)

// Backend names the way by which the image becomes a mounted filesystem.
type Backend string

// The backends. Auto is not one of them: it is a list of them.
const (
	Block    Backend = "block"
	Loop     Backend = "loop"
	File     Backend = "file"
	Pmem     Backend = "pmem"
	PmemDAX  Backend = "pmem-dax"
	Embedded Backend = "embedded"
	RAM      Backend = "ram"
)

// AutoOrder is the order in which `auto` tries the backends.
var AutoOrder = []Backend{PmemDAX, Pmem, Embedded, Block, File, Loop, RAM}

// OnBootfs reports whether the image is a file on the boot filesystem.
func (b Backend) OnBootfs() bool { return b == Loop || b == File || b == RAM }

// InMemory reports whether the image is persistent memory.
func (b Backend) InMemory() bool { return b == Pmem || b == PmemDAX }

// ParseBackends reads the value of the backend key: a backend's name, `auto`,
// or `auto:` and a comma-separated list. auto is true for the last two.
func ParseBackends(s string) (list []Backend, auto bool, err error) {
	if s == "auto" {
		return append(list, AutoOrder...), true, nil
	}
	names, auto := strings.CutPrefix(s, "auto:")
	for name := range strings.SplitSeq(names, ",") {
		b, ok := backendNamed(name)
		if !ok || (!auto && strings.Contains(names, ",")) {
			return nil, auto, errors.New("unknown backend " + strconv.Quote(name) +
				"; known: block loop file pmem pmem-dax embedded ram auto auto:LIST")
		}
		list = append(list, b)
	}
	return list, auto, nil
}

func backendNamed(name string) (Backend, bool) {
	for _, b := range AutoOrder {
		if string(b) == name {
			return b, true
		}
	}
	return "", false
}

// TagKind is the way by which a filesystem is named.
type TagKind string

// The kinds of tags. A Path is a device node below /dev.
const (
	TagUUID      TagKind = "UUID"
	TagLabel     TagKind = "LABEL"
	TagPartUUID  TagKind = "PARTUUID"
	TagPartLabel TagKind = "PARTLABEL"
	TagPath      TagKind = "PATH"
)

// Tag names the boot filesystem. The zero Tag names nothing.
type Tag struct {
	Kind  TagKind
	Value string
}

// ParseTag reads UUID=, LABEL=, PARTUUID=, PARTLABEL= or a path below /dev. The
// value of a tag may be in double quotes.
func ParseTag(s string) (Tag, error) {
	if strings.HasPrefix(s, "/dev/") && len(s) > len("/dev/") && !hasDotDot(s) {
		return Tag{TagPath, s}, nil
	}
	kind, value, _ := strings.Cut(s, "=")
	if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
		value = value[1 : n-1]
	}
	if value != "" {
		switch k := TagKind(kind); k {
		case TagUUID, TagLabel, TagPartUUID, TagPartLabel:
			return Tag{k, value}, nil
		}
	}
	return Tag{}, errors.New("bad tag " + strconv.Quote(s) +
		"; it is UUID=, LABEL=, PARTUUID=, PARTLABEL= or a path below /dev")
}

// IsZero reports whether t names nothing.
func (t Tag) IsZero() bool { return t.Kind == "" }

// String gives the tag as the configuration file has it: in quotes where the
// value would not survive without.
func (t Tag) String() string {
	if t.Kind == TagPath || t.IsZero() {
		return t.Value
	}
	value := t.Value
	if strings.TrimSpace(value) != value || strings.Trim(value, `"`) != value {
		value = `"` + value + `"`
	}
	return string(t.Kind) + "=" + value
}

// FailureAction is what storage-init does after a fatal error.
type FailureAction string

// The failure actions.
const (
	Reboot FailureAction = "reboot" // after a countdown
	Halt   FailureAction = "halt"   // stop, with the message left on the screen
	Panic  FailureAction = "panic"  // let the kernel panic, for pstore and kdump
)

// FailurePolicy is the value of the on_failure key.
type FailurePolicy struct {
	Action  FailureAction
	Seconds int // countdown before a reboot
}

// ParseFailurePolicy reads `reboot[:SECONDS]`, `halt` or `panic`.
func ParseFailurePolicy(s string) (FailurePolicy, error) {
	action, seconds, counted := strings.Cut(s, ":")
	p := FailurePolicy{Action: FailureAction(action)}
	if p.Action == Reboot {
		p.Seconds = defaultRebootSeconds
	}
	switch {
	case p.Action != Reboot && p.Action != Halt && p.Action != Panic:
	case counted && p.Action != Reboot:
	case counted:
		n, err := strconv.Atoi(seconds)
		if err == nil && n >= 0 && n <= maxSeconds {
			p.Seconds = n
			return p, nil
		}
	default:
		return p, nil
	}
	return FailurePolicy{}, errors.New("bad failure policy " + strconv.Quote(s) +
		"; it is reboot[:SECONDS], halt or panic")
}

// String gives the policy as the configuration file has it.
func (p FailurePolicy) String() string {
	if p.Action == Reboot {
		return string(Reboot) + ":" + strconv.Itoa(p.Seconds)
	}
	return string(p.Action)
}

const (
	defaultRebootSeconds = 10
	defaultTimeout       = 30
	defaultOverlaySize   = "50%"
	maxSeconds           = 24 * 60 * 60
)

// Config is the configuration of storage-init, defaults filled in.
type Config struct {
	Backends []Backend // in the order of the attempts
	Auto     bool      // a failed attempt is followed by the next

	Bootfs     Tag    // zero: not set
	BootfsHint string // device that is probed first; never the only one believed
	BootfsType string // empty: any that is known
	FS         string // path of the image on the boot filesystem
	FSType     string // type of the image, always erofs
	SCSIAddr   string // host:channel:target:lun, the only LUN to scan

	// Devices are the extra devices of the image (blobs), in the order of its
	// device table: for block as bootfs is named, else paths as that of FS. In
	// a file they are one value with commas in between, which no name can have.
	Devices []string

	ImageUUID UUID  // required
	ImageSize int64 // bytes, required

	TimeoutSeconds int
	OverlaySize    string // a tmpfs size: bytes with K, M or G, or percent
	Init           string // empty: /init, then /sbin/init
	OnFailure      FailurePolicy
	// ReturnMemory gives the region that memmap= has set aside for the image
	// back to the booted system, once the image is no longer used.
	ReturnMemory bool
}

// Default is the configuration before any file is read.
func Default() Config {
	return Config{
		Backends:       append([]Backend(nil), AutoOrder...),
		Auto:           true,
		FSType:         "erofs",
		TimeoutSeconds: defaultTimeout,
		OverlaySize:    defaultOverlaySize,
		OnFailure:      FailurePolicy{Reboot, defaultRebootSeconds},
		ReturnMemory:   true,
	}
}

// ErrUnknownKey is what Set returns for a key that is not in the contract.
var ErrUnknownKey = errors.New("unknown key")

// Set gives one key its value. A bad value leaves c unchanged.
func (c *Config) Set(key, value string) error {
	var err error
	switch key {
	case "backend":
		var list []Backend
		var auto bool
		if list, auto, err = ParseBackends(value); err == nil {
			c.Backends, c.Auto = list, auto
		}
	case "bootfs":
		var t Tag
		if t, err = ParseTag(value); err == nil {
			c.Bootfs = t
		}
	case "bootfs_hint":
		if !strings.HasPrefix(value, "/dev/") {
			return errors.New("not a path below /dev: " + strconv.Quote(value))
		}
		c.BootfsHint = value
	case "bootfstype":
		c.BootfsType = value
	case "fs":
		if !strings.HasPrefix(value, "/") || hasDotDot(value) {
			return errors.New("not an absolute path without ..: " + strconv.Quote(value))
		}
		c.FS = value
	case "fstype":
		if value != "erofs" {
			return errors.New("image type " + strconv.Quote(value) + " is not supported; it is erofs")
		}
		c.FSType = value
	case "scsi.addr":
		if !validSCSIAddr(value) {
			return errors.New("bad SCSI address " + strconv.Quote(value) + "; it is HOST:CHANNEL:TARGET:LUN")
		}
		c.SCSIAddr = value
	case "device":
		var list []string
		for name := range strings.SplitSeq(value, ",") {
			if _, err := ParseTag(name); err != nil && (!strings.HasPrefix(name, "/") || hasDotDot(name)) {
				return errors.New("bad device " + strconv.Quote(name) + "; it is a tag or an absolute path without ..")
			}
			list = append(list, name)
		}
		c.Devices = list
	case "image_uuid":
		var u UUID
		if u, err = ParseUUID(value); err == nil {
			c.ImageUUID = u
		}
	case "image_size":
		n, perr := strconv.ParseInt(value, 10, 64)
		if perr != nil || n <= 0 {
			return errors.New("bad image size " + strconv.Quote(value) + "; it is a number of bytes")
		}
		c.ImageSize = n
	case "timeout":
		n, perr := strconv.Atoi(value)
		if perr != nil || n < 0 || n > maxSeconds {
			return errors.New("bad timeout " + strconv.Quote(value) + "; it is a number of seconds")
		}
		c.TimeoutSeconds = n
	case "overlay_size":
		if !validOverlaySize(value) {
			return errors.New("bad overlay size " + strconv.Quote(value) +
				"; it is bytes with K, M or G, or percent of the memory")
		}
		c.OverlaySize = value
	case "init":
		if !strings.HasPrefix(value, "/") {
			return errors.New("not an absolute path: " + strconv.Quote(value))
		}
		c.Init = value
	case "on_failure":
		var p FailurePolicy
		if p, err = ParseFailurePolicy(value); err == nil {
			c.OnFailure = p
		}
	case "return_memory":
		if value != "yes" && value != "no" {
			return errors.New("bad value " + strconv.Quote(value) + "; it is yes or no")
		}
		c.ReturnMemory = value == "yes"
	default:
		return ErrUnknownKey
	}
	return err
}

// Problem is one line of a configuration, or one word of a command line, that
// could not be taken.
type Problem struct {
	Line int    // in the file, from 1; 0 for a word of the command line
	Key  string // empty when the line has no key and value
	Err  error  // ErrUnknownKey, or what is wrong with the value
}

// Error says where and what; the caller puts the file's name in front.
func (p Problem) Error() string {
	s := p.Err.Error()
	if p.Key != "" {
		s = p.Key + ": " + s
	}
	if p.Line > 0 {
		s = "line " + strconv.Itoa(p.Line) + ": " + s
	}
	return s
}

// Unwrap gives Err.
func (p Problem) Unwrap() error { return p.Err }

// ReadFile sets every key of a configuration file: one `key value` a line, `#`
// begins a comment line. What could not be taken is returned; the rest is set.
func (c *Config) ReadFile(text string) []Problem {
	var problems []Problem
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		i := strings.IndexAny(line, " \t")
		if i < 0 {
			problems = append(problems, Problem{n, "", errors.New("no value: " + strconv.Quote(line))})
			continue
		}
		key, value := line[:i], strings.TrimSpace(line[i:])
		if err := c.Set(key, value); err != nil {
			problems = append(problems, Problem{n, key, err})
		}
	}
	return problems
}

// ReadCmdline sets the keys that the kernel command line overrides:
// initoverlayfs.KEY=VALUE, and scsi.addr= without the prefix.
//
// Without initoverlayfs.on_failure= the kernel's own panic= decides what
// follows a failure: a positive number reboots after so many seconds, a
// negative one at once, and 0 halts.
func (c *Config) ReadCmdline(cmdline string) []Problem {
	var problems []Problem
	var panicTimeout string
	explicitPolicy := false
	for word := range Words(cmdline) {
		name, value, ok := strings.Cut(word, "=")
		if name == "panic" && ok {
			panicTimeout = value
			continue
		}
		key, ours := strings.CutPrefix(name, CmdlinePrefix)
		if !ours && name != "scsi.addr" {
			continue
		}
		var err error
		if !ok {
			err = errors.New("no value")
		} else {
			err = c.Set(key, value)
		}
		if err != nil {
			problems = append(problems, Problem{0, name, err})
		} else if key == "on_failure" {
			explicitPolicy = true
		}
	}
	if n, err := strconv.Atoi(panicTimeout); err == nil && !explicitPolicy {
		switch {
		case n > 0:
			c.OnFailure = FailurePolicy{Reboot, min(n, maxSeconds)}
		case n < 0:
			c.OnFailure = FailurePolicy{Reboot, 0}
		default:
			c.OnFailure = FailurePolicy{Action: Halt}
		}
	}
	return problems
}

// Check reports what the configuration lacks to boot.
func (c *Config) Check() error {
	switch {
	case c.ImageUUID.IsZero():
		return errors.New("image_uuid is not set")
	case c.ImageSize == 0:
		return errors.New("image_size is not set")
	case len(c.Backends) == 0:
		return errors.New("backend is not set")
	}
	return nil
}

// Format gives the configuration as a file, without what is default or unset.
func (c *Config) Format() string {
	var b strings.Builder
	put := func(key, value, unset string) {
		if value != unset {
			b.WriteString(key + " " + value + "\n")
		}
	}
	d := Default()
	put("backend", FormatBackends(c.Backends, c.Auto), "")
	put("bootfs", c.Bootfs.String(), "")
	put("bootfs_hint", c.BootfsHint, "")
	put("bootfstype", c.BootfsType, "")
	put("fs", c.FS, "")
	put("fstype", c.FSType, "")
	put("scsi.addr", c.SCSIAddr, "")
	put("device", strings.Join(c.Devices, ","), "")
	put("image_uuid", c.ImageUUID.String(), UUID{}.String())
	put("image_size", strconv.FormatInt(c.ImageSize, 10), "0")
	put("timeout", strconv.Itoa(c.TimeoutSeconds), strconv.Itoa(d.TimeoutSeconds))
	put("overlay_size", c.OverlaySize, d.OverlaySize)
	put("init", c.Init, "")
	put("on_failure", c.OnFailure.String(), d.OnFailure.String())
	if !c.ReturnMemory {
		put("return_memory", "no", "")
	}
	return b.String()
}

// FormatBackends is the inverse of ParseBackends.
func FormatBackends(list []Backend, auto bool) string {
	var b strings.Builder
	if auto {
		b.WriteString("auto:")
	}
	for i, backend := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(string(backend))
	}
	return b.String()
}

func hasDotDot(path string) bool {
	for elem := range strings.SplitSeq(path, "/") {
		if elem == ".." {
			return true
		}
	}
	return false
}

func validSCSIAddr(s string) bool {
	n := 0
	for field := range strings.SplitSeq(s, ":") {
		if _, err := strconv.ParseUint(field, 10, 64); err != nil {
			return false
		}
		n++
	}
	return n == 4
}

func validOverlaySize(s string) bool {
	if s == "" {
		return false
	}
	digits := s
	switch s[len(s)-1] {
	case 'K', 'M', 'G', 'k', 'm', 'g', '%':
		digits = s[:len(s)-1]
	}
	n, err := strconv.ParseUint(digits, 10, 40)
	return err == nil && n > 0 && (s[len(s)-1] != '%' || n <= 100)
}
