// Package initoverlayfs_test holds the floor plan: which package may import
// which, and what storage-init is linked from.
package initoverlayfs_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "initoverlayfs/"

// anything as an element of rule.outside allows every outside module.
const anything = "*"

// rule says what the packages at and below a folder may import. They may always
// import each other. Tests are held only to rule.never.
type rule struct {
	folder  string   // of the module
	inside  []string // folders of the module, with what lies below them
	outside []string // packages of other modules, with what lies below them
	// formats is set where a package knows formats, not machines: it gets its
	// bytes from the caller and makes no system calls.
	formats bool
	never   []string // folders that not even a test imports
}

// The first rule that fits a package holds for it.
var floorPlan = []rule{
	{folder: "cmd/initoverlayfs", inside: []string{"bench", "bootentry", "builder", "disk", "dracut", "initrd", "install", "vmtest"}, outside: []string{anything}},
	{folder: "cmd/storage-init", inside: []string{"storageinit"}},
	{folder: "vmtest/memprobe", inside: []string{"initrd/cpio", "vmtest"}, outside: []string{"golang.org/x/sys/unix"}},
	{folder: "vmtest/vmlinux", inside: []string{"initrd/compress"}}, // unpacks kernels
	{folder: "bench", inside: []string{"builder", "disk", "initrd", "vmtest"}, outside: []string{anything}, never: []string{"storageinit"}},
	{folder: "disk", inside: []string{"initrd"}, outside: []string{anything}, never: []string{"storageinit"}},
	{folder: "vmtest", inside: []string{"disk", "initrd/bootconf"}, outside: []string{anything}, never: []string{"storageinit"}},
	{folder: "builder", inside: []string{"initrd"}, outside: []string{anything}, never: []string{"storageinit"}},
	{folder: "install", inside: []string{"bootentry", "builder", "initrd"}, outside: []string{anything}, never: []string{"storageinit"}},
	{folder: "storageinit", inside: []string{"initrd/bootconf"}, outside: []string{"golang.org/x/sys/unix"}, never: []string{"builder"}},
	{folder: "bootentry"},
	{folder: "dracut"},
	{folder: "packaging"},
	{folder: "initrd/bootconf", formats: true},
	{folder: "initrd/compress", outside: []string{anything}, formats: true},
	{folder: "initrd/cpio", inside: []string{"initrd/compress"}, formats: true},
	{folder: "initrd/erofs", inside: []string{"initrd/bootconf", "initrd/lz4hc"}, formats: true},
	{folder: "initrd/lz4hc", formats: true},
	{folder: "initrd/verity", outside: []string{anything}, formats: true},
}

// machinery are the standard packages that reach the machine.
var machinery = []string{"net", "os", "plugin", "syscall", "golang.org/x/sys"}

// storageInitDeps are the packages that storage-init is linked from, without
// the internal ones of the standard library. Each costs bytes and time at every
// boot: an addition needs a reason that outweighs them.
var storageInitDeps = []string{
	"bytes",
	"cmp",
	"encoding/binary",
	"errors",
	"golang.org/x/sys/unix",
	"initoverlayfs/cmd/storage-init",
	"initoverlayfs/initrd/bootconf",
	"initoverlayfs/storageinit",
	"initoverlayfs/storageinit/probe",
	"initoverlayfs/storageinit/region",
	"initoverlayfs/storageinit/switchroot",
	"io",
	"iter",
	"math",
	"math/bits",
	"reflect",
	"runtime",
	"slices",
	"sort",
	"strconv",
	"strings",
	"sync",
	"sync/atomic",
	"syscall",
	"time",
	"unicode",
	"unicode/utf16",
	"unicode/utf8",
	"unsafe",
}

// storageInitNever must not even be added to storageInitDeps.
var storageInitNever = []string{
	"crypto", "encoding/json", "flag", "fmt", "html", "log", "net", "os/exec", "regexp", "text",
}

