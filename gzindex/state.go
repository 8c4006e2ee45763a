package gzindex

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"slices"

	"github.com/imgtool/imgtool/compress/deflate"
	"github.com/imgtool/imgtool/compress/inflate"
)

// state is what a decoder needs at a point besides its place.
type state struct {
	left   uint16 // bytes that are left of a stored block
	nlit   uint16 // in a dynamic block: code lengths of the literal/length code, HLIT+257
	ndist  uint8  // and of the distance code, HDIST+1
	window uint16 // bytes before the point that may be referred to

	// The code lengths and then the window, packed: in memory, or length bytes from off of an index file, with CRC-32 sum.
	raw    uint16 // bytes before they are deflated
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

// A state is packed in two steps. Of the window the words of wordLen bytes that are all zero are left out, most of it as a rule: the code lengths
// are followed by a bit for each word, which is set where it is kept, lowest bit first, and by the words that are. That is then deflated.
const wordLen = 8

// words returns how many words a window of n bytes has. The last one may be cut.
func words(n int) int { return (n + wordLen - 1) / wordLen }

// bitmap returns how many bytes n bits take.
func bitmap(n int) int { return (n + 7) / 8 }

// plausible reports whether raw can be the length of the unpacked form.
func (s *state) plausible() bool {
	if s.size() == 0 {
		return s.raw == 0
	}
	least := int(s.nlit) + int(s.ndist) + bitmap(words(int(s.window)))
	return int(s.raw) >= least && int(s.raw) <= least+int(s.window)
}

// packer packs states.
type packer struct {
	raw []byte
	buf []byte
	e   *deflate.Encoder
}

const packLevel = 1

func newPacker() packer {
	e, err := deflate.NewEncoder(deflate.Options{Level: packLevel})
	if err != nil {
		panic("gzindex: " + err.Error())
	}
	return packer{e: e}
}

// pack puts the packed form of code lengths and a window into st; none where both are empty.
func (p *packer) pack(st *state, lens, window []byte) {
	if len(lens)+len(window) == 0 {
		return
	}
	n := words(len(window))
	raw := append(p.raw[:0], lens...)
	raw = append(raw, make([]byte, bitmap(n))...)
	for i := range n {
		w := window[i*wordLen : min((i+1)*wordLen, len(window))]
		if len(w) == wordLen && binary.LittleEndian.Uint64(w) == 0 {
			continue
		}
		raw[len(lens)+i/8] |= 1 << (i % 8)
		raw = append(raw, w...)
	}
	p.raw = raw
	p.buf = p.e.Append(p.buf[:0], raw, deflate.Final)
	st.raw, st.packed = uint16(len(raw)), bytes.Clone(p.buf)
}

// unpacker unpacks states.
type unpacker struct {
	raw    []byte
	window []byte
	d      inflate.Decoder
}

// unpack returns the code lengths and the window of s, valid until the next call.
func (u *unpacker) unpack(s *state, src io.ReaderAt) (lens, window []byte, err error) {
	packed, err := s.load(src)
	if err != nil || len(packed) == 0 {
		return nil, nil, err
	}
	u.raw = slices.Grow(u.raw[:0], int(s.raw))[:s.raw]
	if _, err := u.d.Decode(u.raw, packed, inflate.Raw); err != nil {
		return nil, nil, corrupt("state", s.off, "%w", err)
	}
	u.window = slices.Grow(u.window[:0], int(s.window))[:s.window]
	head := int(s.nlit) + int(s.ndist)
	if head > len(u.raw) || !expand(u.window, u.raw[head:]) {
		return nil, nil, corrupt("state", s.off, "%d bytes are not the window of %d", len(u.raw), s.window)
	}
	return u.raw[:head], u.window, nil
}

// expand makes a window of what pack makes of it, and reports whether it is that.
func expand(window, p []byte) bool {
	n := words(len(window))
	if len(p) < bitmap(n) {
		return false
	}
	kept, p := p[:bitmap(n)], p[bitmap(n):]
	for i := range n {
		w := window[i*wordLen : min((i+1)*wordLen, len(window))]
		if kept[i/8]>>(i%8)&1 == 0 {
			clear(w)
			continue
		}
		if len(p) < len(w) {
			return false
		}
		p = p[copy(w, p):]
	}
	return len(p) == 0
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
