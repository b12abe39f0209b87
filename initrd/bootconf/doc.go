// Package bootconf is the boot contract: what the builder writes into a
// mini-initramfs and what storage-init reads from it.
//
// It holds the configuration file and its command line overrides, the module
// list, the manifest that lies beside the built files, and the boot record
// that the booted system finds under /run. storage-init links this package, so
// it imports neither fmt nor encoding/json: their initialisation and bytes
// would be paid for at every boot.
package bootconf

// Paths inside the mini-initramfs and of what storage-init leaves behind.
const (
	// ConfigPath is the configuration file of storage-init.
	ConfigPath = "/etc/initoverlayfs.conf"
	// ModulesPath is the list of the modules in the mini-initramfs; see Module.
	ModulesPath = "/etc/initoverlayfs.modules"
	// AliasesPath tells the devices of the drivers in that list; see Alias.
	AliasesPath = "/etc/initoverlayfs.aliases"
	// EmbeddedPath is the image of the embedded backend.
	EmbeddedPath = "/initoverlayfs.img"
	// BlobSuffix ends the name of a blob, an extra device of images, behind the
	// SHA-256 of its content in hexadecimal digits.
	BlobSuffix = ".blob"
	// RecordPath is the boot record of the booted system.
	RecordPath = "/run/initoverlayfs/boot.json"
	// ReturnModulesDir has the modules that give the image's region back as RAM,
	// in the mini-initramfs; by their names they are in load order.
	ReturnModulesDir = "/lib/return-memory"
	// ReturnDir has the same modules, and ReturnImage, in the booted system until
	// the region has been given back. For systemd ReturnProgram is there, too.
	ReturnDir = "/run/initoverlayfs/return-memory"
	// ReturnImage is the file in ReturnDir that has the image's UUID.
	ReturnImage = "image"
	// ReturnProgram is the file in ReturnDir that is storage-init.
	ReturnProgram = "storage-init"
	// LogPrefix begins every line that storage-init writes to the kernel log.
	LogPrefix = "storage-init: "
	// CmdlinePrefix begins the kernel command line keys that override the
	// configuration file.
	CmdlinePrefix = "initoverlayfs."
)
