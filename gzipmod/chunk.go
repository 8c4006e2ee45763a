package gzipmod

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"

	"github.com/imgtool/imgtool/block"
)

// chunkEnd is what a chunk's DEFLATE form ends with: an empty stored block, which aligns it to a byte.
const chunkEnd = "\x00\x00\xff\xff"

// packer compresses chunks. It is used by one goroutine at a time.
type packer struct {
	w     *flate.Writer
	plain []byte // for what is read from the image
}

// room returns a buffer for the n bytes of a chunk in the image.
func (k *packer) room(n int) []byte {
	if cap(k.plain) < n {
		k.plain = make([]byte, n)
	}
	return k.plain[:n]
}

func newPacker(level int) (*packer, error) {
	w, err := flate.NewWriter(io.Discard, level)
	return &packer{w: w}, err
}

// pack appends the DEFLATE form of p to buf. It refers to nothing before it, and is not final.
func (k *packer) pack(buf, p []byte) ([]byte, error) {
	if block.IsZero(p) {
		return encodeZeros(int64(len(p))).append(buf), nil
	}
	out := bytes.NewBuffer(buf)
	k.w.Reset(out)
	if _, err := k.w.Write(p); err != nil {
		return buf, err
	}
	err := k.w.Flush()
	return out.Bytes(), err
}

// unpacker decompresses chunks. It is used by one goroutine at a time.
type unpacker struct {
	src    bytes.Reader
	r      io.ReadCloser
	packed []byte // for what is read from the file
	plain  []byte // for what is decoded and only looked at
}

func newUnpacker() *unpacker {
	u := &unpacker{}
	u.r = flate.NewReader(&u.src)
	return u
}

// room returns a buffer for the n bytes of a chunk in the file, to be given to unpack.
func (u *unpacker) room(n int) []byte {
	if cap(u.packed) < n+len(finalBlock) {
		u.packed = make([]byte, n+len(finalBlock))
	}
	return u.packed[:n]
}

// scratch returns a buffer of n bytes to decode into, which the next call returns again.
func (u *unpacker) scratch(n int64) []byte {
	if int64(cap(u.plain)) < n {
		u.plain = make([]byte, n)
	}
	return u.plain[:n]
}

// unpack decodes packed, which room returned, into all of p. The chunk must be exactly as long as p, and end where packed ends.
func (u *unpacker) unpack(p, packed []byte) error {
	if err := u.begin(packed); err != nil {
		return err
	}
	if n, err := io.ReadFull(u.r, p); err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("it ends after %d of %d bytes", n, len(p))
	} else if err != nil {
		return err
	}
	return u.end(int64(len(p)))
}

// sum is unpack without the bytes: it returns the CRC-32 of the n bytes that packed must hold.
func (u *unpacker) sum(packed []byte, n int64) (uint32, error) {
	if err := u.begin(packed); err != nil {
		return 0, err
	}
	var crc uint32
	buf := u.scratch(min(n, 256<<10))
	for left := n; left > 0; {
		k, err := u.r.Read(buf[:min(left, int64(len(buf)))])
		crc = crc32.Update(crc, crc32.IEEETable, buf[:k])
		left -= int64(k)
		if err == io.EOF && left > 0 {
			return 0, fmt.Errorf("it ends after %d of %d bytes", n-left, n)
		}
		if err != nil && err != io.EOF {
			return 0, err
		}
	}
	return crc, u.end(n)
}

// begin makes u.r give what packed holds.
func (u *unpacker) begin(packed []byte) error {
	if !bytes.HasSuffix(packed, []byte(chunkEnd)) {
		return errChunkEnd
	}
	u.src.Reset(append(packed, finalBlock...))
	return u.r.(flate.Resetter).Reset(&u.src, nil)
}

// end checks that nothing is left after the n bytes that were read.
func (u *unpacker) end(n int64) error {
	var more [1]byte
	if k, err := u.r.Read(more[:]); k != 0 || err != io.EOF {
		return fmt.Errorf("it holds more than %d bytes", n)
	}
	if u.src.Len() != 0 {
		return fmt.Errorf("it ends %d bytes early", u.src.Len()-len(finalBlock))
	}
	return nil
}

// consumed decodes the start of stream into all of p, and returns how far the decoder has read, give or take a few bytes.
func (u *unpacker) consumed(p, stream []byte) (int, error) {
	u.src.Reset(stream)
	if err := u.r.(flate.Resetter).Reset(&u.src, nil); err != nil {
		return 0, err
	}
	if n, err := io.ReadFull(u.r, p); err != nil {
		return 0, fmt.Errorf("after %d of %d bytes: %w", n, len(p), err)
	}
	return len(stream) - u.src.Len(), nil
}

var errChunkEnd = fmt.Errorf("it does not end on an empty stored block")

// unpackers is a pool.
type unpackers struct{ pool sync.Pool }

func (p *unpackers) get() *unpacker {
	if u, ok := p.pool.Get().(*unpacker); ok {
		return u
	}
	return newUnpacker()
}

func (p *unpackers) put(u *unpacker) { p.pool.Put(u) }
