package gzindex

import (
	"bytes"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"

	"github.com/imgtool/imgtool/compress/inflate"
)

// state is what a decoder needs at a point besides its place.
type state struct {
	left   uint16 // bytes that are left of a stored block
	nlit   uint16 // in a dynamic block: code lengths of the literal/length code, HLIT+257
	ndist  uint8  // and of the distance code, HDIST+1
	window uint16 // bytes before the point that may be referred to

	// The code lengths and then the window, as DEFLATE data: in memory, or length bytes from off of a source, with CRC-32 sum.
	packed []byte
	off    int64
	length uint16
	sum    uint32
}

// size returns how many bytes are packed.
func (s *state) size() int { return int(s.nlit) + int(s.ndist) + int(s.window) }

// stored returns the length and the CRC-32 of the packed form.
func (s *state) stored() (length uint16, sum uint32) {
	if s.packed == nil {
		return s.length, s.sum
	}
	return uint16(len(s.packed)), crc32.ChecksumIEEE(s.packed)
}

// load returns the packed form, from src where it is not in memory.
func (s *state) load(src io.ReaderAt) ([]byte, error) {
	if s.packed != nil || s.length == 0 {
		return s.packed, nil
	}
	p := make([]byte, s.length)
	if _, err := io.ReadFull(io.NewSectionReader(src, s.off, int64(len(p))), p); err != nil {
		return nil, err
	}
	if sum := crc32.ChecksumIEEE(p); sum != s.sum {
		return nil, corrupt("state", s.off, "its CRC-32 is %08x, not %08x", sum, s.sum)
	}
	return p, nil
}

// packer packs states.
type packer struct {
	raw []byte
	buf bytes.Buffer
	w   *flate.Writer
}

// pack returns the packed form of code lengths and a window; nil where both are empty.
func (p *packer) pack(lens, window []byte) []byte {
	p.raw = append(append(p.raw[:0], lens...), window...)
	if len(p.raw) == 0 {
		return nil
	}
	p.buf.Reset()
	if p.w == nil {
		w, err := flate.NewWriter(&p.buf, packLevel)
		if err != nil {
			panic("gzindex: " + err.Error())
		}
		p.w = w
	} else {
		p.w.Reset(&p.buf)
	}
	// A bytes.Buffer takes everything.
	_, _ = p.w.Write(p.raw)
	_ = p.w.Close()
	return bytes.Clone(p.buf.Bytes())
}

const packLevel = 1

// unpacker unpacks states.
type unpacker struct {
	raw []byte
	d   inflate.Decoder
}

// unpack returns the code lengths and the window of s, valid until the next call.
func (u *unpacker) unpack(s *state, src io.ReaderAt) (lens, window []byte, err error) {
	packed, err := s.load(src)
	if err != nil || len(packed) == 0 {
		return nil, nil, err
	}
	u.raw = append(u.raw[:0], make([]byte, s.size())...)
	if _, err := u.d.Decode(u.raw, packed, inflate.Raw); err != nil {
		return nil, nil, corrupt("state", s.off, "%w", err)
	}
	n := int(s.nlit) + int(s.ndist)
	return u.raw[:n], u.raw[n:], nil
}

// block returns in what a point of kind k lies.
func (k kind) block() inflate.BlockType {
	switch k {
	case inStored:
		return inflate.Stored
	case inFixed:
		return inflate.Fixed
	case inDynamic:
		return inflate.Dynamic
	}
	return inflate.Between
}
