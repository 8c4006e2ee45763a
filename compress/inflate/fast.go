package inflate

import "encoding/binary"

// fastGo decodes symbols of a block for as long as there is plenty of input and output, and leaves whatever is not a good literal, length or
// distance to symbol, standing before it.
//
// There are at least margin bytes of input and Slop bytes of output.
func fastGo(c *core) {
	in, out := c.in, c.out
	lit, dist := &c.t.lit, &c.t.dist
	ip, op, bits, n := c.ip, c.op, c.bits, c.n
	lastIn, lastOut := len(in)-margin, len(out)-Slop
	tracing := c.trace.on(op)
	for ip <= lastIn && op <= lastOut {
		// 56 bits at least: what is loaded again at the same place changes nothing.
		bits |= binary.LittleEndian.Uint64(in[ip:]) << (n & 63)
		ip += int(^n >> 3 & 7)
		n |= 56
		e := lit[bits&(1<<litBits-1)]
		if e&flagLit != 0 {
			// Three literals take 33 bits at most, and leave enough for a length.
			bits >>= e & 63
			n -= uint64(e)
			out[op] = byte(e >> shiftValue)
			op++
			e = lit[bits&(1<<litBits-1)]
			if e&flagLit != 0 {
				bits >>= e & 63
				n -= uint64(e)
				out[op] = byte(e >> shiftValue)
				op++
				e = lit[bits&(1<<litBits-1)]
				if e&flagLit != 0 {
					bits >>= e & 63
					n -= uint64(e)
					out[op] = byte(e >> shiftValue)
					op++
					continue
				}
			}
		}
		// Until the symbol is known to be good, b and m are what bits and n will be after it.
		b, m := bits, n
		if e&flagExcept != 0 {
			if e&flagSub == 0 {
				break
			}
			b >>= litBits
			m -= litBits
			e = lit[(e>>shiftValue+uint32(b)&(1<<(e>>8&15)-1))&(litSize-1)]
			if e&flagLit != 0 {
				bits = b >> (e & 63)
				n = m - uint64(e)
				out[op] = byte(e >> shiftValue)
				op++
				continue
			}
			if e&flagExcept != 0 {
				break
			}
		}
		length := int(e>>shiftValue) + int(b&(1<<(e&63)-1)>>(e>>8&15))
		b >>= e & 63
		m -= uint64(e)

		b |= binary.LittleEndian.Uint64(in[ip:]) << (m & 63)
		ahead := int(^m >> 3 & 7)
		m |= 56
		e = dist[b&(1<<distBits-1)]
		if e&flagExcept != 0 {
			if e&flagSub == 0 {
				break
			}
			b >>= distBits
			m -= distBits
			e = dist[(e>>shiftValue+uint32(b)&(1<<(e>>8&15)-1))&(distSize-1)]
			if e&flagExcept != 0 {
				break
			}
		}
		d := int(e>>shiftValue) + int(b&(1<<(e&63)-1)>>(e>>8&15))
		if d > op-c.low {
			break
		}
		bits = b >> (e & 63)
		n = m - uint64(e)
		ip += ahead
		if tracing {
			c.trace.note(op, d, length)
		}
		if d >= 16 && length <= 32 {
			*(*[16]byte)(out[op:]) = *(*[16]byte)(out[op-d:])
			*(*[16]byte)(out[op+16:]) = *(*[16]byte)(out[op-d+16:])
		} else {
			copyWide(out, op, d, length)
		}
		op += length
	}
	c.ip, c.op, c.bits, c.n = ip, op, bits, n&63
}

// copyWide copies a match of length bytes from dist bytes before op to op. It may write, and then read, up to 16 bytes beyond.
func copyWide(out []byte, op, dist, length int) {
	from, end := op-dist, op+length
	if dist >= 16 {
		for {
			*(*[16]byte)(out[op:]) = *(*[16]byte)(out[from:])
			op += 16
			from += 16
			if op >= end {
				return
			}
		}
	}
	v := binary.LittleEndian.Uint64(out[from:])
	if dist < 8 {
		// What has been written last repeats: make the 8 bytes that do, and go on by a multiple of their period.
		v &= 1<<(dist*8) - 1
		v |= v << (dist * 8)
		v |= v << (dist * 16)
		v |= v << (dist * 32)
		step := 8 - 8%dist
		for op < end {
			binary.LittleEndian.PutUint64(out[op:], v)
			op += step
		}
		return
	}
	for op < end {
		binary.LittleEndian.PutUint64(out[op:], binary.LittleEndian.Uint64(out[from:]))
		op += 8
		from += 8
	}
}
