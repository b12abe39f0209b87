package builder

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/vmtest/fixtures"
)

// The image of a real initramfs has every path of it with its mode, owner,
// time, size, content, links and device number, except for what the manifest
// lists.
func TestRealTrees(t *testing.T) {
	if boots, err := fixtures.Wanted(); err != nil || boots == fixtures.None {
		t.Skip("INITOVERLAYFS_VM asks for nothing that takes long: ", err)
	}
	for _, test := range []struct {
		fixture string
		kind    string
		changes []string
		links   int // names of the file that has the most
	}{
		{"dracut-6.1.img", bootconf.KindDracutSystemd, nil, 2},
		{"dracut-nosystemd-6.1.img", bootconf.KindDracut, []string{"usr/sbin/switch_root"}, 2},
		// Half of the names are busybox.
		{"initramfs-tools-6.1.img", bootconf.KindInitramfsTools, []string{"usr/sbin/run-init", "usr/sbin/switch_root"}, 250},
		{"dracut-6.12.img", bootconf.KindDracutSystemd, nil, 1},
		{"dracut-sid.img", bootconf.KindDracutSystemd, nil, 1},
	} {
		t.Run(test.fixture, func(t *testing.T) {
			source := fixtures.Path(t, test.fixture)
			original, contents := treeOf(t, source)
			want := entriesOfTree(t, original, contents.Open)

			o := testLayouts()["lz4"]
			o.TempDir = t.TempDir()
			tree, err := readTree(context.Background(), Source{Archive: source}, native{}, o)
			if err != nil {
				t.Fatal(err)
			}
			defer tree.close()
			if got := KindOf(tree.Tree); got != test.kind {
				t.Errorf("kind %s, want %s", got, test.kind)
			}
			if len(tree.Dropped) > 0 {
				t.Errorf("dropped: %q", tree.Dropped)
			}
			program := filepath.Join(t.TempDir(), "storage-init")
			if err := os.WriteFile(program, []byte("ours"), 0o755); err != nil {
				t.Fatal(err)
			}
			changes, err := replaceSwitchRoot(tree.Tree, tree.writer, test.kind, program)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "image")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := tree.writeImage(context.Background(), f, 0); err != nil {
				t.Fatal(err)
			}
			got := entriesOfImage(t, path)

			var paths []string
			for _, c := range changes {
				paths = append(paths, c.Path)
			}
			if diff := cmp.Diff(test.changes, paths); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			most := 0
			differ := 0
			for path, w := range want {
				g := got[path]
				if slices.Contains(paths, path) {
					if g.SHA256 != digestOf([]byte("ours")) || g.Mode != w.Mode || g.MTime != w.MTime || g.NLink != len(paths) {
						t.Errorf("%s is not our program: %+v", path, g)
					}
					continue
				}
				if w.Mode&0o170000 == 0o100000 {
					most = max(most, w.NLink)
				}
				// What our program took the place of has fewer names, and its
				// first one may be another.
				for _, p := range paths {
					if want[p].Inode == w.Inode {
						w.NLink--
					}
				}
				if diff := cmp.Diff(w, g); diff != "" {
					t.Errorf("%s (-archive +image):\n%s", path, diff)
					if differ++; differ > 10 {
						t.Fatal("and so on")
					}
				}
			}
			for path := range got {
				if _, ok := want[path]; !ok {
					t.Errorf("%s is not in the archive", path)
				}
			}
			if most < test.links || len(want) < 200 {
				t.Errorf("%d paths, at most %d links: this tree proves little", len(want), most)
			}
		})
	}
}
