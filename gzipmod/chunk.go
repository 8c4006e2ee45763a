package gzipmod

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/deflate"
	"github.com/imgtool/imgtool/compress/inflate"
)

// chunkEnd is what a chunk's DEFLATE form ends with: an empty stored block, which aligns it to a byte.
const chunkEnd = "\x00\x00\xff\xff"

// packer compresses chunks. It is used by one goroutine at a time.
type packer struct {
	e     *deflate.Encoder
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
	e, err := deflate.NewEncoder(deflate.Options{Level: level})
	return &packer{e: e}, err
}

// pack appends the DEFLATE form of p to buf. It refers to nothing before it, and is not final.
func (k *packer) pack(buf, p []byte) []byte {
	if block.IsZero(p) {
		return deflate.AppendZeros(buf, int64(len(p)))
	}
	return k.e.Append(buf, p, deflate.Sync)
}

// unpacker decompresses chunks. It is used by one goroutine at a time.
type unpacker struct {
	whole  inflate.Decoder // of chunks that fit in memory
	parts  *inflate.Reader // of those that need not be there whole
	packed []byte          // for what is read from the file
	plain  []byte          // for what is decoded and only looked at
}

func newUnpacker() *unpacker { return &unpacker{} }

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

// stream makes of packed, which room returned, a DEFLATE stream that ends.
func (u *unpacker) stream(packed []byte) ([]byte, error) {
	if !bytes.HasSuffix(packed, []byte(chunkEnd)) {
		return nil, errChunkEnd
	}
	return append(packed, finalBlock...), nil
}

// unpack decodes packed, which room returned, into all of p. The chunk must be exactly as long as p, and end where packed ends.
func (u *unpacker) unpack(p, packed []byte) error {
	stream, err := u.stream(packed)
	if err != nil {
		return err
	}
	used, err := u.whole.Decode(p, stream, inflate.Raw)
	switch {
	case errors.Is(err, inflate.ErrShort):
		return fmt.Errorf("it ends before its %d bytes are there", len(p))
	case errors.Is(err, inflate.ErrLong):
		return fmt.Errorf("it holds more than %d bytes", len(p))
	case err != nil:
		return err
	case used != len(stream):
		return fmt.Errorf("it ends %d bytes early", len(stream)-used)
	}
	return nil
}

// maxWhole is how long a chunk may be that sum decodes in one go, in bytes.
const maxWhole = minChunk

// sum is unpack without the bytes: it returns the CRC-32 of the n bytes that packed must hold.
func (u *unpacker) sum(packed []byte, n int64) (uint32, error) {
	if n <= maxWhole {
		p := u.scratch(n)
		if err := u.unpack(p, packed); err != nil {
			return 0, err
		}
		return crc32.ChecksumIEEE(p), nil
	}
	stream, err := u.stream(packed)
	if err != nil {
		return 0, err
	}
	if u.parts == nil {
		u.parts = new(inflate.Reader)
	}
	u.parts.Reset(bytes.NewReader(stream))
	if _, err := u.parts.Begin(inflate.Raw); err != nil {
		return 0, err
	}
	var crc uint32
	var got int64
	for {
		p, err := u.parts.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
		crc = crc32.Update(crc, crc32.IEEETable, p)
		if got += int64(len(p)); got > n {
			return 0, fmt.Errorf("it holds more than %d bytes", n)
		}
	}
	switch early := int64(len(stream)) - u.parts.InputOffset(); {
	case got < n:
		return 0, fmt.Errorf("it ends after %d of %d bytes", got, n)
	case early != 0:
		return 0, fmt.Errorf("it ends %d bytes early", early)
	}
	return crc, nil
}

// consumed decodes the start of stream into all of p, and returns how many bytes that took.
func (u *unpacker) consumed(p, stream []byte) (int, error) { return u.whole.Fill(p, stream) }

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
