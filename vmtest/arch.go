package vmtest

import "fmt"

// arch is what differs between the machines of two architectures.
type arch struct {
	binary  string // QEMU's system emulator
	machine string
	tcgCPU  string // the fastest model under TCG
	console string // the guest's name of the first serial port
	events  string // the guest's name of the second
	// words are of the kernel's command line.
	words []string
	// eventsDevice holds the arguments that put the chardev "events" on the
	// second port.
	eventsDevice []string
	// firmware has the places of UEFI firmware in distributions.
	firmware []Firmware
}

// consoleWords are those of the kernel's command line by which a guest speaks
// as Run understands it.
func (a arch) consoleWords() []string {
	return append([]string{
		"console=" + a.console,
		// Each line shows its time, and whether the kernel or a program wrote
		// it: the parser of the console builds on both.
		"printk.time=1", "console_msg_format=syslog",
		// Without it the kernel drops lines that a program writes quickly.
		"printk.devkmsg=on",
		"vmtest.events=" + a.events,
	}, a.words...)
}

// ConsoleWords are the words that a kernel's command line needs for Run to
// follow the boot and for the guest to report its end. Run adds them itself
// unless the machine boots by its firmware: then they must be in the boot
// entries of its disk.
func ConsoleWords(archName string) ([]string, error) {
	a, err := (&Machine{Arch: archName}).arch()
	if err != nil {
		return nil, err
	}
	return a.consoleWords(), nil
}

// arches has the known architectures by their Go names.
var arches = map[string]arch{
	"amd64": {
		binary: "qemu-system-x86_64",
		// Without the controllers that it has of its own: a guest shall find,
		// and load drivers for, what its description says.
		machine: "q35,sata=off,smbus=off",
		// No CPU flaw that the kernel would work around, so it does not.
		tcgCPU:  "qemu64",
		console: "ttyS0",
		events:  "ttyS1",
		// The kernel waits a moment for the timer's interrupts and panics if
		// too few came, which on a busy host says nothing about the guest.
		words:        []string{"no_timer_check"},
		eventsDevice: []string{"-serial", "chardev:events"},
		firmware: []Firmware{
			{Code: "/usr/share/OVMF/OVMF_CODE_4M.fd", Vars: "/usr/share/OVMF/OVMF_VARS_4M.fd"},         // Debian
			{Code: "/usr/share/edk2/ovmf/OVMF_CODE.fd", Vars: "/usr/share/edk2/ovmf/OVMF_VARS.fd"},     // Fedora
			{Code: "/usr/share/edk2/x64/OVMF_CODE.4m.fd", Vars: "/usr/share/edk2/x64/OVMF_VARS.4m.fd"}, // Arch
		},
	},
}

func (m *Machine) arch() (arch, error) {
	name := m.Arch
	if name == "" {
		name = "amd64"
	}
	a, ok := arches[name]
	if !ok {
		return arch{}, fmt.Errorf("qemu: architecture %q is not supported", name)
	}
	return a, nil
}