type listedPackage struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func TestFloorPlan(t *testing.T) {
	packages := list(t, "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	checked := 0
	for _, p := range packages {
		folder, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours {
			continue // this test
		}
		i := slices.IndexFunc(floorPlan, func(r rule) bool { return below(folder, r.folder) })
		if i < 0 {
			t.Errorf("%s has no place in the floor plan; give it a rule in floorPlan", folder)
			continue
		}
		for _, problem := range floorPlan[i].check(p) {
			t.Errorf("%s %s", folder, problem)
		}
		checked++
	}
	if checked == 0 {
		t.Fatal("no package was checked")
	}
}

// check gives what p imports against the rule.
func (r rule) check(p listedPackage) []string {
	var problems []string
	for _, path := range p.Imports {
		inside, ours := strings.CutPrefix(path, module)
		switch {
		case r.formats && belowAny(path, machinery):
			problems = append(problems, "imports "+path+", but knows formats only")
		case ours && !below(inside, r.folder) && !belowAny(inside, r.inside):
			problems = append(problems, "imports "+inside+"; it may import "+strings.Join(r.inside, ", "))
		case !ours && !standard(path) && !belowAny(path, r.outside) && !slices.Contains(r.outside, anything):
			problems = append(problems, "imports "+path+"; outside the module it may import "+strings.Join(r.outside, ", "))
		}
	}
	for _, path := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
		if inside, ours := strings.CutPrefix(path, module); ours && belowAny(inside, r.never) {
			problems = append(problems, "or its test imports "+inside)
		}
	}
	return problems
}

func TestRuleCheck(t *testing.T) {
	r := rule{folder: "a", inside: []string{"b"}, outside: []string{"example.org/x"}, formats: true, never: []string{"c"}}
	tests := []struct {
		p    listedPackage
		want int
	}{
		{listedPackage{Imports: []string{"fmt", "initoverlayfs/a/sub", "initoverlayfs/b/sub", "example.org/x/y"}}, 0},
		{listedPackage{Imports: []string{"os/exec"}}, 1},
		{listedPackage{Imports: []string{"initoverlayfs/bb"}}, 1},
		{listedPackage{Imports: []string{"example.org/xx"}}, 1},
		{listedPackage{TestImports: []string{"os", "initoverlayfs/d"}}, 0},
		{listedPackage{TestImports: []string{"initoverlayfs/c"}}, 1},
		{listedPackage{XTestImports: []string{"initoverlayfs/c/sub"}}, 1},
	}
	for _, tt := range tests {
		if got := r.check(tt.p); len(got) != tt.want {
			t.Errorf("check(%+v) = %q; want %d problems", tt.p, got, tt.want)
		}
	}
}

func TestStorageInitDependencies(t *testing.T) {
	var got []string
	for _, p := range list(t, "-deps", "-json=ImportPath", "./cmd/storage-init") {
		if belowAny(p.ImportPath, storageInitNever) {
			t.Errorf("storage-init is linked from %s, which it must never be", p.ImportPath)
		}
		if !standard(p.ImportPath) || !internal(p.ImportPath) {
			got = append(got, p.ImportPath)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(storageInitDeps, got); diff != "" {
		t.Errorf("dependencies of storage-init (-want +got):\n%s", diff)
	}
}

// list runs go list for the system that storage-init runs on.
func list(t *testing.T, args ...string) []listedPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, stderr.String())
	}
	var packages []listedPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("%v: %v", cmd, err)
		}
		packages = append(packages, p)
	}
}

// below reports whether path is folder or lies in it.
func below(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

func belowAny(path string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return below(path, f) })
}

// standard reports whether path is of the standard library: no other module's
// first element is without a dot, except this one's.
func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".") && first+"/" != module
}

func internal(path string) bool {
	return strings.Contains("/"+path+"/", "/internal/") || strings.HasPrefix(path, "vendor/")
}
