// Package dracut_test runs the hooks, each a few lines of shell, with a program
// in the place of initoverlayfs.
package dracut_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Each hook hands its arguments on as they are, and the program's exit status back.
func TestHooksCallTheVerb(t *testing.T) {
	for path, name := range hooks(t) {
		if name == "grub" {
			continue // prints a menu; package bootentry tests it
		}
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			bin := t.TempDir()
			fake := "#!/bin/sh\nprintf '<%s>' \"$@\"\necho told >&2\nexit 7\n"
			if err := os.WriteFile(filepath.Join(bin, "initoverlayfs"), []byte(fake), 0o755); err != nil {
				t.Fatal(err)
			}
			stdout, stderr, status := runHook(t, path, bin, "6.1.0-9 amd64", "", "*")
			if want := "<hook><" + name + "><6.1.0-9 amd64><><*>"; stdout != want || stderr != "told\n" || status != 7 {
				t.Errorf("%s printed %q and %q, status %d; want %q, \"told\\n\", 7", path, stdout, stderr, status, want)
			}
		})
	}
}

// A package that was removed leaves some hooks behind until it is purged.
func TestHooksWithoutTheProgram(t *testing.T) {
	for path := range hooks(t) {
		if stdout, stderr, status := runHook(t, path, t.TempDir(), "6.1.0-9-amd64"); stdout != "" || stderr != "" || status != 0 {
			t.Errorf("%s printed %q and %q, status %d; want silence and 0", path, stdout, stderr, status)
		}
	}
}

// hooks gives the path of each hook and the name by which it calls the program.
func hooks(t *testing.T) map[string]string {
	t.Helper()
	names := map[string]string{
		"kernel-install/95-initoverlayfs.install": "kernel-install",
		"kernel-postinst.d/zz-initoverlayfs":      "kernel-postinst",
		"kernel-postrm.d/initoverlayfs":           "kernel-postrm",
		"initramfs-post-update.d/initoverlayfs":   "initramfs-post-update",
		"initcpio-post/initoverlayfs":             "mkinitcpio",
		"grub.d/09_initoverlayfs":                 "grub",
	}
	found, err := filepath.Glob("hooks/*/*")
	if err != nil || len(found) == 0 {
		t.Fatalf("no hooks: %v", err)
	}
	calls := map[string]string{}
	for _, path := range found {
		name, ok := names[strings.TrimPrefix(path, "hooks/")]
		if !ok {
			t.Errorf("%s is in no test", path)
		}
		calls[path] = name
	}
	return calls
}

// runHook runs a hook with the programs of one folder.
func runHook(t *testing.T, path, bin string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command("./"+path, args...)
	cmd.Env = []string{"PATH=" + bin}
	var out, problems strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatalf("%s: %v", path, err)
		}
		status = exit.ExitCode()
	}
	return out.String(), problems.String(), status
}
