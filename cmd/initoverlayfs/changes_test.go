package main

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"initoverlayfs/initrd/bootconf"
)

// Few changes are told one by one, many of one reason in one line.
func TestChangeLines(t *testing.T) {
	modules := func(n int) (changes []bootconf.Change) {
		for i := range n {
			changes = append(changes, bootconf.Change{Path: fmt.Sprintf("lib/modules/6.1/%c/m%d.ko.xz", 'a'+i%2, i), Reason: "unpacked"})
		}
		return changes
	}
	program := bootconf.Change{Path: "usr/sbin/switch_root", Reason: "ours"}
	for _, test := range []struct {
		changes []bootconf.Change
		want    []string
	}{
		{nil, nil},
		{append(modules(2), program), []string{
			"changed /lib/modules/6.1/a/m0.ko.xz: unpacked", "changed /lib/modules/6.1/b/m1.ko.xz: unpacked", "changed /usr/sbin/switch_root: ours",
		}},
		{append(modules(700), program), []string{"changed 700 files below /lib/modules/6.1: unpacked", "changed /usr/sbin/switch_root: ours"}},
	} {
		if diff := cmp.Diff(test.want, changeLines(test.changes)); diff != "" {
			t.Errorf("%d changes (-want +got):\n%s", len(test.changes), diff)
		}
	}
}
