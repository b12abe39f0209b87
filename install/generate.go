package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/cpio"
)

// protect is run by a shell in a mount namespace of its own: it makes folders
// read-only, the number of which comes first, and then does the rest.
const protect = `n=$1
shift
while [ "$n" -gt 0 ]; do
	mount --rbind "$1" "$1" && mount -o remount,bind,ro "$1" || exit
	shift
	n=$((n - 1))
done
`

// runBuilder runs a command line of the configuration that makes an archive, as
// the C project does: the options that say for which kernel and where to follow
// it. One that names an output of its own must not get at what is published:
// there the folders of the boot loader are read-only.
func (i *installation) runBuilder(ctx context.Context, command, out string, env ...string) error {
	if i.m.sysroot != "" {
		return &builder.HintedError{
			Err:    fmt.Errorf("the command line %q makes an archive of this system, not of that below %s", command, i.m.sysroot),
			Advice: "run `initoverlayfs install` there",
		}
	}
	dirs := i.protectedDirs()
	args := append([]string{"-c", protect + command + ` "$@"`, "sh", strconv.Itoa(len(dirs))}, dirs...)
	cmd := exec.CommandContext(ctx, "/bin/sh", append(args, "--force", "--kver", i.o.KernelVersion, out)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.Env = append(os.Environ(), env...)
	err := i.run(ctx, cmd)
	if err != nil {
		err = fmt.Errorf("command line %q: %w", command, err)
	}
	if errors.Is(err, syscall.EPERM) {
		err = &builder.HintedError{Err: err, Advice: "it runs in a mount namespace of its own, which takes root and CAP_SYS_ADMIN"}
	}
	if err != nil {
		return err
	}
	if err := checkArchive(out); err != nil {
		return &builder.HintedError{
			Err:    fmt.Errorf("command line %q has made no archive: %w", command, err),
			Advice: "it is followed by `--force --kver V FILE`, and must write that file",
		}
	}
	return nil
}

// protectedDirs are the folders that have what is booted.
func (i *installation) protectedDirs() []string {
	dirs := []string{i.bootDir, i.imageDir, i.modulesDir()}
	for _, dir := range bootDirs {
		dirs = append(dirs, i.m.path(dir))
	}
	var there []string
	for _, dir := range dirs {
		if isDir(dir) {
			there = append(there, dir)
		}
	}
	return there
}

// checkArchive reports why a file is no initramfs.
func checkArchive(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := cpio.NewReader(f).Next(); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// run runs a program and gives what it said if it fails.
func (i *installation) run(ctx context.Context, cmd *exec.Cmd) error {
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	if i.work != "" {
		cmd.Env = append(cmd.Env, "TMPDIR="+i.work)
	}
	out, err := cmd.CombinedOutput()
	if err == nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	const most = 2000 // bytes; the end has the reason
	text := strings.TrimSpace(string(out[max(0, len(out)-most):]))
	if text != "" {
		text = ": " + text
	}
	return fmt.Errorf("%s: %w%s", cmd.Path, err, text)
}
