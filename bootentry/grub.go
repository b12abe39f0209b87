package bootentry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// GrubDefaults is what all entries of a GRUB menu share.
type GrubDefaults struct {
	OS          string   // title without the kernel
	Classes     []string // which icons of a theme fit
	Prepare     string   // commands that make the filesystem of /boot the root
	BootPath    string   // path of /boot on its filesystem
	Root        string   // value of the kernel's root=
	Args        string   // the other arguments, as GRUB's words
	Early       []string // initramfs archives that come before all others, as GRUB sees them
	GfxPayload  string   // video mode for the kernel; "" is GRUB's choice
	SaveDefault bool     // the entry that is booted becomes the default
}

// ReadGrubDefaults computes from the environment of "initoverlayfs hook grub" (see
// the package's documentation) what Debian's own menu entries have. exists says
// whether a path of this machine is there.
func ReadGrubDefaults(getenv func(string) string, exists func(path string) bool) (*GrubDefaults, error) {
	d := &GrubDefaults{
		OS:          "GNU/Linux",
		Classes:     []string{"gnu-linux", "gnu", "os"},
		Prepare:     getenv("INITOVERLAYFS_GRUB_PREPARE"),
		BootPath:    getenv("INITOVERLAYFS_GRUB_BOOT_PATH"),
		GfxPayload:  getenv("GRUB_GFXPAYLOAD_LINUX"),
		SaveDefault: getenv("GRUB_SAVEDEFAULT") == "true",
	}
	if d.Prepare == "" || d.BootPath == "" {
		return nil, errors.New("grub menu: INITOVERLAYFS_GRUB_PREPARE and INITOVERLAYFS_GRUB_BOOT_PATH are set by the script 09_initoverlayfs, which grub-mkconfig runs")
	}
	if distributor := getenv("GRUB_DISTRIBUTOR"); distributor != "" {
		d.OS = distributor
		if distributor != "Ubuntu" && distributor != "Kubuntu" {
			d.OS += " GNU/Linux"
		}
		word, _, _ := strings.Cut(strings.ToLower(distributor), " ")
		class := strings.Map(func(r rune) rune {
			if digit(r) || letter(r) {
				return r
			}
			return '_'
		}, word)
		d.Classes = append([]string{class}, d.Classes...)
	}
	var err error
	if d.Root, err = grubRoot(getenv, exists); err != nil {
		return nil, err
	}
	words := []string{getenv("GRUB_CMDLINE_LINUX"), getenv("GRUB_CMDLINE_LINUX_DEFAULT")}
	if subvolume := strings.TrimPrefix(getenv("INITOVERLAYFS_GRUB_ROOT_PATH"), "/"); subvolume != "" && getenv("GRUB_FS") == "btrfs" {
		words = slices.Insert(words, 0, grubQuote("rootflags=subvol="+subvolume))
	}
	d.Args = grubWords(strings.Join(words, " "))
	for name := range strings.FieldsSeq(getenv("GRUB_EARLY_INITRD_LINUX_STOCK") + " " + getenv("GRUB_EARLY_INITRD_LINUX_CUSTOM")) {
		if exists("/boot/" + name) {
			d.Early = append(d.Early, path.Join("/", d.BootPath, name))
		}
	}
	return d, nil
}

// grubRoot chooses what the kernel is told of its root as Debian's 10_linux does,
// so that our entries and the plain ones there cannot disagree. An empty
// GRUB_DISABLE_LINUX_PARTUUID is taken for one that is not set: it disables.
func grubRoot(getenv func(string) string, exists func(string) bool) (string, error) {
	device, uuid, partuuid := getenv("GRUB_DEVICE"), getenv("GRUB_DEVICE_UUID"), getenv("GRUB_DEVICE_PARTUUID")
	noUUID := getenv("GRUB_DISABLE_LINUX_UUID") == "true"
	noPartUUID := getenv("GRUB_DISABLE_LINUX_PARTUUID") == "" || getenv("GRUB_DISABLE_LINUX_PARTUUID") == "true"
	known := exists("/dev/disk/by-uuid/"+uuid) || exists("/dev/disk/by-partuuid/"+partuuid)
	switch {
	case getenv("GRUB_FS") == "zfs":
		return "", errors.New("grub menu: a root on ZFS is not supported")
	case device == "":
		return "", errors.New("grub menu: GRUB_DEVICE is not set")
	case uuid == "" && partuuid == "", noUUID && noPartUUID, !known,
		getenv("INITOVERLAYFS_GRUB_ROOT_LVM") == "true" && exists(device):
		return device, nil
	case uuid == "" || noUUID:
		return "PARTUUID=" + partuuid, nil
	default:
		return "UUID=" + uuid, nil
	}
}

