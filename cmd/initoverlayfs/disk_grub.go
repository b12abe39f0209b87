package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"initoverlayfs/initrd/bootconf"
)

// GRUB on a disk is one program with the modules that it needs. It finds the EFI
// system partition by its serial number, and there its menu.
const grubMenuPath = "/grub/grub.cfg"

var grubModules = []string{"part_gpt", "fat", "search_fs_uuid", "normal", "configfile", "linux", "gzio", "echo", "test", "sleep", "reboot", "halt"}

// grubTargets are GRUB's names of architectures under UEFI.
var grubTargets = map[string]string{
	"386": "i386-efi", "amd64": "x86_64-efi", "arm": "arm-efi", "arm64": "arm64-efi", "loong64": "loongarch64-efi", "riscv64": "riscv64-efi",
}

// grubTools are what makes GRUB's program.
type grubTools struct {
	mkimage, target, modules string
}

// findGrub looks for what the distribution has of GRUB.
func findGrub(arch string) (*grubTools, error) {
	g := &grubTools{target: grubTargets[arch]}
	if g.target == "" {
		return nil, fmt.Errorf("GRUB is not known for the architecture %s", arch)
	}
	var err error
	for _, name := range []string{"grub-mkimage", "grub2-mkimage"} {
		if g.mkimage, err = exec.LookPath(name); err == nil {
			break
		}
	}
	if err != nil {
		return nil, hinted{err, "install grub-common (Debian) or grub2-tools-extra (Fedora)"}
	}
	g.modules = filepath.Join("/usr/lib/grub", g.target)
	if _, err := os.Stat(filepath.Join(g.modules, "normal.mod")); err != nil {
		return nil, hinted{err, "install grub-efi-amd64-bin (Debian), grub2-efi-x64-modules (Fedora) or those of the architecture"}
	}
	return g, nil
}

// make makes the program for the EFI system partition with this serial number.
func (g *grubTools) make(ctx context.Context, work, serial string) (path string, err error) {
	path, config := filepath.Join(work, "grub.efi"), filepath.Join(work, "grub-early.cfg")
	text := "search.fs_uuid " + serial + " root\nset prefix=($root)" + filepath.Dir(grubMenuPath) + "\nconfigfile ($root)" + grubMenuPath + "\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return "", err
	}
	args := append([]string{"-O", g.target, "-d", g.modules, "-c", config, "-p", filepath.Dir(grubMenuPath), "-o", path}, grubModules...)
	// For the kernel's first console on a display; not every architecture has it.
	if _, err := os.Stat(filepath.Join(g.modules, "all_video.mod")); err == nil {
		args = append(args, "all_video")
	}
	if out, err := exec.CommandContext(ctx, g.mkimage, args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(g.mkimage), err, bytes.TrimSpace(out))
	}
	return path, nil
}

// grubMenu has the entries in their order.
func grubMenu(entries []diskEntry, chosen, timeout int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "set default=%d\nset timeout=%d\n", chosen, timeout)
	for _, e := range entries {
		fmt.Fprintf(&b, "menuentry %s --id %s {\n\tlinux %s", grubQuote(e.Title), grubQuote(strings.TrimSuffix(e.File, ".conf")), grubQuote(e.linux))
		// GRUB itself puts quotes around a word with blanks.
		for word := range bootconf.Words(e.Options) {
			b.WriteString(" " + grubQuote(word))
		}
		fmt.Fprintf(&b, "\n\tinitrd %s\n}\n", grubQuote(e.initrd))
	}
	return b.String()
}

// grubQuote makes a word of GRUB's script language that says what it says.
func grubQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
