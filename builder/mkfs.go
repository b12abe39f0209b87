package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/cpio"
)

// mkfsErofs makes images with the machine's mkfs.erofs, without root: the tree
// is unpacked with the user's own files, and fakeroot tells mkfs.erofs the
// owners, modes and device numbers that they stand for.
type mkfsErofs struct{}

func lookTool(tool, pkg string) (string, error) {
	path, err := exec.LookPath(tool)
	if err != nil {
		return "", &HintedError{fmt.Errorf("%s is not installed", tool), "install the package " + pkg}
	}
	return path, nil
}

var mkfsVersion = regexp.MustCompile(`mkfs\.erofs (?:\(erofs-utils\) )?(\d\S*)`)

func (mkfsErofs) Version(ctx context.Context) (string, error) {
	mkfs, err := lookTool("mkfs.erofs", "erofs-utils")
	if err != nil {
		return "", err
	}
	// Old versions do not know the option, but name themselves before they say
	// so.
	text, err := exec.CommandContext(ctx, mkfs, "--version").CombinedOutput()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	m := mkfsVersion.FindSubmatch(text)
	if m == nil {
		return "", errors.Join(fmt.Errorf("%s --version does not tell it", mkfs), err)
	}
	return "mkfs.erofs " + string(m[1]), nil
}

func (mkfsErofs) Begin(o ImageOptions) (ImageWriter, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	mkfs, err := lookTool("mkfs.erofs", "erofs-utils")
	if err != nil {
		return nil, err
	}
	fakeroot, err := lookTool("fakeroot", "fakeroot")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(o.TempDir, "initoverlayfs-image-")
	if err != nil {
		return nil, err
	}
	w := &mkfsWriter{spool: spool{dir: filepath.Join(dir, "content")}, mkfs: mkfs, fakeroot: fakeroot, dir: dir, options: o}
	if err := os.Mkdir(w.spool.dir, 0o700); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

type mkfsWriter struct {
	spool
	mkfs, fakeroot string // programs
	dir            string // everything temporary
	options        ImageOptions
}

func (w *mkfsWriter) Close() error { return os.RemoveAll(w.dir) }

func (w *mkfsWriter) Write(ctx context.Context, path string, tree *cpio.Tree, uuid bootconf.UUID, buildTime int64) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	root := filepath.Join(w.dir, "tree")
	if err := os.Mkdir(root, 0o700); err != nil {
		return err
	}
	u, err := unpack(root, tree, &w.spool)
	if err != nil {
		return err
	}
	state, err := u.fakerootState()
	if err != nil {
		return err
	}
	statePath := filepath.Join(w.dir, "fakeroot")
	if err := os.WriteFile(statePath, []byte(state), privateMode); err != nil {
		return err
	}
	args := append([]string{"-i", statePath, "--", w.mkfs}, mkfsArgs(w.options, uuid)...)
	cmd := exec.CommandContext(ctx, w.fakeroot, append(args, path, root)...)
	// mkfs.erofs clamps times to SOURCE_DATE_EPOCH and takes it as its own.
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(buildTime, 10))
	// fakeroot is a shell script with a daemon beside it, which it ends itself
	// when it is told to end and nothing keeps it waiting.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("mkfs.erofs: %w: %s", err, lastLines(stderr.Bytes(), 3))
	}
	return nil
}

// mkfsArgs are the options of mkfs.erofs 1.5 and later.
func mkfsArgs(o ImageOptions, uuid bootconf.UUID) []string {
	args := []string{"--quiet", "-x-1", "-U" + uuid.String()}
	if o.Compress.DAX() {
		// Contents in the inode's own block are not page-aligned.
		return append(args, "-Enoinline_data")
	}
	return append(args, "-z"+o.Compress.String(), "-C"+strconv.Itoa(o.PclusterBytes))
}

// lastLines gives the end of a program's messages as one line.
func lastLines(text []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("; "))
}
