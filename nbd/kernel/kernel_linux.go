package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgtool/imgtool/block"
)

// The netlink family of NBD devices: linux/nbd-netlink.h.
const (
	familyName    = "nbd"
	familyVersion = 1

	cmdConnect    = 1
	cmdDisconnect = 2
	cmdStatus     = 5

	attrIndex       = 1 // u32
	attrSizeBytes   = 2 // u64
	attrBlockBytes  = 3 // u64
	attrTimeout     = 4 // u64, seconds
	attrServerFlags = 5 // u64, those of the export
	attrSockets     = 7 // nested
	attrDeadConn    = 8 // u64, seconds
	attrDevices     = 9 // nested

	socketItem = 1 // nested, in attrSockets
	socketFD   = 1 // u32, in socketItem

	deviceItem      = 1 // nested, in attrDevices
	deviceIndex     = 1 // u32, in deviceItem
	deviceConnected = 2 // u8, in deviceItem
)

// connectAttrs returns the attributes of the command CONNECT.
func connectAttrs(c Config) []byte {
	var b []byte
	if c.Index != Any {
		b = attr32(b, attrIndex, uint32(c.Index))
	}
	b = attr64(b, attrSizeBytes, uint64(block.RoundDown(c.Size, c.Block)))
	b = attr64(b, attrBlockBytes, uint64(c.Block))
	b = attr64(b, attrServerFlags, uint64(c.Flags))
	if c.Timeout > 0 {
		b = attr64(b, attrTimeout, seconds(c.Timeout))
	}
	if c.DeadConnTimeout > 0 {
		b = attr64(b, attrDeadConn, seconds(c.DeadConnTimeout))
	}
	var sockets []byte
	for _, f := range c.Connections {
		sockets = attr(sockets, socketItem|nested, attr32(nil, socketFD, uint32(f.Fd())))
	}
	return attr(b, attrSockets|nested, sockets)
}

// seconds rounds up: a time that is not 0 stays so.
func seconds(d time.Duration) uint64 { return uint64((d + time.Second - 1) / time.Second) }

// Connect makes a disk and returns its index. It returns block.ErrBusy where the device is a disk already, and errors.ErrUnsupported where the
// kernel has no NBD devices.
func Connect(c Config) (int, error) {
	if err := c.check(); err != nil {
		return 0, err
	}
	var index uint32
	err := with(func(l *link) error {
		answer, err := l.call(cmdConnect, connectAttrs(c))
		if err == nil {
			index, err = uint32At(answer, attrIndex)
		}
		return err
	})
	switch {
	case errors.Is(err, unix.EBUSY):
		return 0, block.ErrorOf(block.ErrBusy, "%s is in use", Path(c.Index))
	case errors.Is(err, unix.EINVAL):
		err = fmt.Errorf("the kernel refuses the connection: %w", err)
		return 0, block.WithHint(err, "the log of the kernel says why: dmesg shows it")
	case errors.Is(err, errors.ErrUnsupported):
		return 0, err
	case err != nil:
		return 0, fmt.Errorf("cannot make an NBD device: %w", err)
	}
	return int(index), nil
}

// Disconnect ends the connections of a disk, after requests in flight; what the kernel has not written yet is lost. It does nothing where there are none.
func Disconnect(index int) error {
	err := with(func(l *link) error {
		_, err := l.call(cmdDisconnect, attr32(nil, attrIndex, uint32(index)))
		return err
	})
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("the kernel has no %s", Path(index))
	case err != nil:
		return fmt.Errorf("%s cannot be disconnected: %w", Path(index), err)
	}
	return nil
}

// Connected reports whether a device is a disk.
func Connected(index int) (bool, error) {
	connected := false
	err := with(func(l *link) error {
		answer, err := l.call(cmdStatus, attr32(nil, attrIndex, uint32(index)))
		if err == nil {
			connected, err = connectedIn(answer, uint32(index))
		}
		return err
	})
	return connected, err
}

// connectedIn looks for a device in the answer to STATUS.
func connectedIn(answer []byte, index uint32) (bool, error) {
	lists, err := find(answer, attrDevices)
	if err != nil {
		return false, err
	}
	for _, list := range lists {
		items, err := find(list, deviceItem)
		if err != nil {
			return false, err
		}
		for _, item := range items {
			n, err := uint32At(item, deviceIndex)
			if err != nil {
				return false, err
			}
			state, err := find(item, deviceConnected)
			if err != nil {
				return false, err
			}
			if n == index && len(state) == 1 && len(state[0]) == 1 {
				return state[0][0] != 0, nil
			}
		}
	}
	return false, nil
}

// with calls f with a link.
func with(f func(*link) error) error {
	l, err := dial()
	switch {
	case errors.Is(err, unix.ENOENT):
		return block.WithHint(block.ErrorOf(errors.ErrUnsupported, "the kernel has no NBD devices"), "modprobe nbd loads them, where the kernel comes with them")
	case err != nil:
		return err
	}
	err = f(l)
	if errors.Is(err, unix.EPERM) {
		err = os.ErrPermission
	}
	return errors.Join(err, l.close())
}

// Take returns a descriptor of its own for what a connection stands on: what client.Conn.Hijack wants.
func Take(conn net.Conn) (*os.File, error) {
	s, ok := conn.(syscall.Conn)
	if !ok {
		return nil, errors.New("only sockets can be handed to the kernel")
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var failed error
	err = raw.Control(func(from uintptr) { fd, failed = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "socket"), nil
}

// Pair returns two connected sockets, for a server in this process: both ends are connections like others.
func Pair() (server, client net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, e := net.FileConn(f) // which duplicates the descriptor
		err = errors.Join(err, e, f.Close())
		conns[i] = c
	}
	if err != nil {
		for _, c := range conns {
			if c != nil {
				err = errors.Join(err, c.Close())
			}
		}
		return nil, nil, err
	}
	return conns[0], conns[1], nil
}
