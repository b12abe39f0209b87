package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// smallest has the least size of each filesystem: what its formatter takes, or
// what leaves room for a journal.
var smallest = map[string]int64{
	"ext4":  32 * mib,
	"xfs":   300 * mib,
	"btrfs": 128 * mib,
	"vfat":  33 * mib, // below it has too few clusters to be a FAT32
}

// planFS sets p.Size and gives what writes the filesystem. scratch is the name
// of a file that it may make. ext4 is made in its place, the others beside.
func (m *maker) planFS(p *Partition, scratch string) (filler, error) {
	least, ok := smallest[p.FS]
	if !ok {
		return nil, fmt.Errorf("unknown filesystem")
	}
	if p.Tree != "" {
		return m.planTree(p, least, scratch)
	}
	var total int64
	for name, host := range p.Files {
		if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
			return nil, fmt.Errorf("file %q: not a clean absolute path", name)
		}
		info, err := os.Stat(host)
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("file %s: not a regular file", host)
		}
		total += roundUp(info.Size())
	}
	if p.Size == 0 {
		p.Size = max(least, total+total/8+16*mib)
	}
	if p.Size < least {
		return nil, fmt.Errorf("size %d is below %d", p.Size, least)
	}
	if p.Size < total/mib*mib {
		return nil, fmt.Errorf("size %d is below the %d of its files", p.Size, total)
	}
	p.Size = roundUp(p.Size)
	var err error
	switch p.FS {
	case "ext4":
		// go-diskfs's ext4 does not pass e2fsck at the sizes of a boot
		// partition.
		return m.filesExt4, nil
	case "vfat":
		err = m.formatFAT(p, scratch)
	case "btrfs":
		err = m.formatBtrfs(p, scratch)
	default:
		err = m.formatXFS(p, scratch)
	}
	if err != nil {
		return nil, err
	}
	return func(disk *os.File, p *Partition) error {
		return errors.Join(m.copySparse(disk, p.Offset, scratch), os.Remove(scratch))
	}, nil
}

// filesExt4 writes an ext4 with the partition's files.
func (m *maker) filesExt4(disk *os.File, p *Partition) error {
	tree, err := m.stage(p)
	if err != nil {
		return err
	}
	if err := m.mke2fs(nil, disk, p, tree); err != nil {
		return err
	}
	return errors.Join(settleExt4(disk, p.Offset, true), os.RemoveAll(tree))
}

// mke2fs makes an ext4 with a folder's content in its place in the disk.
func (m *maker) mke2fs(wrapper []string, disk *os.File, p *Partition, tree string, options ...string) error {
	args := slices.Concat(options, []string{
		"-q", "-F", "-t", "ext4", "-U", p.FSUUID, "-L", p.FSLabel,
		// What the file has no data for reads as zeros. To discard would reach
		// beyond the partition if a version forgot the offset.
		"-E", fmt.Sprintf("nodiscard,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed=%s,offset=%d", p.FSUUID, p.Offset),
		"-d", tree, disk.Name(), strconv.FormatInt(p.Size>>10, 10) + "k",
	})
	return m.run(wrapper, "mke2fs", args...)
}

func (m *maker) formatBtrfs(p *Partition, out string) error {
	tree, err := m.stage(p)
	if err != nil {
		return err
	}
	if err := createSparse(out, p.Size); err != nil {
		return err
	}
	return errors.Join(
		m.run(nil, "mkfs.btrfs", "-q", "-f", "-U", p.FSUUID, "-L", p.FSLabel, "--rootdir", tree, out),
		os.RemoveAll(tree))
}

func (m *maker) formatXFS(p *Partition, out string) error {
	proto, err := m.protofile(p)
	if err != nil {
		return err
	}
	if err := createSparse(out, p.Size); err != nil {
		return err
	}
	return m.run(nil, "mkfs.xfs", "-q", "-f", "-m", "uuid="+p.FSUUID, "-L", p.FSLabel, "-p", proto, out)
}

func createSparse(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, privateMode)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// run runs a program, under a wrapper if there is one.
func (m *maker) run(wrapper []string, name string, args ...string) error {
	binary, err := tool(name)
	if err != nil {
		return err
	}
	cmd := m.command(slices.Concat(wrapper, []string{binary}, args)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

// command is a program that ends with the context, and with it what it has
// started: fakeroot is a script.
func (m *maker) command(words ...string) *exec.Cmd {
	cmd := exec.CommandContext(m.ctx, words[0], words[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// e2fsprogs take the time of what they write from here.
	epoch := strconv.FormatInt(m.epoch, 10)
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME="+epoch, "SOURCE_DATE_EPOCH="+epoch, "LC_ALL=C")
	return cmd
}

// tool finds a program that an ordinary user may not have in PATH.
func tool(name string) (string, error) {
	binary, err := exec.LookPath(name)
	if err == nil {
		return binary, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if binary, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return binary, nil
		}
	}
	return "", err
}

// stage makes a folder with the files, for formatters that copy one.
func (m *maker) stage(p *Partition) (string, error) {
	tree, err := os.MkdirTemp(m.work, "tree-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(tree, 0o755); err != nil {
		return "", err
	}
	for _, name := range slices.Sorted(maps.Keys(p.Files)) {
		to := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return "", err
		}
		if err := copyFile(to, p.Files[name]); err != nil {
			return "", err
		}
	}
	epoch := time.Unix(m.epoch, 0)
	err = filepath.WalkDir(tree, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, epoch, epoch)
	})
	return tree, err
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// protofile writes the list of files that mkfs.xfs(8) reads.
func (m *maker) protofile(p *Partition) (string, error) {
	root := &protoDir{}
	for _, name := range slices.Sorted(maps.Keys(p.Files)) {
		host, err := filepath.Abs(p.Files[name])
		if err != nil {
			return "", err
		}
		if strings.ContainsAny(name+host, " \t\n") {
			return "", fmt.Errorf("file %q: mkfs.xfs takes no blanks in a path", name)
		}
		dir, base := path.Split(name)
		d := root
		for elem := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
			if elem != "" {
				d = d.sub(elem)
			}
		}
		d.lines = append(d.lines, base+" ---644 0 0 "+host)
	}
	var b strings.Builder
	b.WriteString("/\n0 0\nd--755 0 0\n")
	root.write(&b)
	name := filepath.Join(m.work, "proto-"+filepath.Base(p.FSUUID))
	return name, os.WriteFile(name, []byte(b.String()), 0o666)
}

type protoDir struct {
	lines []string
	names []string
	dirs  []*protoDir
}

func (d *protoDir) sub(name string) *protoDir {
	if i := slices.Index(d.names, name); i >= 0 {
		return d.dirs[i]
	}
	s := &protoDir{}
	d.names, d.dirs = append(d.names, name), append(d.dirs, s)
	return s
}

func (d *protoDir) write(b *strings.Builder) {
	for _, l := range d.lines {
		b.WriteString(l + "\n")
	}
	for i, s := range d.dirs {
		b.WriteString(d.names[i] + " d--755 0 0\n")
		s.write(b)
	}
	b.WriteString("$\n")
}
