package deflate

import "math/bits"

// appendZlibHeader appends CMF and FLG of RFC 1950 section 2.2.
func appendZlibHeader(dst []byte, o Options) []byte {
	const deflated = 8 // CM
	cmf := uint(bits.Len(uint(o.Window))-1-8)<<4 | deflated
	flevel := uint(2)
	switch {
	case o.Level == 1:
		flevel = 0
	case o.Level < DefaultLevel:
		flevel = 1
	case o.Level > DefaultLevel:
		flevel = 3
	}
	flg := flevel << 6
	flg += 31 - (cmf<<8|flg)%31 // FCHECK
	return append(dst, byte(cmf), byte(flg))
}
