package block

import "math"

// CheckRange returns a *RangeError unless 0 <= off, 0 <= n and off+n <= size, without overflow.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return &RangeError{Off: off, Len: n, Size: size}
	}
	return nil
}

// Add returns a+b, and whether the sum of the two non-negative numbers fits.
func Add(a, b int64) (int64, bool) {
	if a < 0 || b < 0 || a > math.MaxInt64-b {
		return 0, false
	}
	return a + b, true
}

// Mul returns a*b, and whether the product of the two non-negative numbers fits.
func Mul(a, b int64) (int64, bool) {
	if a < 0 || b < 0 || (a != 0 && b > math.MaxInt64/a) {
		return 0, false
	}
	return a * b, true
}

// RoundDown returns the largest multiple of unit that is at most x. x is not negative, unit is positive.
func RoundDown(x, unit int64) int64 { return x - x%unit }

// RoundUp returns the smallest multiple of unit that is at least x, and whether it fits. x is not negative, unit is positive.
func RoundUp(x, unit int64) (int64, bool) {
	r := x % unit
	if r == 0 {
		return x, x >= 0
	}
	return Add(x, unit-r)
}

// Clip returns the part of e inside [off, off+n), and whether there is any.
func (e Extent) Clip(off, n int64) (Extent, bool) {
	end := e.End()
	if n < end-off { // so compared, off+n cannot overflow
		end = off + n
	}
	if e.Off < off {
		if e.Node != "" {
			e.NodeOff += off - e.Off
		}
		e.Off = off
	}
	e.Len = end - e.Off
	return e, e.Len > 0
}

// AppendExtent appends e to buf, or lengthens the last extent where e continues it with the same properties.
// Extents before index base are left alone: they belong to the caller of Extents.
func AppendExtent(buf []Extent, base int, e Extent) []Extent {
	if len(buf) > base {
		l := &buf[len(buf)-1]
		if l.End() == e.Off && l.Flags == e.Flags && l.Depth == e.Depth && l.Node == e.Node &&
			(e.Node == "" || l.NodeOff+l.Len == e.NodeOff) {
			l.Len += e.Len
			return buf
		}
	}
	return append(buf, e)
}
