package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"initoverlayfs/bootentry"
	"initoverlayfs/builder"
)

// A machine has boot entries in files of their own (Boot Loader Specification),
// or a menu that grub-mkconfig writes, in which our script takes part. Both are
// served; on a machine with the first, the script prints nothing.

// plainInitrds are the initramfs archives that the distribution's entries of the
// kernel name, by the machine's names. The last one of an entry is the full
// tree; what is in front of it is microcode.
func (i *installation) plainInitrds() []string {
	plain, err := i.plainEntries()
	if err != nil {
		return nil // it is told when entries are written
	}
	var names []string
	for _, p := range plain {
		if archives := p.Initrds(); len(archives) > 0 {
			path := strings.TrimPrefix(archives[len(archives)-1], p.Prefix(i.bootDir))
			names = append(names, i.m.name(filepath.Join(i.bootDir, path)))
		}
	}
	return names
}

func (i *installation) plainEntries() ([]*bootentry.Entry, error) {
	tokens, err := i.tokens()
	if err != nil {
		return nil, err
	}
	return bootentry.PlainEntries(i.bootDir, i.o.KernelVersion, tokens...)
}

// tokens are how kernel-install(8) tells the entries of this system from those
// of others on one boot partition.
func (i *installation) tokens() ([]string, error) {
	var tokens []string
	for _, file := range []string{"/etc/kernel/entry-token", "/etc/machine-id"} {
		text, err := readOptional(i.m.path(file))
		if err != nil {
			return nil, err
		}
		if token := strings.TrimSpace(text); token != "" && token != "uninitialized" {
			tokens = append(tokens, token)
		}
	}
	return tokens, nil
}

// loaderPath is how entries name a file of the machine: from the boot folder, with
// the prefix that the plain entry has.
func (i *installation) loaderPath(prefix, name string) (string, error) {
	rel, err := filepath.Rel(i.bootDir, i.m.path(name))
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return "", fmt.Errorf("%s does not lie below %s, where the boot loader reads", name, i.bootDir)
	}
	return prefix + "/" + rel, nil
}

// plan is what the entries of a state are; nil if the machine has none of its
// own for the kernel, and none can be made.
func (i *installation) plan(state *State) (*bootentry.Plan, error) {
	if !isDir(filepath.Join(i.bootDir, "loader/entries")) {
		return nil, nil
	}
	plain, err := i.plainEntries()
	if err != nil {
		return nil, err
	}
	p := &bootentry.Plan{Boot: i.bootDir, Version: i.o.KernelVersion}
	if p.Tokens, err = i.tokens(); err != nil {
		return nil, err
	}
	switch {
	case len(plain) > 0:
		p.Plain = plain[0]
	default:
		if p.Plain, err = i.newEntry(state); err != nil || p.Plain == nil {
			return nil, err
		}
	}
	prefix := p.Plain.Prefix(i.bootDir)
	if p.Initrd, err = i.loaderPath(prefix, state.generation(state.Current).Mini); err != nil {
		return nil, err
	}
	if g := state.generation(state.Previous); g != nil {
		if p.Previous, err = i.loaderPath(prefix, g.Mini); err != nil {
			return nil, err
		}
	}
	tries, err := readOptional(i.m.path("/etc/kernel/tries"))
	if err != nil {
		return nil, err
	}
	if n, err := strconv.ParseUint(strings.TrimSpace(tries), 10, 31); err == nil {
		p.Tries = uint32(n)
	}
	return p, nil
}

