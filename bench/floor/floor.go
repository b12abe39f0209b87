// Package floor makes what storage-init is measured against: a mini-initramfs
// whose init, a C program without a library, makes only the system calls that no
// way to the full tree can do without, with the same modules in the same order.
package floor

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/compress"
	"initoverlayfs/initrd/cpio"
)

//go:embed program/floor.c
var source []byte

// Compiler is the C compiler that Build calls.
const Compiler = "cc"

// ErrNoCompiler is the error of Build on a machine without a C compiler.
var ErrNoCompiler = errors.New("no C compiler (" + Compiler + ")")

// Options say what the floor is the floor of.
type Options struct {
	// Mini is the mini-initramfs with storage-init. The floor has its modules,
	// its firmware and its compression.
	Mini string
	// Modules are the names of what storage-init loaded on the machine that is to
	// be booted, in load order, as the boot record has them.
	Modules []string
	// Backend is Pmem or PmemDAX. The others are no comparison: how long a disk
	// takes to appear is not for the program to say.
	Backend bootconf.Backend
}

// Build writes the mini-initramfs of the floor to out. It calls the C compiler,
// for x86-64.
func Build(ctx context.Context, out string, o Options) error {
	if o.Backend != bootconf.Pmem && o.Backend != bootconf.PmemDAX {
		return fmt.Errorf("floor: backend %s has none", o.Backend)
	}
	mini, err := readMini(o.Mini)
	if err != nil {
		return fmt.Errorf("floor of %s: %w", o.Mini, err)
	}
	plan, err := mini.plan(o)
	if err != nil {
		return fmt.Errorf("floor of %s: %w", o.Mini, err)
	}
	init, err := compile(ctx, plan)
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	if err := mini.write(out, init); err != nil {
		return fmt.Errorf("floor %s: %w", out, err)
	}
	return nil
}

type entry struct {
	cpio.Header
	body []byte
}

// mini is a mini-initramfs that was read.
type mini struct {
	entries []entry
	format  compress.Format // of the last segment
	files   map[string]string
}

func readMini(path string) (*mini, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := &mini{files: map[string]string{}}
	r := cpio.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return m, nil
		}
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		m.entries = append(m.entries, entry{*h, body})
		m.format = r.Format()
		m.files["/"+h.Name] = string(body)
	}
}

// plan gives the program's header file.
func (m *mini) plan(o Options) (string, error) {
	conf := bootconf.Default()
	if problems := conf.ReadFile(m.files[bootconf.ConfigPath]); len(problems) > 0 {
		return "", fmt.Errorf("%s: %w", bootconf.ConfigPath, problems[0])
	}
	modules, err := bootconf.ParseModules(m.files[bootconf.ModulesPath])
	if err != nil {
		return "", fmt.Errorf("%s: %w", bootconf.ModulesPath, err)
	}
	byName := make(map[string]bootconf.Module, len(modules))
	for _, module := range modules {
		byName[module.Name()] = module
	}
	var b strings.Builder
	define := func(name, value string) { fmt.Fprintf(&b, "#define %s %s\n", name, quote(value)) }
	define("BACKEND", string(o.Backend))
	define("IMAGE", conf.ImageUUID.String())
	define("DEVICE", "/dev/pmem0")
	define("WAIT", "/sys/bus/nd/devices/ndbus0/wait_probe")
	define("OPTIONS", map[bootconf.Backend]string{bootconf.PmemDAX: "dax=always"}[o.Backend])
	init := conf.Init
	if init == "" {
		init = "/init"
	}
	define("INIT", init)
	b.WriteString("#define MODULES")
	for _, name := range o.Modules {
		module, ok := byName[name]
		if !ok {
			return "", fmt.Errorf("there is no module %s", name)
		}
		fmt.Fprintf(&b, " \\\n\tMODULE(%s, %s)", quote(module.Path), quote(module.Options))
	}
	b.WriteString("\n")
	return b.String(), nil
}

// quote makes a string of C. What Go escapes in ASCII is the same in C.
func quote(s string) string { return strconv.QuoteToASCII(s) }

// compile gives the program.
func compile(ctx context.Context, plan string) ([]byte, error) {
	cc, err := exec.LookPath(Compiler)
	if err != nil {
		return nil, ErrNoCompiler
	}
	dir, err := os.MkdirTemp("", "initoverlayfs-floor-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what stays behind is in the way of nothing
	for name, text := range map[string][]byte{"floor.c": source, "plan.h": []byte(plan)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o666); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, cc, "-Wall", "-Wextra", "-Werror", "-O2", "-nostdlib", "-static", "-s",
		"-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
		"-fcf-protection=none", "-Wl,--build-id=none", "-o", "init", "floor.c")
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", Compiler, err, text)
	}
	return os.ReadFile(filepath.Join(dir, "init"))
}

// write writes the archive: what storage-init alone reads is left out, the mount
// points that it makes are there.
func (m *mini) write(path string, init []byte) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	z, err := compress.NewWriter(m.format, f)
	if err != nil {
		return err
	}
	w := cpio.NewWriter(z)
	var count uint32
	add := func(h cpio.Header, body []byte) error {
		count++
		h.Ino, h.Size = count, int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err := w.Write(body)
		return err
	}
	for _, e := range m.entries {
		switch "/" + e.Name {
		case bootconf.ConfigPath, bootconf.ModulesPath, bootconf.AliasesPath:
			continue
		case "/init":
			e.body = init
		}
		if err := add(e.Header, e.body); err != nil {
			return err
		}
	}
	for _, dir := range []string{"lower", "overlay", "sysroot"} {
		if err := add(cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755, NLink: 2}, nil); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), z.Close())
}
