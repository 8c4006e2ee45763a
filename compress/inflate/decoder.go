package inflate

// A Decoder decodes streams that lie in memory whole. The zero value is ready. It holds tables, some 20 KiB, which are reused from one stream to
// the next, and is used by one goroutine at a time. It allocates nothing, but for FEXTRA, FNAME and FCOMMENT of a gzip header.
type Decoder struct {
	c core
}

// Decode decodes the stream at the start of src into dst, which it must fill exactly, and returns how many bytes of src it takes: rounded up to
// a byte, framing included. Checksums are checked.
//
// The error is [ErrShort] where the stream ends before dst is full, [ErrLong] where it goes on after that, io.ErrUnexpectedEOF where src ends
// before the stream, and *[Error] otherwise, or says that f is unknown; used is 0 then. After an error dst may hold anything. Nothing beyond
// len(dst) is ever written, whatever cap(dst) is.
func (d *Decoder) Decode(dst, src []byte, f Framing) (used int, err error) {
	if f > Gzip {
		return 0, errFraming
	}
	c := &d.c
	c.give(dst, src)
	defer c.release()
	if _, err := c.framingHeader(f); err != nil {
		return 0, err
	}
	c.stop = len(dst)
	switch stop, err := c.run(); {
	case err != nil:
		return 0, err
	case stop == stopFull:
		return 0, ErrLong
	case c.op < len(dst):
		return 0, ErrShort
	}
	if err := c.trailer(f, f.sum(f.firstSum(), dst), int64(len(dst))); err != nil {
		return 0, err
	}
	return c.ip, nil
}

// Fill decodes the raw DEFLATE data at the start of src until dst is full, and does not look at what comes after, which need not be a stream
// that ends: what follows a compressed cluster of qcow2 is padding, or another cluster. It returns how many bytes of src it takes, rounded up.
// Errors are those of Decode, but for ErrLong.
func (d *Decoder) Fill(dst, src []byte) (used int, err error) {
	c := &d.c
	c.give(dst, src)
	defer c.release()
	c.stop = len(dst) - 1
	stop, err := c.run()
	if err != nil {
		return 0, err
	}
	if stop == stopEnd && c.op < len(dst) {
		return 0, ErrShort
	}
	return int((c.bitOffset() + 7) / 8), nil
}

// give makes the core ready to decode src into dst.
func (c *core) give(dst, src []byte) {
	c.in, c.ip = src, 0
	c.out, c.op, c.low = dst, 0, 0
	c.reset()
}

// release forgets the caller's memory.
func (c *core) release() { c.in, c.out = nil, nil }