// newEntry makes a plain entry where the distribution has made none; nil if the
// kernel, its initramfs or its command line is not where that can be told.
func (i *installation) newEntry(state *State) (*bootentry.Entry, error) {
	kver, source := i.o.KernelVersion, state.generation(state.Current).Source
	linux := filepath.Join(i.bootDir, "vmlinuz-"+kver)
	options, err := readOptional(i.m.path("/etc/kernel/cmdline"))
	if err != nil {
		return nil, err
	}
	initrd, err := i.loaderPath("", source)
	if source == "" || err != nil || !isFile(linux) || strings.TrimSpace(options) == "" {
		return nil, nil
	}
	tokens, err := i.tokens()
	if err != nil || len(tokens) == 0 {
		return nil, err
	}
	release, err := readOptional(i.m.path("/etc/os-release"))
	if err != nil {
		return nil, err
	}
	machineID, err := readOptional(i.m.path("/etc/machine-id"))
	if err != nil {
		return nil, err
	}
	// systemd-boot sorts by it: an entry must have it where kernel-install's do.
	if machineID = strings.TrimSpace(machineID); machineID != tokens[0] {
		machineID = ""
	}
	return bootentry.NewEntry(bootentry.Template{
		Token: tokens[0], Version: kver, MachineID: machineID,
		Title:   firstOf(releaseField(release, "PRETTY_NAME"), "Linux"),
		SortKey: firstOf(releaseField(release, "IMAGE_ID"), releaseField(release, "ID")),
		Options: options, Linux: "/vmlinuz-" + kver, Initrds: []string{initrd},
	}), nil
}

// releaseField reads a field of os-release(5).
func releaseField(text, key string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			return strings.Trim(value, `"'`)
		}
	}
	return ""
}

// writeEntries makes the boot loader know the pairs of a state, and gives the
// machine's names of the entries.
func (i *installation) writeEntries(ctx context.Context, state *State) ([]string, error) {
	p, err := i.plan(state)
	if err != nil {
		return nil, err
	}
	names := []string{}
	if p != nil {
		p.Flush = func() error { return i.flush(ctx, []string{i.bootDir}) }
		written, err := bootentry.WriteBLS(*p)
		if err != nil {
			return nil, err
		}
		for _, name := range written.Names {
			names = append(names, i.entryName(name))
		}
		if written.First && p.Plain.ForGrub() {
			if err := i.takeOverDefault(ctx, p.Plain.ID(), written.Current); err != nil {
				i.warn("GRUB's default is still the plain entry: " + err.Error())
			}
			if err := p.Flush(); err != nil {
				return nil, err
			}
		}
	}
	var inMenu []int
	if p == nil && i.bootDir == "/boot" {
		inMenu = []int{state.Current}
		if state.Previous != 0 {
			inMenu = append(inMenu, state.Previous)
		}
	}
	known, err := i.updateGrub(ctx, inMenu)
	if err == nil && p == nil && !known && !i.o.EntriesFollow {
		i.warn("no boot loader was found that has an entry of kernel " + i.o.KernelVersion + " beside which ours could be put; the pair is there, and is not booted")
	}
	return names, err
}

// grubEnv has the name of the entry that Fedora's GRUB boots, where it is set.
const grubEnv = "/boot/grub2/grubenv"

// takeOverDefault makes our first entry of a kernel GRUB's default, if the plain
// one is that by name: Fedora's kernel-install makes a new kernel's the default.
// What a user chooses later stays.
func (i *installation) takeOverDefault(ctx context.Context, plain, ours string) error {
	env := i.m.path(grubEnv)
	if _, err := os.Stat(env); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	program, err := exec.LookPath("grub2-editenv")
	if err != nil {
		if program, err = exec.LookPath("grub-editenv"); err != nil {
			return err
		}
	}
	variables, err := exec.CommandContext(ctx, program, env, "list").Output()
	if err != nil {
		return fmt.Errorf("%s %s list: %w", program, env, err)
	}
	if !slices.Contains(strings.Split(string(variables), "\n"), "saved_entry="+plain) {
		return nil
	}
	return i.run(ctx, exec.CommandContext(ctx, program, env, "set", "saved_entry="+ours))
}

// entryName is the machine's name of an entry's file.
func (i *installation) entryName(file string) string {
	return i.m.name(filepath.Join(i.bootDir, "loader/entries", file))
}

