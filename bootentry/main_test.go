package bootentry

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	// The test of the GRUB script finds this program as "initoverlayfs".
	if filepath.Base(os.Args[0]) == "initoverlayfs" {
		os.Exit(hookGrub(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// boot makes a $BOOT with entries.
func boot(t testing.TB, entries map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(entriesDir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range entries {
		write(t, filepath.Join(entriesDir(dir), name), text)
	}
	return dir
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// contents gives the files of $BOOT's entries, hidden ones too.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	files, err := os.ReadDir(entriesDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(entriesDir(dir), f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[f.Name()] = string(text)
	}
	return got
}

// scenario is a golden file: what its comment says, and the entries in folders.
type scenario struct {
	*txtar.Archive
	file string
}

func readScenario(t testing.TB, file string) scenario {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return scenario{a, file}
}

// say gives what follows "KEY: " in the comment.
func (s scenario) say(key string) string {
	for line := range strings.Lines(string(s.Comment)) {
		if value, ok := strings.CutPrefix(line, key+": "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (s scenario) folder(name string) map[string]string {
	files := map[string]string{}
	for _, f := range s.Files {
		if file, ok := strings.CutPrefix(f.Name, name+"/"); ok {
			files[file] = string(f.Data)
		}
	}
	return files
}

// set replaces a folder, for -update.
func (s scenario) set(t testing.TB, name string, order []string, files map[string]string) {
	t.Helper()
	var kept []txtar.File
	for _, f := range s.Files {
		if !strings.HasPrefix(f.Name, name+"/") {
			kept = append(kept, f)
		}
	}
	for _, file := range order {
		kept = append(kept, txtar.File{Name: name + "/" + file, Data: []byte(files[file])})
	}
	write(t, s.file, string(txtar.Format(&txtar.Archive{Comment: s.Comment, Files: kept})))
}

// program finds a program of another package that tests compare with.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		notHere(t, err.Error())
	}
	return path
}

// notHere skips a test that this machine cannot run. In CI it can.
func notHere(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// run runs a command to its good end and gives what it printed.
func run(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args, err, stderr.Bytes(), stdout.Bytes())
	}
	return stdout.String()
}
