package deflate

import (
	"encoding/binary"
	"hash"
	"hash/adler32"
	"hash/crc32"
	"math/bits"
)

// Framing says what stands around the DEFLATE data.
type Framing uint8

const (
	Raw  Framing = iota // RFC 1951 alone
	Zlib                // RFC 1950: CMF, FLG, data, Adler-32
	Gzip                // RFC 1952: one member without a name or a time
)

// newSum returns the checksum that the framing carries, nil where it has none.
func (f Framing) newSum() hash.Hash32 {
	switch f {
	case Zlib:
		return adler32.New()
	case Gzip:
		return crc32.NewIEEE()
	}
	return nil
}

// appendHeader appends what stands before the data.
func (f Framing) appendHeader(dst []byte, o Options) []byte {
	switch f {
	case Zlib:
		return appendZlibHeader(dst, o)
	case Gzip:
		return appendGzipHeader(dst, o)
	}
	return dst
}

// appendTrailer appends what stands behind n bytes of data with the checksum sum.
func (f Framing) appendTrailer(dst []byte, sum hash.Hash32, n int64) []byte {
	switch f {
	case Zlib:
		return binary.BigEndian.AppendUint32(dst, sum.Sum32())
	case Gzip:
		dst = binary.LittleEndian.AppendUint32(dst, sum.Sum32())
		return binary.LittleEndian.AppendUint32(dst, uint32(n)) // ISIZE is modulo 1<<32
	}
	return dst
}

const deflated = 8 // CM of both framings

// appendZlibHeader appends CMF and FLG (RFC 1950 section 2.2).
func appendZlibHeader(dst []byte, o Options) []byte {
	cinfo := uint(bits.Len(uint(o.Window))-1) - 8
	flevel := uint(2)
	switch {
	case o.Level == MinLevel:
		flevel = 0
	case o.Level < DefaultLevel:
		flevel = 1
	case o.Level > DefaultLevel:
		flevel = 3
	}
	header := (cinfo<<4|deflated)<<8 | flevel<<6
	header += 31 - header%31 // FCHECK
	return binary.BigEndian.AppendUint16(dst, uint16(header))
}

// appendGzipHeader appends the header of a member (RFC 1952 section 2.3).
func appendGzipHeader(dst []byte, o Options) []byte {
	const (
		smallest  = 2 // of XFL
		fastest   = 4
		unknownOS = 255
	)
	xfl := byte(0)
	switch o.Level {
	case MinLevel:
		xfl = fastest
	case MaxLevel:
		xfl = smallest
	}
	return append(dst, 0x1f, 0x8b, deflated, 0, 0, 0, 0, 0, xfl, unknownOS)
}
