package storageinit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"initoverlayfs/initrd/bootconf"
)

// fakeSystem is a machine in memory. It is strict: a path that the test has not
// set up, a mount without its directory, a read after a close or a step out of
// turn fails the test.
type fakeSystem struct {
	t  testing.TB
	mu sync.Mutex // modules are loaded in parallel

	// What the machine is.
	files       map[string]string // of the mini-initramfs, /proc and /sys
	absent      map[string]bool   // paths that may be looked for in vain
	dirs        map[string][]string
	blocks      []*fakeBlock
	disks       []*fakeBlock // that virtio_blk brings
	pmems       []*fakeBlock // that nd_pmem brings
	embedded    *fakeContent
	blobs       map[string]*fakeContent // in the mini-initramfs
	executables map[string]bool         // in the full tree
	args, env   []string
	cpus        int
	noDAX       bool // dax=always is silently left out
	noDirectIO  bool
	events      []fakeEvent

	// inject gives the error of a call, by its number and text.
	inject func(n int, call string) error
	// load is called for each module, in the loading goroutine.
	load func(path, options string) error

	// unit is set where storage-init is a unit of systemd.
	unit bool

	// What happened.
	now      int64
	calls    []string
	logs     []string
	injected bool
	made     map[string]bool // directories
	mounts   map[string]fakeMount
	written  map[string]string
	images   []*fakeImage
	loops    []*fakeLoop
	entered  bool
	end      string // exec, reboot, halt or exit
	argv     []string
	envp     []string
}

type fakeMount struct{ source, fstype, options string }

// fakeContent is a file or a device: some bytes at its beginning, then zeros.
type fakeContent struct {
	head []byte
	size int64
}

// fakeBlock is a block device.
type fakeBlock struct {
	name string
	fakeContent
	fstype string                  // that the kernel would mount
	files  map[string]*fakeContent // of the filesystem
	disk   string                  // of a partition
	number int
	start  int64  // sectors
	part   string // PARTNAME of its event
}

type fakeEvent struct {
	at int64 // seconds after the start of storage-init
	Uevent
	do func(*fakeSystem)
}

type fakeLoop struct {
	path     string
	image    *fakeImage
	released bool
}

type fakeImage struct {
	sys    *fakeSystem
	name   string
	closed bool
	fakeContent
}

const fakeStart = 1_000_000

var _ System = (*fakeSystem)(nil)

// call notes a call that can fail, and gives the failure that the test wants.
func (f *fakeSystem) call(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	if f.end != "" {
		f.t.Errorf("%s: called after %s", text, f.end)
	}
	f.calls = append(f.calls, text)
	if f.inject != nil {
		if err := f.inject(len(f.calls)-1, text); err != nil {
			f.injected = true
			return err
		}
	}
	return nil
}

// unexpected fails the test: the plan does what no machine expects.
func (f *fakeSystem) unexpected(format string, args ...any) {
	f.t.Helper()
	f.t.Errorf("fake: "+format, args...)
}

func (f *fakeSystem) Now() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fakeSystem) OpenLog() error {
	f.needMount("/dev", "the kernel log")
	return f.call("open log")
}