// entries are our entries of the kernel, by the machine's names.
func (i *installation) entries() ([]string, error) {
	all, err := bootentry.Entries(i.bootDir)
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, e := range all {
		if _, version, ours := e.Ours(); ours && version == i.o.KernelVersion {
			names = append(names, i.entryName(e.Name))
		}
	}
	return names, nil
}

func (i *installation) removeEntries(ctx context.Context) error {
	tokens, err := i.tokens()
	if err != nil {
		return err
	}
	removed, err := bootentry.RemoveBLS(i.bootDir, i.o.KernelVersion, tokens...)
	if err != nil {
		return err
	}
	if len(removed) > 0 {
		// No loader shall see an entry of what is removed next.
		if err := i.flush(ctx, []string{i.bootDir}); err != nil {
			return err
		}
	}
	_, err = i.updateGrub(ctx, nil)
	return err
}

// Where GRUB's menu is generated.
const grubScript = "/etc/grub.d/09_initoverlayfs"

var grubConfigs = []string{"/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"}

// updateGrub has GRUB's menu written again, if there is one in which our script
// takes part, which known tells, and if it does not name these generations of the
// kernel: grub-mkconfig may take long, and a new kernel's hooks call us twice.
func (i *installation) updateGrub(ctx context.Context, generations []int) (known bool, err error) {
	if i.m.sysroot != "" {
		return false, nil
	}
	info, err := os.Stat(grubScript)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode()&0o111 == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, config := range grubConfigs {
		if !isFile(config) {
			continue
		}
		for _, program := range []string{"grub-mkconfig", "grub2-mkconfig"} {
			if _, err := exec.LookPath(program); err == nil {
				return true, i.updateGrubConfig(ctx, program, config, generations)
			}
		}
	}
	return false, nil
}

// updateGrubConfig has a menu written, if it is not yet as it shall be.
func (i *installation) updateGrubConfig(ctx context.Context, program, config string, generations []int) error {
	menu, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	if slices.Equal(menuGenerations(menu, i.o.KernelVersion), generations) {
		return nil
	}
	i.progress("writing the boot menu " + config)
	// Debian's update-grub does this, and others do not have it.
	if err := i.writeGrubConfig(ctx, program, config); err != nil {
		return err
	}
	if menu, err = os.ReadFile(config); err != nil {
		return err
	}
	if got := menuGenerations(menu, i.o.KernelVersion); !slices.Equal(got, generations) {
		i.warn(fmt.Sprintf("%s has entries of the pairs %d of kernel %s and not of %d; what does %s say?", config, got, i.o.KernelVersion, generations, program))
	}
	return nil
}

// menuGenerations are those of a kernel that a menu has entries of, in its order.
func menuGenerations(menu []byte, kver string) []int {
	var numbers []int
	name := regexp.MustCompile(folder + "/" + regexp.QuoteMeta(kver) + "/([0-9]+)/initramfs-")
	for _, m := range name.FindAllSubmatch(menu, -1) {
		if n, err := strconv.Atoi(string(m[1])); err == nil {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// writeGrubConfig has the menu written beside, and renames it: what grub-mkconfig
// does itself is to empty the menu that is there and copy the new one into it, and
// a power cut then leaves a machine without a menu.
func (i *installation) writeGrubConfig(ctx context.Context, program, config string) error {
	config, err := filepath.EvalSymlinks(config)
	if err != nil {
		return err
	}
	info, err := os.Stat(config)
	if err != nil {
		return err
	}
	pending := filepath.Join(filepath.Dir(config), ".initoverlayfs.cfg")
	defer func() { _ = removeAll([]string{pending, pending + ".new"}) }() // the second one is grub-mkconfig's
	if err := i.run(ctx, exec.CommandContext(ctx, program, "-o", pending)); err != nil {
		return err
	}
	f, err := os.OpenFile(pending, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(info.Mode().Perm()), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(pending, config); err != nil {
		return err
	}
	if err := builder.SyncDir(filepath.Dir(config)); err != nil {
		return err
	}
	return i.flush(ctx, []string{filepath.Dir(config)})
}
