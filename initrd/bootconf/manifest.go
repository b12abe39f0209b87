package bootconf

// ManifestFormat is the version of the manifest's layout.
const ManifestFormat = 1

// The kinds of full trees, told apart by what hands over to the real root.
const (
	KindDracut         = "dracut"          // util-linux switch_root
	KindDracutSystemd  = "dracut-systemd"  // systemd pivots by itself
	KindInitramfsTools = "initramfs-tools" // klibc run-init or busybox switch_root
	KindMkinitcpio     = "mkinitcpio"
	KindUroot          = "u-root"
	KindUnknown        = "unknown"
)

// Manifest describes one build; it is the file initoverlayfs-V.json.
type Manifest struct {
	Format        int            `json:"format"`
	KernelVersion string         `json:"kernel_version"`
	Arch          string         `json:"arch"`
	ToolVersion   string         `json:"tool_version"`
	Source        ManifestSource `json:"source"`
	Image         ManifestImage  `json:"image"`
	Mini          ManifestMini   `json:"mini"`
	// Changes lists the paths of the full tree that were replaced or added.
	Changes []Change `json:"changes"`
	// Installed tells where the files went; nil until they are installed.
	Installed *ManifestInstalled `json:"installed,omitempty"`
}

// ManifestInstalled is where the files of a build were published. Paths are
// those of the machine, but FS is that on the boot filesystem.
type ManifestInstalled struct {
	Generation int    `json:"generation"`
	Mini       string `json:"mini"`
	Image      string `json:"image,omitempty"`  // empty: it is inside the mini-initramfs
	Source     string `json:"source,omitempty"` // the plain initramfs; empty: made for the occasion
	Bootfs     string `json:"bootfs,omitempty"`
	FS         string `json:"fs,omitempty"`
}

// ManifestSource is what the image was made from.
type ManifestSource struct {
	Path   string `json:"path"`   // base name
	SHA256 string `json:"sha256"` // of the archive; empty for a directory
	Kind   string `json:"kind"`
}

// ManifestImage is the EROFS image.
type ManifestImage struct {
	File     string   `json:"file"`
	Size     int64    `json:"size"` // bytes
	UUID     string   `json:"uuid"`
	SHA256   string   `json:"sha256"`
	Features []string `json:"features"`
	DAX      bool     `json:"dax"` // uncompressed and laid out for dax=always
	// Blobs are the files that have its data, in the order of its device table.
	Blobs []string `json:"blobs,omitempty"`
	// Region is the memory to set aside for the image, where a backend takes it
	// from memory that memmap= reserves.
	Region *ManifestRegion `json:"region,omitempty"`
}

// ManifestMini is the mini-initramfs.
type ManifestMini struct {
	File    string   `json:"file"`
	Size    int64    `json:"size"` // bytes
	SHA256  string   `json:"sha256"`
	Modules []string `json:"modules"` // lines of the module list, in load order
}

// Change is one path of the full tree that is not as the source had it.
type Change struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}