// GrubKernel is a kernel that has a pair. Paths are as GRUB sees them.
type GrubKernel struct {
	Version  string
	Linux    string
	Plain    string // plain initramfs; "" for no such entry
	Mini     string // mini-initramfs
	Previous string // that of the previous pair; "" for no such entry
}

// GrubMenu prints a menu entry for each pair of each kernel, and for the plain
// initramfs between those of one kernel; the newest kernel comes first. The
// entries have the IDs initoverlayfs-V, initoverlayfs-V-plain and
// initoverlayfs-V-previous. An error leaves nothing printed.
func GrubMenu(w io.Writer, d *GrubDefaults, kernels []GrubKernel) error {
	kernels = slices.Clone(kernels)
	slices.SortStableFunc(kernels, func(a, b GrubKernel) int {
		return CompareVersions(preReleaseTilde(b.Version), preReleaseTilde(a.Version))
	})
	var b bytes.Buffer
	for _, k := range kernels {
		if k.Version == "" || k.Linux == "" || k.Mini == "" {
			return fmt.Errorf("grub menu: kernel %q lacks its path or its pair", k.Version)
		}
		d.entry(&b, k, "", "initoverlayfs", k.Mini)
		if k.Plain != "" {
			d.entry(&b, k, "-plain", "plain initramfs", k.Plain)
		}
		if k.Previous != "" {
			d.entry(&b, k, "-previous", "initoverlayfs, previous", k.Previous)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// preReleaseTilde lets the candidates of a kernel come before it.
func preReleaseTilde(version string) string {
	return strings.NewReplacer("-rc", "~rc", ".rc", "~rc").Replace(version)
}

func (d *GrubDefaults) entry(b *bytes.Buffer, k GrubKernel, id, what, initrd string) {
	name := fmt.Sprintf("Linux %s (%s)", k.Version, what)
	fmt.Fprintf(b, "menuentry %s", grubString(d.OS+", with "+name))
	for _, class := range d.Classes {
		fmt.Fprintf(b, " --class %s", grubQuote(class))
	}
	fmt.Fprintf(b, " --id %s {\n", grubString("initoverlayfs-"+k.Version+id))
	if d.SaveDefault {
		b.WriteString("\tsavedefault\n")
	}
	if d.GfxPayload != "text" {
		b.WriteString("\tload_video\n")
	}
	if d.GfxPayload != "" {
		fmt.Fprintf(b, "\tset gfxpayload=%s\n", grubQuote(d.GfxPayload))
	}
	b.WriteString("\tinsmod gzio\n")
	for command := range strings.Lines(d.Prepare) {
		fmt.Fprintf(b, "\t%s\n", strings.TrimRight(command, "\r\n"))
	}
	fmt.Fprintf(b, "\techo\t%s\n", grubString("Loading "+name+" ..."))
	fmt.Fprintf(b, "\tlinux\t%s root=%s ro", grubQuote(k.Linux), grubQuote(d.Root))
	if d.Args != "" {
		b.WriteString(" " + d.Args)
	}
	b.WriteString("\n\tinitrd\t")
	for _, early := range d.Early {
		b.WriteString(grubQuote(early) + " ")
	}
	b.WriteString(grubQuote(initrd) + "\n}\n")
}

// grubString quotes a string. What would end a line becomes a blank.
func grubString(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// grubQuote quotes a word where it needs that.
func grubQuote(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !plainRune(r) }) {
		return grubString(s)
	}
	return s
}

// grubWords gives arguments as GRUB's script language shall read them. Debian puts
// GRUB_CMDLINE_LINUX into the menu as it is, so it may have GRUB's quotes and
// variables; those stay. What would not stay within one command is taken word by
// word for what it says.
func grubWords(args string) string {
	if oneCommand(args) {
		return strings.TrimSpace(args)
	}
	words := strings.Fields(args)
	for i, word := range words {
		words[i] = grubQuote(word)
	}
	return strings.Join(words, " ")
}

// oneCommand reports whether GRUB reads s as words of the command before it.
func oneCommand(s string) bool {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' }) {
		return false
	}
	var quote byte
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote == '\'':
			if c == '\'' {
				quote = 0
			}
		case c == '\\':
			if i++; i == len(s) {
				return false
			}
		case c == '$':
			name := strings.TrimLeftFunc(s[i+1:], func(r rune) bool { return digit(r) || letter(r) || r == '_' })
			if len(name) == len(s[i+1:]) {
				return false
			}
		case c == quote:
			quote = 0
		case quote != 0:
		case c == '\'' || c == '"':
			quote = c
		case strings.IndexByte("{}|&;<>", c) >= 0, c == '#' && (i == 0 || s[i-1] == ' ' || s[i-1] == '\t'):
			return false
		}
	}
	return quote == 0
}
