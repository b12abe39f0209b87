package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"initoverlayfs/builder"
)

// source is the archive of a full tree.
type source struct {
	path string // on this system
	// name is the machine's name of what the distribution's generator made;
	// empty if the archive was made for the occasion.
	name string
}

// findSource finds the initramfs that the distribution's generator has made for
// a kernel.
func (m machine) findSource(kver string, entries []string) (string, bool) {
	candidates := []string{
		"/boot/initrd.img-" + kver,                    // Debian
		"/boot/initramfs-" + kver + ".img",            // Fedora
		"/usr/lib/modules/" + kver + "/initramfs.img", // ostree, bootc
	}
	// Arch names them after the kernel's package.
	if name, err := readOptional(m.path("/usr/lib/modules", kver, "pkgbase")); err == nil && name != "" {
		candidates = append(candidates, "/boot/initramfs-"+strings.TrimSpace(name)+".img")
	}
	// kernel-install may leave it with the boot loader only.
	for _, name := range append(candidates, entries...) {
		if isFile(m.path(name)) {
			return name, true
		}
	}
	return "", false
}

// generate runs the distribution's generator with its output in the work
// folder.
func (i *installation) generate(ctx context.Context) (*source, error) {
	out := filepath.Join(i.work, "initramfs.img")
	kver := i.o.KernelVersion
	if i.config.Builder != "" {
		i.progress("making the initramfs: " + i.config.Builder)
		return &source{path: out}, i.runBuilder(ctx, i.config.Builder, out)
	}
	if i.m.sysroot != "" {
		return nil, &builder.HintedError{
			Err:    fmt.Errorf("there is no initramfs for kernel %s below %s", kver, i.m.sysroot),
			Advice: "make one there, or name it with --initramfs",
		}
	}
	for _, generator := range [][]string{
		{"dracut", "--force", "--kver", kver, out},
		{"mkinitramfs", "-o", out, kver},
		{"mkinitcpio", "-k", kver, "-g", out},
	} {
		if _, err := exec.LookPath(generator[0]); err != nil {
			continue
		}
		i.progress("making the initramfs: " + strings.Join(generator, " "))
		return &source{path: out}, i.run(ctx, exec.CommandContext(ctx, generator[0], generator[1:]...))
	}
	return nil, &builder.HintedError{
		Err:    fmt.Errorf("there is no initramfs for kernel %s, and no dracut, mkinitramfs or mkinitcpio to make one", kver),
		Advice: "name it with --initramfs",
	}
}

// checkSource refuses what is a mini-initramfs itself: a pair made of it would
// have no tree.
func checkSource(path string) error {
	if _, err := builder.MiniConfig(path); err == nil {
		return fmt.Errorf("%s is a mini-initramfs, not the initramfs of a full tree", path)
	}
	return nil
}

func digestFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
