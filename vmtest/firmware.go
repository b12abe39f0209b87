package vmtest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Firmware is the UEFI firmware of a machine.
type Firmware struct {
	Code string // file of the program
	// Vars is the file with its variables. The guest writes to it: Run gives it
	// a copy of its own.
	Vars string
}

// FindFirmware gives the firmware that the distribution has installed.
func FindFirmware(archName string) (*Firmware, error) {
	a, err := (&Machine{Arch: archName}).arch()
	if err != nil {
		return nil, err
	}
	for _, f := range a.firmware {
		_, codeErr := os.Stat(f.Code)
		_, varsErr := os.Stat(f.Vars)
		if codeErr == nil && varsErr == nil {
			return &f, nil
		}
	}
	return nil, fmt.Errorf("qemu: no UEFI firmware for %s is installed", a.binary)
}

func (m *Machine) checkFirmware() error {
	switch {
	case m.Firmware.Code == "" || m.Firmware.Vars == "":
		return errors.New("qemu: firmware without code or variables")
	case m.Initrd != "" || len(m.Append) > 0:
		return errors.New("qemu: firmware takes initramfs and command line from the disk, not from the machine")
	case len(m.Drives) == 0:
		return errors.New("qemu: firmware without a disk to boot")
	}
	for _, p := range m.Pmem {
		if !p.Virtio {
			return errors.New("qemu: firmware does not pass memmap=, which reserved memory needs")
		}
	}
	return nil
}

func (f *Firmware) args() []string {
	return []string{
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + escape(f.Code),
		"-drive", "if=pflash,format=raw,unit=1,file=" + escape(f.Vars),
	}
}

func varsCopy(dir string) string { return filepath.Join(dir, "vars.fd") }

// copyVars gives the guest variables of its own.
func (m *Machine) copyVars(dir string) (err error) {
	in, err := os.Open(m.Firmware.Vars)
	if err != nil {
		return fmt.Errorf("qemu: firmware: %w", err)
	}
	defer in.Close()
	own := *m.Firmware
	own.Vars = varsCopy(dir)
	m.Firmware = &own
	out, err := os.OpenFile(own.Vars, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("qemu: firmware: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("qemu: firmware: %w", err)
	}
	return nil
}
