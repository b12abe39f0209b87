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

	"initoverlayfs/initrd/cpio"
	"initoverlayfs/initrd/erofs"
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

// version gives that of the program mkfs.
func (mkfsErofs) version(ctx context.Context, mkfs string) (string, error) {
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
	return string(m[1]), nil
}

// Begin takes no feature that was not asked for: packing and deduplicating cost
// mkfs.erofs much of its time.
func (p mkfsErofs) Begin(ctx context.Context, o ImageOptions) (ImageWriter, error) {
	if o.BlobDir != "" {
		return nil, errors.New("mkfs.erofs does not share blobs; the producer native does")
	}
	if o.BootFiles.Init || o.BootFiles.Paths != nil {
		return nil, errors.New("mkfs.erofs does not lay out boot files; the producer native does")
	}
	o, err := o.settle(true)
	if err != nil {
		return nil, err
	}
	mkfs, err := lookTool("mkfs.erofs", "erofs-utils")
	if err != nil {
		return nil, err
	}
	version, err := p.version(ctx, mkfs)
	if err != nil {
		return nil, err
	}
	features, err := mkfsFeatures(o.Features, version)
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
	w := &mkfsWriter{
		spool: spool{dir: filepath.Join(dir, "content")},
		mkfs:  mkfs, fakeroot: fakeroot, dir: dir,
		options:  o,
		features: features,
		identity: "mkfs.erofs " + version + " " + o.identity(),
	}
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
	features       []string // arguments
	identity       string
}

func (w *mkfsWriter) Identity() string { return w.identity }

// BootFiles is none: mkfs.erofs has no option for it.
func (w *mkfsWriter) BootFiles() BootFiles { return BootFiles{} }

func (w *mkfsWriter) Close() error { return os.RemoveAll(w.dir) }

func (w *mkfsWriter) Write(ctx context.Context, path string, tree *cpio.Tree, _ bootOrder, id erofs.Identity) error {
	if err := tree.Walk(refuseXattrs); err != nil {
		return err
	}
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
	args := append([]string{"-i", statePath, "--", w.mkfs}, mkfsArgs(w.options, id)...)
	args = append(args, w.features...)
	cmd := exec.CommandContext(ctx, w.fakeroot, append(args, path, root)...)
	// mkfs.erofs clamps times to SOURCE_DATE_EPOCH and takes it as its own.
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(id.BuildTime, 10))
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
func mkfsArgs(o ImageOptions, id erofs.Identity) []string {
	args := []string{"--quiet", "-x-1", "-U" + id.UUID.String()}
	if id.Label != "" {
		args = append(args, "-L"+id.Label)
	}
	if o.Compress.DAX() {
		// Contents in the inode's own block are not page-aligned.
		return append(args, "-Enoinline_data")
	}
	return append(args, "-z"+o.Compress.String(), "-C"+strconv.Itoa(o.PclusterBytes))
}

// refuseXattrs refuses what mkfs.erofs would have to take from temporary files,
// on which no ordinary user may set it.
func refuseXattrs(path string, n *cpio.Node) error {
	if len(n.Xattrs) == 0 {
		return nil
	}
	return &HintedError{
		fmt.Errorf("%s has extended attributes, which only the native producer keeps", path),
		"use --mkfs native",
	}
}

// mkfsFeatures gives the arguments for features that are on.
func mkfsFeatures(f ImageFeatures, version string) (args []string, err error) {
	have, err := erofs.ParseKernelVersion(version) // has the same form
	if err != nil {
		return nil, fmt.Errorf("version of mkfs.erofs: %w", err)
	}
	for name, s := range map[string]Switch{"holes": f.Holes, "chunks": f.Chunks} {
		if s == On {
			return nil, &HintedError{fmt.Errorf("with mkfs.erofs, images have no %s", name), "use --mkfs native"}
		}
	}
	if f.FragmentBytes > 0 {
		return nil, errors.New("mkfs.erofs has no limit for the size of fragments")
	}
	since := map[string]erofs.KernelVersion{"ztailpacking": {Major: 1, Minor: 5}, "fragments": {Major: 1, Minor: 6}, "dedupe": {Major: 1, Minor: 6}}
	for _, s := range f.switches() {
		if *s.Switch != On {
			continue
		}
		if have.Before(since[s.name]) {
			return nil, &HintedError{
				fmt.Errorf("mkfs.erofs %s does not know %s; %v and later do", version, s.name, since[s.name]),
				"leave the feature out, or use --mkfs native",
			}
		}
		args = append(args, "-E"+s.name)
	}
	return args, nil
}

// lastLines gives the end of a program's messages as one line.
func lastLines(text []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("; "))
}
