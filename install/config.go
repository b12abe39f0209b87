package install

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
)

// ConfigPath is the machine's configuration. The one inside a mini-initramfs is
// made from it.
const ConfigPath = "/etc/initoverlayfs.conf"

// Config is the machine's configuration: the keys of storage-init, and those
// that say how pairs are made. It is read from lines `key value`, as the C
// project of this name has them, whose files are understood.
type Config struct {
	Boot bootconf.Config
	set  map[string]bool // keys that have a value

	BootDir  string   // boot_dir: where the boot loader reads
	ImageDir string   // image_dir: where images go; empty: BootDir
	Storage  []string // storage: driver sets; empty: all

	// Builder (initoverlayfs_builder) is the command line that makes the full
	// tree's archive. Empty: the one that the distribution has made.
	Builder string
	// MiniBuilder (initrd_builder) is the command line that makes the
	// mini-initramfs of systemd mode. Empty: dracut.
	MiniBuilder string
	// Systemd is systemd mode: the mini-initramfs has systemd, and storage-init
	// is one of its units.
	Systemd bool
	// Compression (erofs_compression) is that of the image; nil: the default.
	Compression *builder.ImageCompression
	// KeepModules (keep_compressed_modules) leaves compressed modules in the
	// image as they are.
	KeepModules bool

	text  string   // of the file
	notes []string // what is not as the file has it
}

// readConfig reads a configuration file. One that does not exist has nothing
// set. Unlike storage-init, which has to go on, it refuses what it does not
// know.
func readConfig(path string) (*Config, error) {
	c := &Config{Boot: bootconf.Default(), set: map[string]bool{}}
	text, err := readOptional(path)
	if err != nil {
		return nil, err
	}
	c.text = text
	n, direct := 0, ""
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
		value = strings.TrimSpace(value)
		if value == "" && (key == "bootfs" || key == "bootfs_hint") {
			continue // the C project writes them so where it finds nothing
		} else if value == "" {
			err = errors.New("no value")
		} else if key == "initoverlayfs_init" {
			direct = value
			err = checkBool(value)
		} else {
			err = c.Set(key, value)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: line %d: %s: %w", path, n, key, err)
		}
	}
	// As the C project has it: an initrd_builder makes an initramfs with systemd
	// unless storage-init is to be the init itself.
	c.Systemd = direct == "false" || direct == "" && c.MiniBuilder != ""
	if direct == "true" && c.MiniBuilder != "" {
		// Its command line makes what the C project's init needs.
		c.MiniBuilder = ""
		c.notes = append(c.notes, "the key initrd_builder is not used: with initoverlayfs_init true the mini-initramfs is made without dracut")
	}
	return c, nil
}

func checkBool(value string) error {
	if value != "true" && value != "false" {
		return fmt.Errorf("bad value %q; it is true or false", value)
	}
	return nil
}

// Set gives one key its value.
func (c *Config) Set(key, value string) error {
	var err error
	switch key {
	case "boot_dir", "image_dir":
		if !filepath.IsAbs(value) || filepath.Clean(value) != value {
			return fmt.Errorf("not a clean absolute path: %q", value)
		}
		if key == "boot_dir" {
			c.BootDir = value
		} else {
			c.ImageDir = value
		}
	case "storage":
		c.Storage = strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
		for _, name := range c.Storage {
			if name != "all" && !slices.Contains(builder.StorageNames(), name) {
				return fmt.Errorf("unknown drivers %q; known: all %s", name, strings.Join(builder.StorageNames(), " "))
			}
		}
	case "initoverlayfs_builder":
		c.Builder = value
	case "initrd_builder":
		c.MiniBuilder = value
	case "erofs_compression":
		// -z is mkfs.erofs's option.
		compression, perr := builder.ParseImageCompression(strings.TrimSpace(strings.TrimPrefix(value, "-z")))
		if perr != nil {
			return perr
		}
		c.Compression = &compression
	case "keep_compressed_modules":
		err = checkBool(value)
		c.KeepModules = value == "true"
	case "image_uuid", "image_size":
		return errors.New("this is known when an image is made, and cannot be set")
	default:
		err = c.Boot.Set(key, value)
		if errors.Is(err, bootconf.ErrUnknownKey) {
			err = fmt.Errorf("%w; see initoverlayfs.conf(5)", err)
		}
	}
	if err == nil {
		c.set[key] = true
	}
	return err
}

// readConfig reads the configuration of a machine; named is another file.
func (m machine) readConfig(named string) (*Config, error) {
	if named == "" {
		return readConfig(m.path(ConfigPath))
	}
	if _, err := os.Stat(named); err != nil {
		return nil, err
	}
	return readConfig(named)
}
