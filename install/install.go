package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
)

// Options say what is installed where. Paths that begin with a slash are the
// machine's own, those of Initramfs, ConfigFile and WorkDir this system's.
type Options struct {
	KernelVersion string
	Sysroot       string // root of the machine, if it is not the running one
	Initramfs     string // the full tree's archive; empty: the distribution's
	ConfigFile    string // empty: the machine's own
	BootDir       string // empty: as configured, or found
	ImageDir      string // empty: as configured, or the boot folder
	Staging       string // kernel-install's staging area; empty: there is none
	WorkDir       string // where the pair is made; empty: /var/tmp
	// Settings are keys and values that come after those of the configuration.
	Settings [][2]string
	// Force makes a new pair even if nothing has changed.
	Force bool
	// EntriesFollow tells that the caller makes the plain entry later, and then
	// calls again.
	EntriesFollow bool
	// NoEntries leaves the boot loader's menu alone.
	NoEntries bool

	// Build has what else a build takes. What is set here goes before the
	// configuration.
	Build builder.Options
	// Compression is that of the image; nil: as configured, or the default.
	Compression *builder.ImageCompression

	// Freeze makes what was written to the filesystem of dir reachable without
	// its journal; nil: FreezeThaw in a process of its own.
	Freeze func(ctx context.Context, dir string) error

	// Progress, if set, is told what begins; Warn what is doubtful.
	Progress, Warn func(string)
}

// Result is what an installation did.
type Result struct {
	State
	// New tells that a pair was made; else the one that was there is up to date.
	New      bool               `json:"new"`
	Manifest *bootconf.Manifest `json:"manifest"`
	Entries  []string           `json:"entries"` // boot entries, by the machine's names
}

// installation is one run.
type installation struct {
	o        *Options
	m        machine
	config   *Config
	conf     bootconf.Config // of the new mini-initramfs
	bootDir  string          // on this system, as all below
	dir      string          // of the kernel, below the boot folder
	imageDir string          // of the kernel, for images
	work     string
	progress func(string)
	warn     func(string)
}

// prepare finds the folders that a run is about: without a kernel, those that
// have the folders of kernels.
func prepare(o *Options, forNew bool) (*installation, error) {
	i := &installation{o: o, m: machine{o.Sysroot}, progress: o.Progress, warn: o.Warn}
	if i.progress == nil {
		i.progress = func(string) {}
	}
	if i.warn == nil {
		i.warn = func(string) {}
	}
	if o.Freeze == nil {
		o.Freeze = freezer
	}
	var err error
	if i.config, err = i.m.readConfig(o.ConfigFile); err != nil {
		return nil, err
	}
	for _, s := range o.Settings {
		if err := i.config.Set(s[0], s[1]); err != nil {
			return nil, fmt.Errorf("%s: %w", s[0], err)
		}
	}
	boot, err := i.m.bootDir(firstOf(o.BootDir, i.config.BootDir), o.KernelVersion, forNew)
	if err != nil {
		return nil, err
	}
	images := firstOf(o.ImageDir, i.config.ImageDir, boot)
	if !isDir(i.m.path(images)) {
		return nil, fmt.Errorf("folder of images %s: not there", i.m.path(images))
	}
	i.bootDir = i.m.path(boot)
	i.dir = filepath.Join(i.bootDir, folder, o.KernelVersion)
	i.imageDir = i.m.path(images, folder, o.KernelVersion)
	return i, nil
}

// prepareKernel prepares a run that is about one kernel.
func prepareKernel(o *Options, forNew bool) (*installation, error) {
	if err := checkKernelVersion(o.KernelVersion); err != nil {
		return nil, err
	}
	return prepare(o, forNew)
}

// begin prepares a run that has the boot folder for itself until release is
// called.
func begin(o *Options, forNew bool) (i *installation, release func(), err error) {
	if i, err = prepareKernel(o, forNew); err != nil {
		return nil, nil, err
	}
	release, err = lock(i.bootDir, func() { i.progress("waiting for another run") })
	return i, release, err
}

func (i *installation) statePath() string { return filepath.Join(i.dir, stateName) }

