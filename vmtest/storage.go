package vmtest

import (
	"fmt"
	"strings"
)

// Storage is how fast a class of storage is. Both limits hold for reads and
// writes together, for such a device does one thing at a time.
//
// QEMU lets a guest that was idle have what belongs to a tenth of a second at
// once. From then on the slower of both limits counts: of large requests the
// bytes, of small ones their number. The clock is the host's.
type Storage struct {
	Name string
	BPS  int64 // bytes a second; 0: no limit
	IOPS int64 // requests a second; 0: no limit
}

// The classes of storage. (NVMe alone is the name of a Bus.)
var (
	Unthrottled = Storage{Name: "unthrottled"}
	NVMeSSD     = Storage{Name: "nvme", BPS: 2_000_000_000, IOPS: 200_000}
	EMMC        = Storage{Name: "emmc", BPS: 100_000_000, IOPS: 10_000}
	SDCard      = Storage{Name: "sdcard", BPS: 20_000_000, IOPS: 1000}
)

// Storages lists every class, the fastest first.
var Storages = []Storage{Unthrottled, NVMeSSD, EMMC, SDCard}

// StorageNames lists the names of the classes, in that order.
func StorageNames() []string {
	names := make([]string, len(Storages))
	for i, s := range Storages {
		names[i] = s.Name
	}
	return names
}

// ParseStorage gives the class of a name.
func ParseStorage(name string) (Storage, error) {
	for _, s := range Storages {
		if s.Name == name {
			return s, nil
		}
	}
	return Storage{}, fmt.Errorf("unknown storage %q; it is one of %s", name, strings.Join(StorageNames(), ", "))
}

// Throttle makes the drive as fast as storage of the class, whatever limits it
// had.
func (d *Drive) Throttle(s Storage) {
	d.BPSRead, d.BPSWrite, d.BPSTotal = 0, 0, s.BPS
	d.IOPSRead, d.IOPSWrite, d.IOPSTotal = 0, 0, s.IOPS
}
