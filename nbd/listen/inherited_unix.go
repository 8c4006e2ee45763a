//go:build unix

package listen

import (
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

const (
	firstInherited = 3   // descriptor; sd_listen_fds(3) calls it SD_LISTEN_FDS_START
	maxInherited   = 256 // sockets
)

// Inherited returns the listening sockets that systemd, or who does as it does, has handed to this process (sd_listen_fds(3)); none where it has handed none.
// It removes the variables that say so from the environment, for the processes that this one starts.
func Inherited() ([]net.Listener, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid == "" || count == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 || n > maxInherited {
		return nil, fmt.Errorf("LISTEN_FDS=%s: not a number of sockets", count)
	}
	var list []net.Listener
	for fd := firstInherited; fd < firstInherited+n; fd++ {
		l, err := inherit(fd)
		if err != nil {
			_ = CloseAll(list) // the error matters more
			return nil, fmt.Errorf("descriptor %d, which LISTEN_FDS announces: %w", fd, err)
		}
		list = append(list, l)
	}
	return list, nil
}

// inherit makes a listener of a descriptor.
func inherit(fd int) (net.Listener, error) {
	unix.CloseOnExec(fd)
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, err
	}
	if listening == 0 {
		return nil, fmt.Errorf("%w: it is a connection, and not a socket that listens", unix.EINVAL)
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close() // what is returned has a copy
	if l, err := net.FileListener(f); err == nil {
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false) // the file is theirs
		}
		return l, nil
	} else if v, e := vsock.FileListener(f); e == nil {
		return v, nil
	} else {
		return nil, err
	}
}