func (f *fakeSystem) Log(level int, line string) {
	if !strings.HasPrefix(line, bootconf.LogPrefix) || strings.Contains(line, "\n") {
		f.unexpected("log line %q", line)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	line = fmt.Sprintf("<%d>%s", level, line)
	f.logs = append(f.logs, line)
	f.calls = append(f.calls, "log "+line)
}

func (f *fakeSystem) Args() []string    { return f.args }
func (f *fakeSystem) Environ() []string { return slices.Clone(f.env) }
func (f *fakeSystem) CPUs() int         { return f.cpus }

func (f *fakeSystem) needMount(target, what string) {
	f.t.Helper()
	if _, ok := f.mounts[target]; !ok {
		f.unexpected("%s needs %s, which is not mounted", what, target)
	}
}

// needReach checks that the mount that has a path is there and not moved.
func (f *fakeSystem) needReach(path string) {
	f.t.Helper()
	for _, dir := range []string{"/dev", "/proc", "/sys", f.sysroot(), overlayDir, bootfsDir} {
		if strings.HasPrefix(path, dir+"/") {
			f.needMount(dir, path)
		}
	}
}

// sysroot is where the overlay is to be mounted.
func (f *fakeSystem) sysroot() string {
	if f.unit {
		return unitSysroot
	}
	return sysroot
}

func parent(path string) string { return path[:strings.LastIndexByte(path, '/')] }

func (f *fakeSystem) Mkdir(path string, mode uint32) error {
	f.needReach(path)
	if mode != 0o755 {
		f.unexpected("mkdir %s with mode %o", path, mode)
	}
	if err := f.call("mkdir %s", path); err != nil {
		return err
	}
	if p := parent(path); p != "" && !f.made[p] {
		return syscall.ENOENT
	}
	f.made[path] = true
	return nil
}

func (f *fakeSystem) Mount(source, target, fstype string, flags uintptr, data string) error {
	var words []string
	for flag, name := range map[uintptr]string{mountReadOnly: "ro", mountNoSUID: "nosuid", mountNoDev: "nodev", mountNoExec: "noexec"} {
		if flags&flag != 0 {
			words = append(words, name)
		}
	}
	slices.Sort(words)
	if data != "" {
		words = append(words, data)
	}
	options := strings.Join(words, ",")
	if err := f.call("mount %s on %s type %s (%s)", source, target, fstype, options); err != nil {
		return err
	}
	if !f.made[target] {
		return syscall.ENOENT
	}
	if _, ok := f.mounts[target]; ok {
		f.unexpected("%s is already mounted", target)
	}
	switch fstype {
	case "devtmpfs", "proc", "sysfs", "tmpfs":
	case "overlay":
		f.needMount(lowerDir, "the overlay")
		f.needMount(overlayDir, "the overlay")
	case "erofs":
		if err := f.checkErofsSource(source); err != nil {
			return err
		}
		fallthrough
	default: // bootfs, which may be an EROFS filesystem itself
		if flags&mountReadOnly == 0 {
			f.unexpected("%s is mounted writable", source)
		}
		if target == bootfsDir {
			block := f.block(source)
			if block == nil || block.fstype != fstype {
				return syscall.EINVAL
			}
		}
	}
	if f.noDAX {
		options = strings.TrimSuffix(options, ",dax=always")
	}
	f.mounts[target] = fakeMount{source, fstype, options}
	return nil
}

func (f *fakeSystem) checkErofsSource(source string) error {
	for _, image := range f.images {
		if image.Source() == source && !image.closed {
			return nil
		}
	}
	for _, loop := range f.loops {
		if loop.path == source && !loop.released {
			return nil
		}
	}
	if block := f.block(source); block != nil && block.fstype == "erofs" {
		return nil
	}
	return syscall.EINVAL
}

// block finds a device by the path of its node.
func (f *fakeSystem) block(path string) *fakeBlock {
	for _, b := range f.blocks {
		if path == "/dev/"+strings.ReplaceAll(b.name, "!", "/") {
			return b
		}
	}
	return nil
}

func (f *fakeSystem) takeMount(call, target string) error {
	if err := f.call("%s %s", call, target); err != nil {
		return err
	}
	if _, ok := f.mounts[target]; !ok {
		f.unexpected("%s: %s is not mounted", call, target)
		return syscall.EINVAL
	}
	delete(f.mounts, target)
	return nil
}

func (f *fakeSystem) Detach(target string) error { return f.takeMount("detach", target) }

func (f *fakeSystem) Unmount(target string) error {
	if target == bootfsDir {
		for _, image := range f.images {
			if !image.closed && strings.HasPrefix(image.name, bootfsDir) {
				f.unexpected("unmount %s while %s is open", target, image.name)
			}
		}
	}
	return f.takeMount("unmount", target)
}

func (f *fakeSystem) MoveMount(from, to string) error {
	if !f.made[to] {
		f.unexpected("move %s: there is no %s", from, to)
	}
	if err := f.call("move %s to %s", from, to); err != nil {
		return err
	}
	m, ok := f.mounts[from]
	if !ok {
		f.unexpected("move: %s is not mounted", from)
		return syscall.EINVAL
	}
	delete(f.mounts, from)
	f.mounts[to] = m
	return nil
}

func (f *fakeSystem) CopyAttributes(from, to string) error {
	f.needMount(from, "copy attributes")
	if !f.made[to] {
		f.unexpected("copy attributes: there is no %s", to)
	}
	return f.call("copy attributes of %s to %s", from, to)
}

func (f *fakeSystem) ReadFile(path string) (string, error) {
	f.needReach(path)
	if err := f.call("read %s", path); err != nil {
		return "", err
	}
	if path == "/proc/self/mountinfo" {
		var b strings.Builder
		for _, target := range slices.Sorted(maps.Keys(f.mounts)) {
			m := f.mounts[target]
			fmt.Fprintf(&b, "30 1 0:20 / %s ro,relatime shared:1 - %s %s %s\n", target, m.fstype, m.source, m.options)
		}
		return b.String(), nil
	}
	if rest, ok := strings.CutPrefix(path, classBlock+"/"); ok {
		return f.readClassBlock(path, rest)
	}
	text, ok := f.files[path]
	if !ok {
		if !f.absent[path] {
			f.unexpected("read of %s", path)
		}
		return "", syscall.ENOENT
	}
	return text, nil
}

func (f *fakeSystem) readClassBlock(path, rest string) (string, error) {
	name, attribute, _ := strings.Cut(rest, "/")
	for i, b := range f.blocks {
		if b.name != name {
			continue
		}
		switch {
		case attribute == "dev":
			return fmt.Sprintf("254:%d\n", i), nil
		case attribute == "size":
			return fmt.Sprintln(b.size / 512), nil
		case attribute == "uevent":
			return "MAJOR=1\nDEVNAME=" + b.name + "\nPARTNAME=" + b.part + "\n", nil
		case b.disk == "" && (attribute == "partition" || attribute == "start"):
			return "", syscall.ENOENT
		case attribute == "partition":
			return fmt.Sprintln(b.number), nil
		case attribute == "start":
			return fmt.Sprintln(b.start), nil
		case attribute == "../uevent" && b.disk != "":
			return "MAJOR=1\nDEVNAME=" + b.disk + "\nDEVTYPE=disk\n", nil
		}
	}
	f.unexpected("read of %s", path)
	return "", syscall.ENOENT
}

const scsiScanPath = "/sys/class/scsi_host/host2/scan"

func (f *fakeSystem) WriteFile(path, data string) error {
	f.needReach(path)
	logged := data
	if strings.HasSuffix(path, bootconf.RecordPath) {
		logged = "RECORD"
	}
	if f.isReturn(path) {
		logged = oneLine(data)
	}
	err := f.call("write %s: %s", path, logged)
	if err != nil {
		return err
	}
	switch path {
	case panicTimeoutPath, rcuPath, scsiScanPath:
	case bootconf.RecordPath, f.sysroot() + bootconf.RecordPath, environmentPath:
		if !f.made[parent(path)] {
			return syscall.ENOENT
		}
	default:
		if !f.isReturn(path) {
			f.unexpected("write of %s", path)
		}
		if !f.made[parent(path)] {
			return syscall.ENOENT
		}
	}
	f.written[path] = data
	return nil
}

// isReturn reports whether a path is one of what gives memory back.
func (f *fakeSystem) isReturn(path string) bool {
	return strings.HasPrefix(strings.TrimPrefix(path, f.sysroot()), bootconf.ReturnDir+"/") ||
		path == returnUnitPath || path == returnWantPath
}

func (f *fakeSystem) CopyFile(from, to string, mode uint32) error {
	f.needReach(from)
	f.needReach(to)
	if err := f.call("copy %s to %s, mode %o", from, to, mode); err != nil {
		return err
	}
	if !f.isReturn(to) {
		f.unexpected("copy to %s", to)
	}
	if !f.made[parent(to)] {
		return syscall.ENOENT
	}
	f.written[to] = "copy of " + from
	return nil
}

func (f *fakeSystem) ReadDir(path string) ([]string, error) {
	f.needReach(path)
	if err := f.call("list %s", path); err != nil {
		return nil, err
	}
	if path == classBlock {
		var names []string
		for _, b := range f.blocks {
			names = append(names, b.name)
		}
		return names, nil
	}
	names, ok := f.dirs[path]
	if !ok {
		if !f.absent[path] {
			f.unexpected("list of %s", path)
		}
		return nil, syscall.ENOENT
	}
	return names, nil
}

func (f *fakeSystem) Open(root, path string) (Image, error) {
	full := strings.TrimSuffix(root, "/") + path
	f.needReach(full)
	if err := f.call("open %s", full); err != nil {
		return nil, err
	}
	var content *fakeContent
	switch {
	case root == "/" && path == bootconf.EmbeddedPath:
		content = f.embedded
	case root == "/":
		if b := f.block(path); b != nil {
			content = &b.fakeContent
		} else {
			content = f.blobs[path]
		}
	case root == bootfsDir:
		if b := f.block(f.mounts[bootfsDir].source); b != nil {
			content = b.files[path]
		}
	default:
		f.unexpected("open of %s in %s", path, root)
	}
	if content == nil {
		return nil, syscall.ENOENT
	}
	return f.newImage(full, *content), nil
}

func (f *fakeSystem) newImage(name string, content fakeContent) *fakeImage {
	image := &fakeImage{sys: f, name: name, fakeContent: content}
	f.images = append(f.images, image)
	return image
}

func (i *fakeImage) ReadAt(p []byte, off int64) (int, error) {
	if i.closed {
		i.sys.unexpected("read of %s after its close", i.name)
	}
	if off < 0 {
		i.sys.unexpected("read of %s at %d", i.name, off)
		return 0, syscall.EINVAL
	}
	n := int(max(0, min(int64(len(p)), i.size-off)))
	clear(p[:n])
	if off < int64(len(i.head)) {
		copy(p[:n], i.head[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (i *fakeImage) Size() int64    { return i.size }
func (i *fakeImage) Source() string { return "/proc/self/fd/(" + i.name + ")" }
func (i *fakeImage) Close()         { i.closed = true }

func (f *fakeSystem) Executable(root, path string) error {
	f.needMount(root, "executable "+path)
	if err := f.call("executable %s in %s", path, root); err != nil {
		return err
	}
	if !f.executables[path] {
		return syscall.ENOENT
	}
	return nil
}

func (f *fakeSystem) LoadModule(path, options string) error {
	err := f.call("load %s", strings.TrimSpace(path+" "+options))
	if f.load != nil && err == nil {
		err = f.load(path, options)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now += 1000
	if err == nil {
		f.driverLoaded(path)
	}
	return err
}

// driverLoaded shows the devices that a driver brings.
func (f *fakeSystem) driverLoaded(path string) {
	switch path {
	case "/lib/modules/virtio_pci.ko":
		f.dirs[virtioBus] = []string{"virtio0"}
		f.files[virtioBus+"/virtio0/modalias"] = "virtio:d00000002v00001AF4\n"
	case "/lib/modules/virtio_blk.ko":
		f.blocks = append(f.blocks, f.disks...)
	case "/lib/modules/nd_pmem.ko":
		f.blocks = append(f.blocks, f.pmems...)
		f.dirs[ndBus] = []string{"region0", "ndbus0", "namespace0.0"}
		f.files[ndBus+"/ndbus0/wait_probe"] = "1\n"
	}
}

func (f *fakeSystem) DirectIO(_ Image, blockSize int64) bool {
	return !f.noDirectIO && blockSize == 4096
}

func (f *fakeSystem) AttachLoop(image Image) (LoopDevice, error) {
	i := image.(*fakeImage)
	if i.closed {
		f.unexpected("attach of %s after its close", i.name)
	}
	if err := f.call("attach loop to %s", i.name); err != nil {
		return LoopDevice{}, err
	}
	loop := &fakeLoop{path: fmt.Sprintf("/dev/loop%d", len(f.loops)), image: i}
	f.loops = append(f.loops, loop)
	return LoopDevice{loop.path, !f.noDirectIO, func() {
		_ = f.call("release %s", loop.path)
		if loop.released {
			f.unexpected("%s is released twice", loop.path)
		}
		loop.released = true
	}}, nil
}

// ReadAhead reads from what is mounted.
func (f *fakeSystem) ReadAhead(path string, offset, length int64) error {
	if offset <= 0 || length <= 0 || length > readAheadBytes {
		f.unexpected("read ahead of %d bytes at %d", length, offset)
	}
	return f.call("read ahead in %s: %d+%d", path, offset, length)
}

func (f *fakeSystem) CopyToMemory(image Image) (Image, error) {
	i := image.(*fakeImage)
	if i.closed {
		f.unexpected("copy of %s after its close", i.name)
	}
	if err := f.call("copy %s to memory", i.name); err != nil {
		return nil, err
	}
	return f.newImage("memory", i.fakeContent), nil
}

func (f *fakeSystem) ListenUevents() error { return f.call("listen to device events") }

func (f *fakeSystem) WaitUevent(deadline int64) (Uevent, bool, error) {
	// Modules were loaded before the wait, each for a millisecond.
	if err := f.call("wait for an event until %d s", (deadline-fakeStart)/1_000_000); err != nil {
		return Uevent{}, false, err
	}
	f.checkRolledBack()
	if len(f.events) > 0 && fakeStart+f.events[0].at*1_000_000 <= deadline {
		event := f.events[0]
		f.events = f.events[1:]
		f.now = max(f.now, fakeStart+event.at*1_000_000)
		if event.do != nil {
			event.do(f)
		}
		return event.Uevent, true, nil
	}
	f.now = max(f.now, deadline)
	return Uevent{}, false, nil
}

// checkRolledBack checks that nothing of a failed attempt is left.
func (f *fakeSystem) checkRolledBack() {
	f.t.Helper()
	for _, target := range []string{bootfsDir, lowerDir} {
		if _, ok := f.mounts[target]; ok {
			f.unexpected("a failed attempt left %s mounted", target)
		}
	}
	f.checkClosed()
}

func (f *fakeSystem) checkClosed() {
	f.t.Helper()
	for _, image := range f.images {
		if !image.closed {
			f.unexpected("%s is still open", image.name)
		}
	}
	for _, loop := range f.loops {
		if !loop.released {
			f.unexpected("%s is not released", loop.path)
		}
	}
}

func (f *fakeSystem) EmptyRoot(newRoot string) error {
	if newRoot != sysroot {
		f.unexpected("empty the root for %s", newRoot)
	}
	for _, target := range []string{"/dev", "/proc", "/sys", "/run"} {
		if _, ok := f.mounts[target]; ok {
			f.unexpected("empty the root while %s is mounted", target)
		}
	}
	for _, target := range []string{lowerDir, overlayDir, bootfsDir} {
		if _, ok := f.mounts[target]; ok && !f.injected {
			f.unexpected("empty the root while %s is mounted", target)
		}
	}
	return f.call("empty the root")
}

func (f *fakeSystem) EnterRoot(newRoot string) error {
	if newRoot != sysroot {
		f.unexpected("enter %s", newRoot)
	}
	if err := f.call("enter %s", newRoot); err != nil {
		return err
	}
	f.entered = true
	return nil
}

func (f *fakeSystem) Exec(path string, argv, env []string) error {
	if !f.entered {
		f.unexpected("execute %s before the overlay is entered", path)
	}
	f.checkClosed()
	if err := f.call("execute %s", path); err != nil {
		return err
	}
	f.argv, f.envp = argv, env
	f.finish("exec")
	return nil
}

func (f *fakeSystem) Sleep(seconds int) {
	_ = f.call("sleep %d s", seconds)
	f.now += int64(seconds) * 1_000_000
}

func (f *fakeSystem) Reboot() error {
	if err := f.call("reboot"); err != nil {
		return err
	}
	f.finish("reboot")
	return nil
}

func (f *fakeSystem) Halt() error {
	if err := f.call("halt"); err != nil {
		return err
	}
	f.finish("halt")
	return nil
}

func (f *fakeSystem) Exit() {
	_ = f.call("exit")
	f.finish("exit")
}

// finish ends the run from inside a call that does not return.
func (f *fakeSystem) finish(how string) {
	f.end = how
	runtime.Goexit()
}

// run boots the machine to its end.
func (f *fakeSystem) run() {
	f.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		Run(f)
		f.unexpected("Run returned")
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		f.t.Fatalf("the run hangs after %q", f.calls)
	}
	f.checkEnd()
}

// checkEnd checks what holds at the end of every run.
func (f *fakeSystem) checkEnd() {
	f.t.Helper()
	fatal, handover := len(f.linesWith("fatal: ")), len(f.linesWith("handover "))
	if f.end == "exec" {
		if fatal != 0 || handover != 1 {
			f.t.Errorf("a boot has %d fatal and %d handover lines, want 0 and 1: %q", fatal, handover, f.logs)
		}
		return
	}
	if fatal != 1 {
		f.t.Errorf("a failed boot has %d fatal lines, want 1: %q", fatal, f.logs)
	}
}

// linesWith gives the log lines whose text begins with prefix.
func (f *fakeSystem) linesWith(prefix string) []string {
	var list []string
	for _, line := range f.logs {
		if _, text, _ := strings.Cut(line, ">"+bootconf.LogPrefix); strings.HasPrefix(text, prefix) {
			list = append(list, text)
		}
	}
	return list
}

// fatal gives what the fatal line says.
func (f *fakeSystem) fatal() string {
	f.t.Helper()
	lines := f.linesWith("fatal: ")
	if len(lines) != 1 {
		return fmt.Sprintf("(%d fatal lines)", len(lines))
	}
	return strings.TrimPrefix(lines[0], "fatal: ")
}

func (f *fakeSystem) called(call string) bool { return slices.Contains(f.calls, call) }

// callsWith gives the calls that begin with prefix.
func (f *fakeSystem) callsWith(prefix string) []string {
	var list []string
	for _, call := range f.calls {
		if strings.HasPrefix(call, prefix) {
			list = append(list, call)
		}
	}
	return list
}

// The machine that the tests start from.

const (
	imageUUID  = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
	bootUUID   = "b0070000-0000-4000-8000-00000000000f"
	rootUUID   = "40070000-0000-4000-8000-00000000000e"
	otherUUID  = "01010101-0101-4101-8101-010101010101"
	imageSize  = 1 << 20
	metadataAt = imageSize - 3<<12 // in the image
	imagePath  = "/initoverlayfs.img"
)

const (
	pciBus    = "/sys/bus/pci/devices"
	virtioBus = "/sys/bus/virtio/devices"
	ndBus     = "/sys/bus/nd/devices"
)

// The machine has a virtio disk and a network card; a disk on an NVMe bus is
// what it lacks.
const (
	pciDisk = "pci:v00001AF4d00001042sv00001AF4sd00001100bc01sc80i00"
	pciCard = "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00"
)

const testAliases = `pci:v*d*sv*sd*bc01sc08i02* nvme
pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
virtio:d00000002v* virtio_blk
`

const testModules = `- /lib/modules/crc32c_generic.ko
block,loop,file,ram /lib/modules/virtio_pci.ko for=virtio_pci
block,loop,file,ram /lib/modules/nvme.ko for=nvme
pmem,pmem-dax /lib/modules/libnvdimm.ko
loop,ram,embedded /lib/modules/loop.ko max_loop=0
block,loop,file,ram /lib/modules/virtio_blk.ko for=virtio_blk after=virtio_pci
- /lib/modules/erofs.ko after=crc32c_generic
pmem,pmem-dax /lib/modules/nd_pmem.ko after=libnvdimm
- /lib/modules/overlay.ko
loop,file,ram /lib/modules/ext4.ko after=crc32c_generic
`

func mustUUID(s string) bootconf.UUID {
	u, err := bootconf.ParseUUID(s)
	if err != nil {
		panic(err)
	}
	return u
}

// erofsContent is an image of imageSize bytes.
func erofsContent(uuid string, compressed bool) fakeContent {
	head := make([]byte, 4096)
	super := head[1024:]
	binary.LittleEndian.PutUint32(super, 0xE0F5E1E2)
	super[12] = 12
	binary.LittleEndian.PutUint32(super[36:], imageSize>>12)
	binary.LittleEndian.PutUint32(super[40:], metadataAt>>12)
	u := mustUUID(uuid)
	copy(super[48:], u[:])
	if compressed {
		binary.LittleEndian.PutUint32(super[80:], 1)
	}
	return fakeContent{head, imageSize}
}

// erofsBlock is a device with an image at its beginning.
func erofsBlock(name, uuid string) *fakeBlock {
	content := erofsContent(uuid, false)
	content.size = 4 * imageSize
	return &fakeBlock{name: name, fakeContent: content, fstype: "erofs"}
}

// ext4Block is a device with an ext4 filesystem.
func ext4Block(name, uuid, label string, files map[string]*fakeContent) *fakeBlock {
	head := make([]byte, 4096)
	super := head[1024:]
	binary.LittleEndian.PutUint16(super[0x38:], 0xEF53)
	u := mustUUID(uuid)
	copy(super[0x68:], u[:])
	copy(super[0x78:0x88], label)
	return &fakeBlock{name: name, fakeContent: fakeContent{head, 64 << 20}, fstype: "ext4", files: files}
}

// gptDisk is a disk whose GPT has the partitions.
func gptDisk(name string, partitions ...*fakeBlock) *fakeBlock {
	head := make([]byte, 1024+128*128)
	copy(head[512:], "EFI PART")
	binary.LittleEndian.PutUint64(head[512+72:], 2)
	binary.LittleEndian.PutUint32(head[512+80:], 128)
	binary.LittleEndian.PutUint32(head[512+84:], 128)
	for i, p := range partitions {
		p.disk, p.number, p.start = name, i+1, int64(i+1)*2048
		entry := head[1024+128*i:]
		entry[0] = 1     // a type
		entry[31] = 0xA1 // the last byte of its GUID
		entry[16] = byte(i + 1)
		binary.LittleEndian.PutUint64(entry[32:], uint64(p.start))
		for j, c := range p.part {
			entry[56+2*j] = byte(c)
		}
	}
	return &fakeBlock{name: name, fakeContent: fakeContent{head, 1 << 30}}
}

// newFake is a machine with a disk (an ext4 boot filesystem with the image, a
// partition with the image, a root filesystem) whose configuration has lines
// besides the image's identity.
func newFake(t testing.TB, lines ...string) *fakeSystem {
	image := erofsContent(imageUUID, true)
	boot := ext4Block("vda1", bootUUID, "boot", map[string]*fakeContent{imagePath: &image})
	raw := erofsBlock("vda2", imageUUID)
	root := ext4Block("vda3", rootUUID, "root", nil)
	boot.part, raw.part, root.part = "boot", "image", "root"
	conf := fmt.Sprintf("image_uuid %s\nimage_size %d\n", imageUUID, imageSize)
	return &fakeSystem{
		t: t,
		files: map[string]string{
			bootconf.ConfigPath:  conf + strings.Join(lines, "\n") + "\n",
			bootconf.ModulesPath: testModules,
			bootconf.AliasesPath: testAliases,
			"/proc/cmdline":      "quiet root=UUID=" + rootUUID + " ro\n",
			panicTimeoutPath:     "0\n",
			rcuPath:              "0\n",

			pciBus + "/0000:00:01.0/modalias": pciCard + "\n",
			pciBus + "/0000:00:02.0/modalias": pciDisk + "\n",
		},
		absent:      map[string]bool{ndBus: true, virtioBus: true},
		dirs:        map[string][]string{pciBus: {"0000:00:01.0", "0000:00:02.0"}},
		blocks:      []*fakeBlock{{name: "loop0"}},
		disks:       []*fakeBlock{gptDisk("vda", boot, raw, root), boot, raw, root},
		executables: map[string]bool{"/init": true},
		args:        []string{"/init", "splash", "--unit=x"},
		env:         []string{"HOME=/", "TERM=linux"},
		cpus:        1,
		now:         fakeStart,
		made:        map[string]bool{"/dev": true, "/proc": true, "/sys": true, "/run": true},
		mounts:      map[string]fakeMount{},
		written:     map[string]string{},
	}
}

// setCmdline replaces the kernel command line.
func (f *fakeSystem) setCmdline(s string) { f.files["/proc/cmdline"] = s + "\n" }

// addPmem adds a pmem device with the image.
func (f *fakeSystem) addPmem(compressed bool) {
	b := erofsBlock("pmem0", imageUUID)
	b.fakeContent = erofsContent(imageUUID, compressed)
	b.size = 2 * imageSize
	f.pmems = append(f.pmems, b)
}

// addReturn adds a pmem device whose memory the command line has set aside, with
// what gives it back.
func (f *fakeSystem) addReturn() {
	f.addPmem(true)
	f.setCmdline("quiet memmap=130M!510M root=UUID=" + rootUUID)
	f.dirs[bootconf.ReturnModulesDir] = []string{"00-dax_pmem.ko", "01-kmem.ko"}
}

var errInjected = errors.New("injected failure")

// failCall injects a failure of every call that has the text.
func (f *fakeSystem) failCall(text string, err error) {
	f.inject = func(_ int, call string) error {
		if call == text {
			return err
		}
		return nil
	}
}
