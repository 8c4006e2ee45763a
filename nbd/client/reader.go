package client

import (
	"io"
	"net"
)

// reader reads what the server sends: headers and small payloads through a buffer, large payloads past it.
type reader struct {
	conn net.Conn
	buf  []byte
	r, w int  // what is buffered lies in buf[r:w]
	bulk bool // the last payload was large: read little ahead, so that little of the next one is copied
}

const (
	readBuffer = 64 << 10 // bytes
	readAhead  = 1 << 10  // bytes, among large payloads
	bulkRead   = 16 << 10 // bytes from which a payload is large
)

// peek returns the next n bytes, which stay. n is far below readBuffer. The slice holds until the next call.
func (r *reader) peek(n int) ([]byte, error) {
	if r.w-r.r >= n {
		return r.buf[r.r : r.r+n], nil
	}
	if r.buf == nil {
		r.buf = make([]byte, readBuffer)
	}
	copy(r.buf, r.buf[r.r:r.w])
	r.r, r.w = 0, r.w-r.r
	limit := len(r.buf)
	if r.bulk {
		limit = max(n, readAhead)
	}
	for r.w < n {
		k, err := r.conn.Read(r.buf[r.w:limit])
		if r.w += k; err != nil && r.w < n {
			if err == io.EOF && r.w > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return r.buf[:n], nil
}

// next is peek, and takes them.
func (r *reader) next(n int) ([]byte, error) {
	b, err := r.peek(n)
	if err == nil {
		r.r += n
	}
	return b, err
}

// read reads some of p: what is buffered, else from the connection.
func (r *reader) read(p []byte) (int, error) {
	if n := copy(p, r.buf[r.r:r.w]); n > 0 {
		r.r += n
		return n, nil
	}
	return r.conn.Read(p)
}

// full fills p.
func (r *reader) full(p []byte) error {
	for len(p) > 0 {
		n, err := r.read(p)
		p = p[n:]
		if err != nil && len(p) > 0 {
			return noEOF(err)
		}
	}
	return nil
}

// discard skips n bytes.
func (r *reader) discard(n int64) error {
	if r.buf == nil {
		r.buf = make([]byte, readBuffer)
	}
	for n > 0 {
		if r.r == r.w {
			k, err := r.conn.Read(r.buf[:min(n, int64(len(r.buf)))])
			r.r, r.w = 0, k
			if err != nil && k == 0 {
				return noEOF(err)
			}
		}
		k := min(n, int64(r.w-r.r))
		r.r += int(k)
		n -= k
	}
	return nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
