package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"initoverlayfs/bootentry"
	"initoverlayfs/builder"
	"initoverlayfs/install"
)

// hook is what one of the distributions' hooks asks for. A nil options means
// that there is nothing to do.
type hook func(a *app, o *install.Options, args []string) (do func(context.Context, install.Options) error, err error)

// hooks are the programs that call us, by the name that their scripts give.
// Their logic is here, so that the scripts have none.
var hooks = map[string]hook{
	"kernel-install":        kernelInstallHook,
	"kernel-postinst":       kernelPostinstHook,
	"kernel-postrm":         kernelPostrmHook,
	"initramfs-post-update": kernelPostinstHook, // VERSION and the initramfs, which lies where it is looked for
	"mkinitcpio":            mkinitcpioHook,
}

func (a *app) hookCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hook NAME [ARGUMENT]...",
		Short: "Do what a hook of the distribution asks for",
		Long: "Called by the scripts that plug into kernel-install, into Debian's kernel packages\n" +
			"and initramfs-tools, mkinitcpio and GRUB. A pair that cannot be made is told, and is\n" +
			"no failure of the kernel's installation: the plain initramfs is there and boots.",
		Hidden:             true,
		DisableFlagParsing: true,
		Args:               cobra.MinimumNArgs(1),
		RunE: a.verb(func(ctx context.Context, args []string) error {
			if args[0] == "grub" {
				return a.grubMenu()
			}
			h, ok := hooks[args[0]]
			if !ok {
				return usageErrorf("unknown hook %q", args[0])
			}
			var m machineFlags
			o := m.options(a)
			if err := a.runHook(ctx, h, o, args[1:]); err != nil {
				a.warn("%s: %v", args[0], err)
				a.warn("the plain initramfs is still there, and boots")
			}
			return ctx.Err()
		}),
	}
	return cmd
}

func (a *app) runHook(ctx context.Context, h hook, o install.Options, args []string) error {
	var err error
	o.Build.Image = builder.DefaultImageOptions()
	if o.Build.Producer, err = builder.ProducerNamed("native"); err != nil {
		return err
	}
	if o.Build.Epoch, err = a.sourceDateEpoch(); err != nil {
		return err
	}
	do, err := h(a, &o, args)
	if err != nil || do == nil {
		return err
	}
	return do(ctx, o)
}

func installPair(ctx context.Context, o install.Options) error {
	_, err := install.Install(ctx, o)
	return err
}

// removePairs removes what there is, which may be nothing.
func removePairs(ctx context.Context, o install.Options) error {
	kernels, err := install.Kernels(o)
	if err != nil {
		return err
	}
	for _, kver := range kernels {
		if kver == o.KernelVersion {
			return install.Remove(ctx, o)
		}
	}
	return nil
}

// kernelInstallHook is called as a plugin of kernel-install(8): COMMAND VERSION
// ENTRY-DIR KERNEL [INITRD...].
func kernelInstallHook(a *app, o *install.Options, args []string) (func(context.Context, install.Options) error, error) {
	if len(args) < 2 {
		return nil, fmt.Errorf("%d arguments, want COMMAND VERSION", len(args))
	}
	o.KernelVersion = args[1]
	o.BootDir = a.getenv("KERNEL_INSTALL_BOOT_ROOT")
	o.Staging = a.getenv("KERNEL_INSTALL_STAGING_AREA")
	switch {
	case args[0] == "remove":
		return removePairs, nil
	case args[0] != "add":
		return nil, nil
	case a.getenv("KERNEL_INSTALL_LAYOUT") == "uki":
		a.progress("kernel-install makes a unified kernel image, to which no pair belongs")
		return nil, nil
	}
	return installPair, nil
}

// kernelPostinstHook is called by Debian's kernel packages, and by
// update-initramfs: VERSION [FILE].
func kernelPostinstHook(_ *app, o *install.Options, args []string) (func(context.Context, install.Options) error, error) {
	if len(args) == 0 {
		return nil, fmt.Errorf("no arguments, want VERSION")
	}
	o.KernelVersion = args[0]
	// Debian's systemd-boot calls kernel-install from a hook that comes later.
	for _, dir := range []string{"/etc/kernel/postinst.d", "/usr/share/kernel/postinst.d"} {
		if _, err := os.Stat(filepath.Join(dir, "zz-systemd-boot")); err == nil {
			o.EntriesFollow = true
		}
	}
	return installPair, nil
}

// kernelPostrmHook is called when a Debian kernel package is removed, and again
// when it is purged; DEB_MAINT_PARAMS has the arguments of the package's own
// script.
func kernelPostrmHook(a *app, o *install.Options, args []string) (func(context.Context, install.Options) error, error) {
	if len(args) == 0 {
		return nil, fmt.Errorf("no arguments, want VERSION")
	}
	o.KernelVersion = args[0]
	action, _, _ := strings.Cut(a.getenv("DEB_MAINT_PARAMS"), " ")
	switch strings.Trim(action, "'") {
	case "", "remove", "purge":
		return removePairs, nil
	}
	return nil, nil // an upgrade, or one that was given up
}

// mkinitcpioHook is called after mkinitcpio has made an image: KERNEL INITRAMFS
// [UKI]. Kernel and image are named after the kernel's package.
func mkinitcpioHook(_ *app, o *install.Options, args []string) (func(context.Context, install.Options) error, error) {
	if len(args) < 2 || args[0] == "" {
		return nil, nil // no kernel: not an image to boot
	}
	name := strings.TrimPrefix(filepath.Base(args[0]), "vmlinuz-")
	if filepath.Base(args[1]) != "initramfs-"+name+".img" {
		return nil, nil // the fallback image
	}
	found, err := filepath.Glob("/usr/lib/modules/*/pkgbase")
	if err != nil {
		return nil, err
	}
	for _, path := range found {
		if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) == name {
			o.KernelVersion = filepath.Base(filepath.Dir(path))
			o.Initramfs = args[1]
			return installPair, nil
		}
	}
	return nil, fmt.Errorf("no kernel in /usr/lib/modules belongs to %s", args[0])
}

// grubMenu prints the entries of our pairs for the menu that grub-mkconfig writes.
// Unlike the other hooks it fails if it cannot; its script goes on without it.
func (a *app) grubMenu() error {
	defaults, err := bootentry.ReadGrubDefaults(a.getenv, func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	})
	if err != nil {
		return err
	}
	var m machineFlags
	kernels, err := install.GrubKernels(m.options(a), defaults.BootPath)
	if err != nil {
		return err
	}
	return bootentry.GrubMenu(a.stdout, defaults, kernels)
}
