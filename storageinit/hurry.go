package storageinit

import "strings"

// rcuPath decides how the kernel waits until nobody reads what it is about to
// free: kernel/ksysfs.c.
const rcuPath = "/sys/kernel/rcu_expedited"

// hurry makes those waits short, by asking every CPU at once in place of waiting
// for the timer's ticks, of which each wait takes several. The kernel itself boots
// so and stops when it starts PID 1, yet loading drivers and making and dropping
// mounts is full of such waits, and there is no other work that would be
// disturbed. Where the kernel prefers the long ones, as for real-time work, this
// changes nothing.
func (b *boot) hurry() {
	text, err := b.sys.ReadFile(rcuPath)
	if err != nil || strings.TrimSpace(text) != "0" {
		return // the kernel has no choice, or hurries already
	}
	b.hurried = b.sys.WriteFile(rcuPath, "1") == nil
}

// calmDown gives the kernel back the setting that it had.
func (b *boot) calmDown() {
	if !b.hurried {
		return
	}
	b.hurried = false
	if err := b.sys.WriteFile(rcuPath, "0"); err != nil {
		b.log(levelWarn, "write "+rcuPath+": "+err.Error())
	}
}
