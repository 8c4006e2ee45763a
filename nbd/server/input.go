package server

import (
	"io"
	"net"
)

// inputSize is how much is read from a connection at a time, in bytes: a request with a payload of inlineLimit, or many small ones.
const inputSize = 64 << 10

// idleSize is what a connection keeps to wait for the next request with.
const idleSize = 512

// input reads ahead, so that many small requests cost one system call. It holds a big buffer only while it has something to do, and the server has
// memory for it.
type input struct {
	c      *conn
	nc     net.Conn
	idle   [idleSize]byte
	big    *[]byte // nil while idle is what buf lies in
	buf    []byte
	r, w   int // buf[r:w] is what was read and not used
	want   int // bytes that are needed to go on
	ready  ready
	owed   bool // the client has begun a request that it must end
	lifted bool // the end of a drain was put off for that
}

func (in *input) init(c *conn, nc net.Conn) {
	in.release()
	in.c, in.nc = c, nc
	in.buf, in.r, in.w = in.idle[:], 0, 0
	in.ready.init(nc, in.room, in.shrink)
}

// release gives the big buffer back. What lies in it is lost.
func (in *input) release() {
	if in.big != nil {
		in.giveBig()
	}
	in.buf, in.r, in.w = nil, 0, 0
}

// buffered returns how many bytes were read and not used.
func (in *input) buffered() int { return in.w - in.r }

// holds reports whether next can return n bytes, at most inputSize: so many as idleSize it always can.
func (in *input) holds(n int) bool { return n <= idleSize || in.big != nil || in.grow() }

// next returns the next n bytes, which it holds. They are valid until the next call.
func (in *input) next(n int) ([]byte, error) {
	for in.buffered() < n {
		if err := in.fill(n); err != nil {
			return nil, err
		}
	}
	p := in.buf[in.r : in.r+n]
	in.r += n
	return p, nil
}

// fill reads once, where there are less than n bytes. It returns io.EOF only where there are none.
func (in *input) fill(n int) error {
	in.want = n
	k, err := in.retry(func() (int, error) {
		if in.ready.usable() {
			return in.ready.read()
		}
		in.shrink()
		return in.nc.Read(in.room())
	})
	in.w += k
	if k > 0 {
		return nil
	}
	if err == io.EOF && in.buffered() > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// retry runs a read, which returns at least one byte or an error, and again where a drain that had to wait has interrupted it.
func (in *input) retry(read func() (int, error)) (int, error) {
	for {
		in.c.reading.Store(true)
		k, err := read()
		in.c.reading.Store(false)
		switch {
		case k > 0:
			in.c.progress.Add(1)
			return k, nil
		case err == nil:
			return 0, io.ErrNoProgress
		case !in.owed || in.lifted || !in.c.drained(err):
			return 0, err
		}
		in.lifted = true
		in.c.lift()
	}
}

// room returns where to read the bytes that are missing to want, and as many more as fit. Only a connection whose descriptor cannot be watched waits
// with it.
func (in *input) room() []byte {
	wanted := in.big == nil && (in.ready.usable() || in.want > idleSize || in.w == idleSize)
	if wanted && in.grow() {
		return in.buf[in.w:]
	}
	if in.r+in.want > len(in.buf) || in.r == in.w {
		in.r, in.w = 0, copy(in.buf, in.buf[in.r:in.w])
	}
	return in.buf[in.w:]
}

// shrink gives the big buffer back, if the small one does.
func (in *input) shrink() {
	if in.big == nil || in.want > idleSize || in.buffered() >= idleSize {
		return
	}
	k := copy(in.idle[:], in.buf[in.r:in.w])
	in.giveBig()
	in.buf, in.r, in.w = in.idle[:], 0, k
}

// grow takes a big buffer, if there is memory.
func (in *input) grow() bool {
	if !in.c.server.budget.tryTake(inputSize) {
		return false
	}
	big := in.c.server.buffers.get(inputSize)
	in.r, in.w = 0, copy(*big, in.buf[in.r:in.w])
	in.big, in.buf = big, *big
	return true
}

func (in *input) giveBig() {
	in.c.server.buffers.put(in.big)
	in.c.server.budget.give(inputSize)
	in.big = nil
}

// full fills p.
func (in *input) full(p []byte) error {
	k := copy(p, in.buf[in.r:in.w])
	in.r += k
	for p = p[k:]; len(p) > 0; p = p[k:] {
		var err error
		if k, err = in.retry(func() (int, error) { return in.nc.Read(p) }); k == 0 {
			return unexpected(err)
		}
	}
	return nil
}

// skip reads n bytes and forgets them.
func (in *input) skip(n uint64) error {
	for n > 0 {
		if in.buffered() == 0 {
			if err := in.fill(int(min(n, inputSize))); err != nil {
				return unexpected(err)
			}
		}
		k := min(n, uint64(in.buffered()))
		in.r += int(k)
		n -= k
	}
	return nil
}
