package storageinit

import (
	"strings"

	"golang.org/x/sys/unix"
)

// ListenUevents opens the kernel's uevent socket, include/linux/netlink.h group
// 1. It is opened before the first module is loaded, so no event is missed.
func (l *Linux) ListenUevents() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return failed("netlink socket", err)
	}
	// Hundreds of devices may appear while a slow one is mounted.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	const kernelGroup = 1
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		unix.Close(fd)
		return failed("bind the netlink socket", err)
	}
	l.uevent = fd
	return nil
}

// WaitUevent waits for an event that can bring a device.
func (l *Linux) WaitUevent(deadline int64) (changed string, ok bool, err error) {
	buf := make([]byte, 16<<10)
	for {
		// Only the kernel can be the sender: there is no other process.
		n, err := unix.Read(l.uevent, buf)
		switch err {
		case nil:
			if name, relevant := parseUevent(string(buf[:n])); relevant {
				return name, true, nil
			}
		case unix.EINTR:
		case unix.ENOBUFS:
			return "", true, nil
		case unix.EAGAIN:
			left := deadline - l.Now()
			if left <= 0 {
				return "", false, nil
			}
			fds := []unix.PollFd{{Fd: int32(l.uevent), Events: unix.POLLIN}}
			// Rounded up, or the last millisecond would be a busy loop.
			if _, err := unix.Poll(fds, int(min(left/1000+1, 1<<30))); err != nil && err != unix.EINTR {
				return "", false, failed("poll", err)
			}
		default:
			return "", false, failed("read device events", err)
		}
	}
}

// parseUevent reads ACTION@DEVPATH and the KEY=VALUE fields that follow, each
// ended by NUL (lib/kobject_uevent.c).
func parseUevent(message string) (name string, relevant bool) {
	var action, devpath, subsystem string
	for field := range strings.SplitSeq(message, "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "ACTION":
			action = value
		case "DEVPATH":
			devpath = value
		case "SUBSYSTEM":
			subsystem = value
		}
	}
	name = devpath[strings.LastIndexByte(devpath, '/')+1:]
	return name, (subsystem == "block" || subsystem == "scsi_host") && action != "remove" && name != ""
}