// Install makes and publishes the pair of a kernel. Whatever happens on the way,
// what was booted before is still there, and is booted until the new pair is
// whole.
func Install(ctx context.Context, o Options) (*Result, error) {
	i, release, err := begin(&o, true)
	if err != nil {
		return nil, err
	}
	defer release()

	state, err := readState(i.statePath())
	if errors.Is(err, errDamaged) {
		// A power cut may leave it so on a FAT. What the entries name stays until
		// they name the new pair.
		i.warn(err.Error() + "; beginning anew")
		state, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	if state == nil {
		state = &State{Format: stateFormat, KernelVersion: o.KernelVersion}
	} else if err := i.prune(state); err != nil {
		return nil, err // what a run that was killed has left takes space
	}
	number, err := i.nextNumber(state)
	if err != nil {
		return nil, err
	}
	if err := i.configure(number); err != nil {
		return nil, err
	}
	var removeWork func()
	if i.work, removeWork, err = makeWork(i.workParent()); err != nil {
		return nil, err
	}
	defer removeWork()

	src, err := i.source(ctx)
	if err != nil {
		return nil, err
	}
	inputs, err := i.inputs(src)
	if err != nil {
		return nil, err
	}
	result := &Result{State: *state}
	if current := state.generation(state.Current); current != nil && !o.Force && inputs != "" && current.Inputs == inputs &&
		i.whole(current) {
		i.progress("the pair of kernel " + o.KernelVersion + " is up to date")
	} else {
		if result, err = i.replace(ctx, state, src, number, inputs); err != nil {
			return nil, err
		}
	}
	if result.Manifest == nil {
		if result.Manifest, err = builder.ReadManifest(i.m.path(state.generation(state.Current).Manifest)); err != nil {
			return nil, err
		}
	}
	if !o.NoEntries {
		if result.Entries, err = i.writeEntries(ctx, &result.State); err != nil {
			return nil, err
		}
	}
	// Only now nothing refers to the older generations any more.
	return result, i.retire(&result.State)
}

// replace makes a new generation the current one.
func (i *installation) replace(ctx context.Context, state *State, src *source, number int, inputs string) (*Result, error) {
	manifest, err := i.build(ctx, src)
	if err != nil {
		return nil, err
	}
	g := i.newGeneration(number, src, manifest)
	g.Inputs = inputs
	files, err := i.publications(manifest, &g)
	if err != nil {
		return nil, err
	}
	i.progress("publishing in " + filepath.Join(i.dir, strconv.Itoa(number)))
	if err := i.publish(ctx, files, number); err != nil {
		return nil, err
	}
	next := *state
	next.Previous = state.Current
	if running := i.runningGeneration(state); running != 0 {
		next.Previous = running // it is known to work
	}
	next.Current = number
	next.Generations = append(slices.Clone(state.Generations), g)
	// From here on the new files are the current ones, whether or not the boot
	// loader knows: an entry that still names the former pair finds it.
	if err := next.write(i.statePath()); err != nil {
		return nil, err
	}
	return &Result{State: next, New: true, Manifest: manifest}, nil
}

// newGeneration gives the paths of a built pair.
func (i *installation) newGeneration(number int, src *source, m *bootconf.Manifest) Generation {
	base := strconv.Itoa(number)
	g := Generation{
		Number:    number,
		Source:    src.name,
		Mini:      i.m.name(filepath.Join(i.dir, base, m.Mini.File)),
		Manifest:  i.m.name(filepath.Join(i.dir, base, "initoverlayfs-"+m.KernelVersion+".json")),
		ImageUUID: m.Image.UUID,
	}
	if src.name != "" {
		g.SourceSHA256 = m.Source.SHA256
	}
	if !onlyEmbedded(i.conf.Backends) {
		g.Image = i.m.name(filepath.Join(i.imageDir, base, m.Image.File))
	}
	return g
}

func onlyEmbedded(backends []bootconf.Backend) bool {
	return len(backends) == 1 && backends[0] == bootconf.Embedded
}

// nextNumber is higher than that of any generation, also of one whose
// publication was cut short.
func (i *installation) nextNumber(state *State) (int, error) {
	next := state.Current
	for _, dir := range []string{i.dir, i.imageDir} {
		numbers, err := numbered(dir)
		if err != nil {
			return 0, err
		}
		for _, n := range numbers {
			next = max(next, n)
		}
	}
	return next + 1, nil
}

// prune removes the folders of generations that the state does not have: those
// of runs that were killed.
func (i *installation) prune(state *State) error {
	var unused []string
	for _, dir := range slices.Compact([]string{i.dir, i.imageDir}) {
		numbers, err := numbered(dir)
		if err != nil {
			return err
		}
		for _, n := range numbers {
			if state.generation(n) == nil {
				unused = append(unused, filepath.Join(dir, strconv.Itoa(n)))
			}
		}
		pending, err := filepath.Glob(filepath.Join(escapeGlob(dir), ".*.tmp"))
		if err != nil {
			return err
		}
		unused = append(unused, pending...)
	}
	return removeAll(unused)
}

// retire forgets the generations that are neither current nor previous, and
// removes them.
func (i *installation) retire(state *State) error {
	var dirs []string
	for _, g := range state.retire() {
		for _, file := range g.files() {
			dirs = append(dirs, filepath.Dir(i.m.path(file))) // image_dir may have been another
		}
	}
	if len(dirs) > 0 {
		// First what refers to the folders, then the folders.
		if err := state.write(i.statePath()); err != nil {
			return err
		}
	}
	return errors.Join(removeAll(dirs), i.prune(state))
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// runningGeneration is the one that the running system was booted from, 0 if
// that is none of these.
func (i *installation) runningGeneration(state *State) int {
	record, err := i.m.bootRecord()
	if err != nil || record == nil {
		return 0
	}
	running := 0
	for _, g := range state.Generations {
		// Of several with one image the current one is the likely one.
		if g.ImageUUID == record.ImageUUID && running != state.Current {
			running = g.Number
		}
	}
	return running
}

// whole reports whether the files of a generation are there with their sizes.
func (i *installation) whole(g *Generation) bool {
	m, err := builder.ReadManifest(i.m.path(g.Manifest))
	if err != nil {
		return false
	}
	for path, size := range map[string]int64{g.Mini: m.Mini.Size, g.Image: m.Image.Size} {
		if path == "" {
			continue
		}
		if info, err := os.Stat(i.m.path(path)); err != nil || info.Size() != size {
			return false
		}
	}
	return true
}
