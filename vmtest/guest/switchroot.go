package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// secondStage marks a root in which the second stage runs.
const secondStage = "/.vmtest-second-stage"

func isSecondStage() bool {
	_, err := os.Lstat(secondStage)
	return err == nil
}

// switchRoot makes a new root and hands over to the second stage in it, as the
// tree's own scripts would call program. It returns only with an error.
func (g *guest) switchRoot(program string) error {
	// initramfs-tools moves the mounts itself and calls run-init; others leave
	// that to the switch_root they call.
	likeDebian := filepath.Base(program) == "run-init"
	root := "/sysroot"
	if likeDebian {
		root = "/root"
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	source, kind := "tmpfs", "tmpfs"
	if g.root != "" {
		source, kind, _ = strings.Cut(g.root, ":")
	}
	if err := unix.Mount(source, root, kind, 0, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, root, err)
	}
	for _, dir := range []string{"dev", "proc", "sys", "run", "sbin"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := copySelf(filepath.Join(root, "sbin/init")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, secondStage), nil, 0o644); err != nil {
		return err
	}
	argv := []string{program, root, "/sbin/init", "second", "stage"}
	if likeDebian {
		// Its init puts a new tmpfs over /run at the begin; what lay there
		// before must have been carried across by then, or be carried now.
		if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("mount tmpfs on /run: %w", err)
		}
		for _, dir := range []string{"/dev", "/run", "/sys", "/proc"} {
			if err := unix.Mount(dir, root+dir, "", unix.MS_MOVE, ""); err != nil {
				return fmt.Errorf("move %s: %w", dir, err)
			}
		}
		console, err := os.OpenFile(root+"/dev/console", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		for fd := range 3 {
			if err := unix.Dup3(int(console.Fd()), fd, 0); err != nil {
				return fmt.Errorf("dup3: %w", err)
			}
		}
	}
	if err := unix.Exec(program, argv, append(os.Environ(), "VMTEST_STAGE=second")); err != nil {
		return fmt.Errorf("exec %s: %w", program, err)
	}
	panic("exec returned without an error")
}

// copySelf copies the running program.
func copySelf(to string) (err error) {
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
