package server

import (
	"context"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgtool/imgtool/block"
)

const (
	pipeSize = pieceSize // bytes that a pipe holds
	maxPipes = 64        // that a server has at a time; a pipe is two descriptors
)

// pipe carries pages of a file to a socket without a copy. Bytes are in it before the reply begins, so that an error of the disk can still be told.
type pipe struct {
	r, w int
	size int64 // bytes that it can hold
	n    int64 // bytes in it
}

// pipes keeps pipes for the next user.
type pipes struct{ free, all chan *pipe }

func (p *pipes) init() { p.free, p.all = make(chan *pipe, maxPipes), make(chan *pipe, maxPipes) }

// get returns an empty pipe, nil where there are too many.
func (p *pipes) get() *pipe {
	select {
	case x := <-p.free:
		return x
	default:
	}
	select {
	case p.all <- nil:
	default:
		return nil
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		<-p.all
		return nil
	}
	size, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil {
		size, err = unix.FcntlInt(uintptr(fds[1]), unix.F_GETPIPE_SZ, 0)
	}
	x := &pipe{r: fds[0], w: fds[1], size: int64(size)}
	if err != nil || size < reserve {
		p.drop(x)
		return nil
	}
	return x
}

// put takes back a pipe.
func (p *pipes) put(x *pipe) {
	if x.n > 0 {
		p.drop(x)
		return
	}
	p.free <- x
}

func (p *pipes) drop(x *pipe) {
	unix.Close(x.r)
	unix.Close(x.w)
	<-p.all
}

// close closes the pipes that nobody uses.
func (p *pipes) close() {
	for {
		select {
		case x := <-p.free:
			p.drop(x)
		default:
			return
		}
	}
}

// fill moves up to n bytes at off into the pipe, and reports how many. Where it reports none, the bytes must be read.
func (x *pipe) fill(ctx context.Context, d block.Device, off, n int64) int64 {
	r, release, ok := block.Pin(ctx, d, off, min(n, x.size))
	if !ok {
		return 0
	}
	defer release()
	if r.Off%int64(os.Getpagesize())+r.Len > x.size {
		return 0 // a pipe holds so many pages, of which the first and the last one would not be whole
	}
	file, err := r.File.SyscallConn()
	if err != nil {
		return 0
	}
	_ = file.Control(func(fd uintptr) {
		for x.n < r.Len {
			at := r.Off + x.n
			k, err := unix.Splice(int(fd), &at, x.w, nil, int(r.Len-x.n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			if err == unix.EINTR {
				continue
			}
			if k <= 0 {
				return
			}
			x.n += k
		}
	})
	return x.n
}

// drainTo sends head, and then what is in the pipe. They go into one packet where there are packets. It adds to progress whenever something has gone.
func (x *pipe) drainTo(raw syscall.RawConn, head []byte, progress *atomic.Int64) error {
	var failed error
	err := raw.Write(func(fd uintptr) bool {
		for len(head) > 0 {
			k, err := unix.SendmsgN(int(fd), head, nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL)
			switch {
			case err == unix.EAGAIN:
				return false
			case err == unix.EINTR:
			case err != nil:
				failed = os.NewSyscallError("sendmsg", err)
				return true
			default:
				head = head[k:]
			}
		}
		for x.n > 0 {
			k, err := unix.Splice(x.r, nil, int(fd), nil, int(x.n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			switch {
			case err == unix.EAGAIN:
				return false
			case err == unix.EINTR:
			case err != nil:
				failed = os.NewSyscallError("splice", err)
				return true
			case k == 0:
				failed = io.ErrUnexpectedEOF
				return true
			default:
				x.n -= k
				progress.Add(1)
			}
		}
		return true
	})
	if err == nil {
		err = failed
	}
	return err
}

// rawConn returns what gives the descriptor of a connection to which pages are moved faster than copied, nil for any other: over TCP on one machine
// they are not.
func rawConn(nc net.Conn) syscall.RawConn {
	if c, ok := nc.(*net.UnixConn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}
