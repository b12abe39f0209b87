package install

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
)

// defaultMiniBuilder makes a mini-initramfs with systemd as dracut is configured,
// without what only the full tree needs.
const defaultMiniBuilder = `dracut --add "initoverlayfs dracut-systemd" ` +
	`--omit "drm fstab-sys nfs plymouth resume shutdown squash usrmount"`

// systemdMini makes the mini-initramfs of systemd mode: dracut's module
// initoverlayfs puts storage-init, its units and the configuration in.
func (i *installation) systemdMini(ctx context.Context, conf bootconf.Config, out *os.File) error {
	program, err := builder.FindStorageInit(i.o.Build.StorageInit, i.o.Build.Arch)
	if err != nil {
		return err
	}
	if program, err = filepath.Abs(program); err != nil {
		return err
	}
	command := firstOf(i.config.MiniBuilder, defaultMiniBuilder)
	i.progress("making the mini-initramfs: " + command)
	confPath, made := filepath.Join(i.work, "initoverlayfs.conf"), filepath.Join(i.work, "systemd.img")
	if err := os.WriteFile(confPath, []byte(conf.Format()), 0o644); err != nil {
		return err
	}
	err = i.runBuilder(ctx, command, made, "INITOVERLAYFS_CONF="+confPath, "INITOVERLAYFS_STORAGE_INIT="+program)
	if err != nil {
		return err
	}
	if inside, err := builder.MiniConfig(made); err != nil || inside.Format() != conf.Format() {
		return &builder.HintedError{
			Err:    fmt.Errorf("command line %q has made an initramfs without storage-init and its configuration", command),
			Advice: "dracut's module initoverlayfs puts them in: ask for it with `-m` or `--add`",
		}
	}
	archive, err := os.Open(made)
	if err != nil {
		return err
	}
	defer archive.Close()
	if _, err := io.Copy(out, archive); err != nil {
		return fmt.Errorf("copy %s: %w", made, err)
	}
	return os.Remove(made)
}
