package vmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// proofTimeout bounds the boot that proves KVM. A kernel under a working
	// KVM comes to its panic for want of a root filesystem in about a second.
	proofTimeout = 15 * time.Second
	// silence is how long a kernel under KVM may take to its first line.
	silence = 5 * time.Second
)

// ResolveAccel decides the accelerator: KVM and TCG are taken as asked; Auto
// is KVM when the machine's kernel really boots under it. What was found is
// kept in the user's cache folder, for this QEMU, kernel and host. reason says
// why Auto became what it became.
func (m *Machine) ResolveAccel(ctx context.Context) (accel Accel, reason string, err error) {
	switch {
	case m.Accel == KVM || m.Accel == TCG:
		return m.Accel, "", nil
	case m.Accel != Auto && m.Accel != "":
		return "", "", fmt.Errorf("qemu: unknown accelerator %q", m.Accel)
	case m.ICount:
		return TCG, "instruction counting needs it", nil
	case m.Kernel == "":
		return TCG, "there is no kernel to prove KVM with", nil
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, err.Error(), nil
	}
	f.Close()
	key, err := m.proofKey(ctx)
	if err != nil {
		return "", "", err
	}
	cache := proofPath(key)
	if p, ok := readProof(cache); ok {
		return p.Accel, p.Reason, nil
	}
	p := m.proveKVM(ctx, silence, proofTimeout)
	if ctx.Err() != nil {
		return "", "", fmt.Errorf("qemu: prove kvm: %w", context.Cause(ctx))
	}
	// A cache that cannot be written costs the next run its seconds, no more.
	_ = p.write(cache)
	return p.Accel, p.Reason, nil
}

// proof is what the cache keeps.
type proof struct {
	Accel  Accel  `json:"accel"`
	Reason string `json:"reason"`
}

// proveKVM boots the kernel under KVM without an initramfs, to the panic that
// this ends in.
func (m *Machine) proveKVM(ctx context.Context, silence, timeout time.Duration) proof {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	spoke := false
	quiet := time.AfterFunc(silence, cancel)
	defer quiet.Stop()
	trial := Machine{
		Arch: m.Arch, QEMU: m.QEMU, Kernel: m.Kernel, CPU: m.CPU, Accel: KVM,
		MemoryMiB: 512, Timeout: timeout, LogParent: m.LogParent,
		OnLine: func(l Line) {
			if l.Stamped && !spoke {
				spoke = true
				quiet.Stop()
			}
		},
	}
	r, err := Run(ctx, trial)
	if r != nil && r.LogDir != "" {
		_ = (&logs{dir: r.LogDir}).remove() // a trial's logs interest nobody
	}
	var failure *BootError
	if errors.As(err, &failure) {
		failure.LogDir = ""
	}
	switch {
	case r != nil && r.Panic != "":
		return proof{KVM, "the kernel boots under KVM"}
	case errors.Is(err, ErrStart):
		return proof{TCG, fmt.Sprintf("QEMU does not start under KVM: %v", err)}
	case !spoke:
		return proof{TCG, fmt.Sprintf("the kernel says nothing under KVM within %v", silence)}
	default:
		return proof{TCG, fmt.Sprintf("the kernel does not come to its end under KVM: %v", err)}
	}
}

// proofKey names the circumstances under which a proof holds.
func (m *Machine) proofKey(ctx context.Context) (string, error) {
	binary, err := m.binary()
	if err != nil {
		return "", err
	}
	version, err := qemuVersion(ctx, binary)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "1\n%s\n%s\n%s\n%s\n", m.Arch, m.CPU, binary, version)
	for _, path := range []string{binary, m.Kernel} {
		info, err := os.Stat(path)
		if err != nil {
			return "", fmt.Errorf("qemu: %w", err)
		}
		fmt.Fprintf(h, "%d %d\n", info.Size(), info.ModTime().UnixNano())
	}
	abs, err := filepath.Abs(m.Kernel)
	if err != nil {
		return "", fmt.Errorf("qemu: kernel: %w", err)
	}
	fmt.Fprintln(h, abs)
	// A home folder may be shared by hosts, and a host's kernel may change.
	var u syscall.Utsname
	if err := syscall.Uname(&u); err == nil {
		fmt.Fprintln(h, u.Nodename, u.Release, u.Version)
	}
	if cpus, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(cpus)) {
			if strings.HasPrefix(line, "model name") {
				fmt.Fprintln(h, line)
				break
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// proofPath gives the cache file, empty if the user has no cache folder.
func proofPath(key string) string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "initoverlayfs", "accel-"+key+".json")
}

func readProof(path string) (p proof, ok bool) {
	data, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(data, &p) != nil {
		return proof{}, false
	}
	return p, p.Accel == KVM || p.Accel == TCG
}

func (p proof) write(path string) error {
	if path == "" {
		return nil
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".accel-")
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

// Version gives the version of the machine's QEMU.
func (m *Machine) Version(ctx context.Context) (string, error) {
	binary, err := m.binary()
	if err != nil {
		return "", err
	}
	return qemuVersion(ctx, binary)
}

// qemuVersion gives the version that the emulator names.
func qemuVersion(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("qemu: %s --version: %w", binary, err)
	}
	first, _, _ := bytes.Cut(out, []byte{'\n'})
	_, version, ok := strings.Cut(string(first), "version ")
	if !ok {
		return "", fmt.Errorf("qemu: %s --version: unexpected answer %q", binary, first)
	}
	return version, nil
}
