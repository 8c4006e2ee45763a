//go:build unix

package server

import (
	"io"
	"net"
	"syscall"
)

// ready reads from a connection when something is there, so that waiting needs no buffer.
type ready struct {
	raw syscall.RawConn // nil where the descriptor is not to be had
	try func(fd uintptr) bool
	n   int // what try has read
	err error
}

// init prepares for reading into what room returns. idle is called where there is nothing yet.
func (r *ready) init(nc net.Conn, room func() []byte, idle func()) {
	*r = ready{}
	switch c := nc.(type) {
	case *net.TCPConn:
		r.raw, _ = c.SyscallConn()
	case *net.UnixConn:
		r.raw, _ = c.SyscallConn()
	}
	r.try = func(fd uintptr) bool {
		for {
			r.n, r.err = syscall.Read(int(fd), room())
			switch r.err {
			case syscall.EINTR:
				continue
			case syscall.EAGAIN:
				idle()
				return false
			}
			return true
		}
	}
}

func (r *ready) usable() bool { return r.raw != nil }

// read waits until there is something, and reads it. At the end of the stream it returns io.EOF.
func (r *ready) read() (int, error) {
	if err := r.raw.Read(r.try); err != nil {
		return 0, err
	}
	switch {
	case r.err != nil:
		return 0, &net.OpError{Op: "read", Err: r.err}
	case r.n == 0:
		return 0, io.EOF
	}
	return r.n, nil
}
