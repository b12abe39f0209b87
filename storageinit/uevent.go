package storageinit

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"
)

// ListenUevents opens the uevent socket, include/linux/netlink.h. It is opened
// before the first module is loaded, so no event is missed.
func (l *Linux) ListenUevents() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return failed("netlink socket", err)
	}
	// Hundreds of devices may appear while a slow one is mounted.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	const kernelGroup, udevGroup = 1, 2
	group := uint32(kernelGroup)
	if l.Udev {
		group = udevGroup
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: group}); err != nil {
		unix.Close(fd)
		return failed("bind the netlink socket", err)
	}
	l.uevent = fd
	return nil
}

// WaitUevent waits for an event that matters to a boot.
func (l *Linux) WaitUevent(deadline int64) (event Uevent, ok bool, err error) {
	buf := make([]byte, 16<<10)
	for {
		// Only the kernel and root can be the sender.
		n, err := unix.Read(l.uevent, buf)
		switch err {
		case nil:
			event := parseUevent(string(buf[:n]))
			if l.Udev {
				event.Modalias = "" // udev loads the drivers
			}
			if event != (Uevent{}) {
				return event, true, nil
			}
		case unix.EINTR:
		case unix.ENOBUFS:
			return Uevent{}, true, nil
		case unix.EAGAIN:
			left := deadline - l.Now()
			if left <= 0 {
				return Uevent{}, false, nil
			}
			fds := []unix.PollFd{{Fd: int32(l.uevent), Events: unix.POLLIN}}
			// Rounded up, or the last millisecond would be a busy loop.
			if _, err := unix.Poll(fds, int(min(left/1000+1, 1<<30))); err != nil && err != unix.EINTR {
				return Uevent{}, false, failed("poll", err)
			}
		default:
			return Uevent{}, false, failed("read device events", err)
		}
	}
}

// parseUevent reads ACTION@DEVPATH and the KEY=VALUE fields that follow, each
// ended by NUL (lib/kobject_uevent.c), or the same fields behind udev's header.
// What does not matter to a boot gives the zero value.
func parseUevent(message string) Uevent {
	// "libudev\0", a magic number, the size of the header, then where the fields
	// begin, as 32 bits in the machine's order.
	const offsetAt = 16
	if strings.HasPrefix(message, "libudev\x00") {
		if len(message) < offsetAt+4 {
			return Uevent{}
		}
		offset := binary.NativeEndian.Uint32([]byte(message[offsetAt : offsetAt+4]))
		message = message[min(int64(offset), int64(len(message))):]
	}
	var action, devpath, subsystem, modalias string
	for field := range strings.SplitSeq(message, "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "ACTION":
			action = value
		case "DEVPATH":
			devpath = value
		case "SUBSYSTEM":
			subsystem = value
		case "MODALIAS":
			modalias = value
		}
	}
	if action == "remove" {
		return Uevent{}
	}
	event := Uevent{SCSIHost: subsystem == "scsi_host", Modalias: modalias}
	if subsystem == "block" {
		event.Block = devpath[strings.LastIndexByte(devpath, '/')+1:]
	}
	return event
}
