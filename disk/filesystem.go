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
	"strings"
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

// format writes the filesystem into a new file and sets p.Size.
func (p *Partition) format(out, work string) error {
	least, ok := smallest[p.FS]
	if !ok {
		return fmt.Errorf("unknown filesystem")
	}
	var total int64
	for name, host := range p.Files {
		if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
			return fmt.Errorf("file %q: not a clean absolute path", name)
		}
		info, err := os.Stat(host)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("file %s: not a regular file", host)
		}
		total += roundUp(info.Size())
	}
	if p.Size == 0 {
		p.Size = max(least, total+total/8+16*mib)
	}
	if p.Size < least {
		return fmt.Errorf("size %d is below %d", p.Size, least)
	}
	p.Size = roundUp(p.Size)
	if p.FS == "vfat" {
		return p.formatFAT(out)
	}
	if err := createSparse(out, p.Size); err != nil {
		return err
	}
	switch p.FS {
	case "ext4":
		// go-diskfs's ext4 does not pass e2fsck at the sizes of a boot
		// partition.
		tree, err := p.stage(work)
		if err != nil {
			return err
		}
		return p.mkfs("mke2fs", "-q", "-F", "-t", "ext4", "-U", p.FSUUID, "-L", p.FSLabel,
			"-E", "root_owner=0:0,hash_seed="+p.FSUUID, "-d", tree, out)
	case "btrfs":
		tree, err := p.stage(work)
		if err != nil {
			return err
		}
		return p.mkfs("mkfs.btrfs", "-q", "-f", "-U", p.FSUUID, "-L", p.FSLabel, "--rootdir", tree, out)
	default:
		proto, err := p.protofile(work)
		if err != nil {
			return err
		}
		return p.mkfs("mkfs.xfs", "-q", "-f", "-m", "uuid="+p.FSUUID, "-L", p.FSLabel, "-p", proto, out)
	}
}

func createSparse(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o666)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// mkfs runs a formatter.
func (p *Partition) mkfs(name string, args ...string) error {
	binary, err := tool(name)
	if err != nil {
		return err
	}
	cmd := exec.Command(binary, args...)
	// e2fsprogs take the time of what they write from here.
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME=1", "SOURCE_DATE_EPOCH=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
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
func (p *Partition) stage(work string) (string, error) {
	tree, err := os.MkdirTemp(work, "tree-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(tree, 0o755); err != nil {
		return "", err
	}
	epoch := time.Unix(1, 0)
	for _, name := range slices.Sorted(maps.Keys(p.Files)) {
		to := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return "", err
		}
		if err := copyFile(to, p.Files[name]); err != nil {
			return "", err
		}
		for ; ; to = filepath.Dir(to) {
			if err := os.Chtimes(to, epoch, epoch); err != nil {
				return "", err
			}
			if to == tree {
				break
			}
		}
	}
	return tree, nil
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
func (p *Partition) protofile(work string) (string, error) {
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
	name := filepath.Join(work, "proto-"+filepath.Base(p.FSUUID))
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
