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
