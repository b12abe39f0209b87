package builder

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"initoverlayfs/builder/kmod"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
	"initoverlayfs/initrd/erofs"
)

// kernelConfig is a kernel's build configuration: CONFIG_NAME to y, m, a number
// or a string. It is nil if the configuration is not known.
type kernelConfig map[string]string

func parseKernelConfig(text []byte) kernelConfig {
	if len(text) == 0 {
		return nil
	}
	c := kernelConfig{}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && strings.HasPrefix(name, "CONFIG_") {
			c[name] = strings.Trim(value, `"`)
		}
	}
	return c
}

// FindKernelConfig returns the build configuration of the kernel kver, whose
// modules are in modulesDir: modulesDir/config, or boot/config-KVER below the
// root that holds modulesDir. It returns nil if there is none.
func FindKernelConfig(modulesDir, kver string) ([]byte, error) {
	files := []string{filepath.Join(modulesDir, "config")}
	for _, below := range []string{"/usr/lib/modules", "/lib/modules"} {
		abs, err := filepath.Abs(filepath.Dir(modulesDir))
		if err != nil {
			return nil, fmt.Errorf("configuration of kernel %s: %w", kver, err)
		}
		if root, ok := strings.CutSuffix(abs, below); ok {
			files = append(files, filepath.Join("/", root, "boot", "config-"+kver))
		}
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("configuration of kernel %s: %w", kver, err)
		}
		return text, nil
	}
	return nil, nil
}

// need is something that a kernel must have.
type need struct {
	option string // CONFIG_NAME
	// module is the module that the option makes if it may be m. Whether the
	// kernel has it, its module directory tells. Otherwise the option must be y.
	module string
	// since is the release that brought the option, major and minor; it decides
	// when the kernel's configuration is not known.
	since erofs.KernelVersion
}

var (
	bootNeeds = []need{
		{option: "CONFIG_BLK_DEV_INITRD"},
		{option: "CONFIG_DEVTMPFS"},
		{option: "CONFIG_TMPFS"},
		{option: "CONFIG_EROFS_FS", module: "erofs"},
		{option: "CONFIG_OVERLAY_FS", module: "overlay"},
	}
	backendNeeds = map[bootconf.Backend][]need{
		bootconf.File:     {{option: "CONFIG_EROFS_FS_BACKED_BY_FILE", since: erofs.KernelVersion{Major: 6, Minor: 12}}},
		bootconf.Loop:     {loopNeed},
		bootconf.Embedded: {loopNeed},
		bootconf.RAM:      {loopNeed},
		bootconf.Pmem:     {pmemNeed},
		bootconf.PmemDAX:  {pmemNeed, {option: "CONFIG_FS_DAX"}},
	}
	loopNeed = need{option: "CONFIG_BLK_DEV_LOOP", module: "loop"}
	pmemNeed = need{option: "CONFIG_BLK_DEV_PMEM", module: "nd_pmem"}

	compressedImageNeed = need{option: "CONFIG_EROFS_FS_ZIP"}
	formatNeeds         = map[compress.Format]need{
		compress.Zstd: {option: "CONFIG_RD_ZSTD", since: erofs.KernelVersion{Major: 5, Minor: 9}},
		compress.XZ:   {option: "CONFIG_RD_XZ"},
		compress.Gzip: {option: "CONFIG_RD_GZIP"},
		compress.LZ4:  {option: "CONFIG_RD_LZ4"},
	}
)

// quickestFormat gives the compression of which a mini-initramfs is in memory the
// soonest. LZ4 takes a third more bytes than zstd, which storage of 25 MB a second
// reads in the time that unpacking zstd takes longer.
func quickestFormat(config kernelConfig, x *kmod.Index) compress.Format {
	for _, f := range []compress.Format{compress.LZ4, compress.Zstd, compress.Gzip, compress.XZ} {
		if formatNeeds[f].lacks(config, x) == "" {
			return f
		}
	}
	return compress.None
}

// ParseFormat reads the compression of a mini-initramfs: the name of a writable
// format, or "auto", which is the empty one of Options.
func ParseFormat(s string) (compress.Format, error) {
	if s == AutoFormat {
		return "", nil
	}
	f, err := compress.ParseFormat(s)
	if err != nil {
		return "", fmt.Errorf("%w %s", err, AutoFormat)
	}
	return f, nil
}

// AutoFormat is the name of the compression that depends on the kernel.
const AutoFormat = "auto"

// lacks says what the kernel does not have, or "".
func (n need) lacks(config kernelConfig, x *kmod.Index) string {
	switch {
	case n.module != "" && x.Has(n.module):
		return ""
	case n.module != "":
		return fmt.Sprintf("module %s (%s)", n.module, n.option)
	case config != nil && config[n.option] == "y":
		return ""
	case config != nil || olderThan(x.KernelVersion(), n.since):
		if n.since != (erofs.KernelVersion{}) {
			return fmt.Sprintf("%s (Linux %v and later)", n.option, n.since)
		}
		return n.option
	}
	return ""
}

// olderThan compares the first two numbers of a release such as 6.1.0-13-amd64.
// What is no such release is taken to be new.
func olderThan(kver string, since erofs.KernelVersion) bool {
	v, err := erofs.ParseKernelVersion(kver)
	return err == nil && v.Before(since)
}

// unseenXattrs says which extended attributes of a tree the kernel is not built
// to show, or "".
func (c kernelConfig) unseenXattrs(tree *cpio.Tree) string {
	if c == nil {
		return ""
	}
	hidden := make(map[string]int) // attributes by the option that is missing
	_ = tree.Walk(func(_ string, n *cpio.Node) error {
		for name := range n.Xattrs {
			option := "CONFIG_EROFS_FS_XATTR"
			if c[option] == "y" {
				switch {
				case strings.HasPrefix(name, "security."):
					option = "CONFIG_EROFS_FS_SECURITY"
				case strings.HasPrefix(name, "system.posix_acl_"):
					option = "CONFIG_EROFS_FS_POSIX_ACL"
				}
			}
			if c[option] != "y" {
				hidden[option]++
			}
		}
		return nil
	})
	var list []string
	for _, option := range slices.Sorted(maps.Keys(hidden)) {
		list = append(list, fmt.Sprintf("%d without %s", hidden[option], option))
	}
	return strings.Join(list, ", ")
}

// CheckBackend reports what the kernel lacks to serve a backend at all, whatever
// the disks and filesystems are. config is the kernel's build configuration, or
// empty if it is not known.
func CheckBackend(b bootconf.Backend, x *kmod.Index, config []byte) error {
	missing := lacking(parseKernelConfig(config), x, "backend "+string(b), backendNeeds[b])
	return lacksError(x, missing)
}

// lacking says what of the needs the kernel does not have, and who needs it.
func lacking(config kernelConfig, x *kmod.Index, who string, needs []need) (missing []string) {
	for _, n := range needs {
		if what := n.lacks(config, x); what != "" {
			missing = append(missing, what+" for "+who)
		}
	}
	return missing
}

func lacksError(x *kmod.Index, missing []string) error {
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("kernel %s lacks %s", x.KernelVersion(), strings.Join(missing, "; "))
}
