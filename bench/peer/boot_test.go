package peer

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"initoverlayfs/builder"
	"initoverlayfs/vmtest/fixtures"
)

// Each peer reaches multi-user.target with a real tree: it does all that a boot
// of ours does.
func TestPeersBoot(t *testing.T) {
	fixtures.RequireBoots(t, fixtures.All)
	program := filepath.Join(t.TempDir(), "bin")
	if err := fixtures.BuildPrograms(program); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, kernel string
		make         func(t *testing.T, k fixtures.Kernel) string // an initramfs
	}{
		{"erofs in an initramfs", "kernel-6.1", func(t *testing.T, k fixtures.Kernel) string {
			out := filepath.Join(t.TempDir(), "initramfs.img")
			if err := ErofsInitramfs(t.Context(), Options{
				Source: builder.Source{Archive: fixtures.Path(t, "dracut-6.1.img")}, KernelVersion: k.Version, ModulesDir: k.Modules,
				Busybox: fixtures.Path(t, "busybox-static"), Output: out, TempDir: t.TempDir(),
			}); err != nil {
				t.Fatal(err)
			}
			return out
		}},
		{"dracut squash", "kernel-6.1", func(t *testing.T, _ fixtures.Kernel) string { return fixtures.Path(t, "dracut-6.1-squash.img") }},
		{"dracut squash-erofs", "kernel-sid", func(t *testing.T, _ fixtures.Kernel) string { return fixtures.Path(t, "dracut-sid-squash-erofs.img") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := fixtures.Path(t, "root-bookworm.ext4")
			k := fixtures.OpenKernel(t, test.kernel)
			out, err := exec.Command(filepath.Join(program, "initoverlayfs"), "boot", "--json", "--kver", k.Version, "--kernel", k.Image,
				"--backend", "plain", "--initramfs", test.make(t, k), "--rootdisk", root).Output()
			var d struct {
				OK          bool     `json:"ok"`
				InitfsInitS *float64 `json:"initfs_init_s"`
				MultiUserS  *float64 `json:"multi_user_s"`
				Error       string   `json:"error"`
			}
			if jsonErr := json.Unmarshal(out, &d); jsonErr != nil {
				t.Fatalf("%v, %v: %s", err, jsonErr, out)
			}
			if err != nil || !d.OK || d.InitfsInitS == nil || d.MultiUserS == nil {
				t.Errorf("%v: %s", err, d.Error)
			}
		})
	}
}
