package deflate

import (
	"errors"
	"testing"
)

// farthest decodes stream, which holds n bytes, as plainly as the format allows, and returns the greatest distance in it.
func farthest(t *testing.T, stream []byte, n int) int {
	t.Helper()
	r := plainReader{p: stream}
	for r.bits(1) == 0 {
		r.block()
	}
	r.block()
	if r.err != nil || r.n != n || r.at > 8*len(stream) || 8*len(stream)-r.at >= 8 {
		t.Fatalf("%d bytes of %d, %d of %d bits read, %v", r.n, n, r.at, 8*len(stream), r.err)
	}
	return r.far
}

// plainReader reads one bit at a time and keeps no bytes.
type plainReader struct {
	p      []byte
	at     int // bits
	n, far int // bytes, and the greatest distance
	err    error
}

func (r *plainReader) bits(n int) (v int) {
	for i := range n {
		if r.at>>3 >= len(r.p) {
			r.err = errors.New("it ends early")
			return v
		}
		v |= int(r.p[r.at>>3]>>(r.at&7)&1) << i
		r.at++
	}
	return v
}

// plainCode is the lengths of a code's symbols; symbol looks for the bits read so far among the canonical codes of their length.
type plainCode []uint8

func (r *plainReader) symbol(c plainCode) int {
	code, first := 0, 0
	for n := uint8(1); n <= 15 && r.err == nil; n++ {
		code = code<<1 | r.bits(1)
		first <<= 1
		for s, l := range c {
			if l == n {
				if first == code {
					return s
				}
				first++
			}
		}
	}
	r.err = errors.New("no such code")
	return 0
}

func (r *plainReader) block() {
	switch r.bits(2) {
	case storedBlock:
		r.at = (r.at + 7) &^ 7
		n := r.bits(16)
		if r.bits(16) != n^0xffff {
			r.err = errors.New("LEN and NLEN differ")
		}
		r.at += 8 * n
		r.n += n
	case fixedBlock:
		r.codes(fixedLens.literal[:], fixedLens.dist[:])
	case dynamicBlock:
		literals, dists, n := 257+r.bits(5), 1+r.bits(5), 4+r.bits(4)
		pre := make(plainCode, precodeSymbols)
		for _, s := range precodeOrder[:n] {
			pre[s] = uint8(r.bits(3))
		}
		var lens []uint8
		for len(lens) < literals+dists && r.err == nil {
			s, v, times := r.symbol(pre), uint8(0), 1
			switch s {
			case 16:
				v, times = lens[len(lens)-1], 3+r.bits(2)
			case 17:
				times = 3 + r.bits(3)
			case 18:
				times = 11 + r.bits(7)
			default:
				v = uint8(s)
			}
			for range times {
				lens = append(lens, v)
			}
		}
		if len(lens) != literals+dists {
			r.err = errors.New("the lengths are not as many as the header says")
			return
		}
		r.codes(lens[:literals], lens[literals:])
	default:
		r.err = errors.New("block type 3")
	}
}

func (r *plainReader) codes(literals, dists plainCode) {
	for r.err == nil {
		s := r.symbol(literals)
		if s < 256 {
			r.n++
			continue
		}
		if s == 256 {
			return
		}
		length, extra := s-254, max(0, (s-261)/4)
		if s == 285 {
			length, extra = 258, 0
		} else if extra > 0 {
			length = 3 + (4+(s-261)%4)<<extra
		}
		length += r.bits(extra)
		d := r.symbol(dists)
		distance := 1 + d
		if d >= 4 {
			distance = 1 + (2+d%2)<<(d/2-1) + r.bits(d/2-1)
		}
		if distance > r.n+maxDistance { // a dictionary holds no more
			r.err = errors.New("a match reaches back too far")
		}
		r.far = max(r.far, distance)
		r.n += length
	}
}
