package inflate

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
)

// Header is what stands before the data. For zlib only Len is set, for raw data nothing.
type Header struct {
	Extra   []byte // FEXTRA, nil without; at most 65535 bytes
	Name    string // FNAME, in Latin 1 as RFC 1952 has it
	Comment string // FCOMMENT, likewise
	ModTime uint32 // MTIME, seconds since 1970; 0: unknown
	OS      byte
	Flags   byte  // FLG of RFC 1952 section 2.3.1
	XFL     byte  // what the compressor did: 2 its best, 4 its fastest
	Len     int64 // of the header, bytes
}

// Bits of FLG: RFC 1952 section 2.3.1.
const (
	ftext = 1 << iota
	fhcrc
	fextra
	fname
	fcomment
)

const (
	maxHeaderText = 64 << 10 // bytes of FNAME and of FCOMMENT; longer ones are refused

	gzipMagic     = "\x1f\x8b" // ID1, ID2
	methodDeflate = 8          // CM
)

var (
	errMagic      = errors.New("not a gzip header")
	errMethod     = errors.New("compression method is not DEFLATE")
	errFlags      = errors.New("reserved flags are set")
	errLongText   = fmt.Errorf("FNAME or FCOMMENT is longer than %d bytes", maxHeaderText)
	errHCRC       = errors.New("CRC16 does not match the header")
	errZlib       = errors.New("not a zlib header")
	errCINFO      = errors.New("window is larger than 32 KiB")
	errDictionary = errors.New("a preset dictionary is needed")
)

// take reads n bytes, at most 6, as a little-endian number. The input is byte aligned.
func (c *core) take(n int) (uint64, error) {
	if err := c.need(8 * n); err != nil {
		return 0, err
	}
	v := c.bits & (1<<(8*n) - 1)
	c.drop(8 * n)
	return v, nil
}

// framingHeader reads what stands before the data. Nothing of the input is in bits.
func (c *core) framingHeader(f Framing) (h Header, err error) {
	begin := c.bitOffset()
	switch f {
	case Zlib:
		err = c.zlibHeader(begin)
	case Gzip:
		err = c.gzipHeader(begin, &h)
	}
	h.Len = (c.bitOffset() - begin) / 8
	return h, err
}

func (c *core) zlibHeader(begin int64) error {
	v, err := c.take(2)
	if err != nil {
		return err
	}
	cmf, flg := v&0xff, v>>8
	switch {
	case (cmf<<8|flg)%31 != 0:
		err = errZlib
	case cmf&15 != methodDeflate:
		err = errMethod
	case cmf>>4 > 7:
		err = errCINFO
	case flg&0x20 != 0: // FDICT
		err = errDictionary
	default:
		return nil
	}
	return c.damageAt(begin, partHeader, err)
}

// gzipReader reads the header of a member and keeps the CRC of what it has read.
type gzipReader struct {
	c     *core
	begin int64 // bit of the input at which the header begins
	crc   uint32
	err   error // the first one; what is read after it is 0, or empty
}

// fail makes err what is wrong with the header, if nothing was before.
func (r *gzipReader) fail(err error) {
	if r.err == nil {
		r.err = r.c.damageAt(r.begin, partHeader, err)
	}
}

// some returns those of the next n bytes that are at hand, at least one, or none after an error. They are taken with pass.
func (r *gzipReader) some(n int) []byte {
	c := r.c
	if r.err == nil && c.ip == len(c.in) {
		r.err = c.moreData()
	}
	if r.err != nil {
		return nil
	}
	return c.in[c.ip:min(len(c.in), c.ip+n)]
}

func (r *gzipReader) pass(p []byte) {
	r.c.ip += len(p)
	r.crc = crc32.Update(r.crc, crc32.IEEETable, p)
}

// take reads n bytes, at most 4, as a little-endian number.
func (r *gzipReader) take(n int) (v uint32) {
	for i := 0; i < n; {
		p := r.some(n - i)
		if r.err != nil {
			return 0
		}
		for _, b := range p {
			v |= uint32(b) << (8 * i)
			i++
		}
		r.pass(p)
	}
	return v
}

// extra reads FEXTRA.
func (r *gzipReader) extra() []byte {
	n := int(r.take(2))
	field := make([]byte, 0, n)
	for len(field) < n && r.err == nil {
		p := r.some(n - len(field))
		field = append(field, p...)
		r.pass(p)
	}
	return field
}

// text reads FNAME or FCOMMENT.
func (r *gzipReader) text() string {
	var text []byte
	for r.err == nil && len(text) <= maxHeaderText {
		p := r.some(maxHeaderText + 1 - len(text))
		if end := bytes.IndexByte(p, 0); end >= 0 {
			text = append(text, p[:end]...)
			r.pass(p[:end+1])
			return string(text)
		}
		text = append(text, p...)
		r.pass(p)
	}
	r.fail(errLongText)
	return ""
}

// gzipHeader reads the header of a member: section 2.3.
func (c *core) gzipHeader(begin int64, h *Header) error {
	r := gzipReader{c: c, begin: begin}
	for _, id := range []byte(gzipMagic) {
		if byte(r.take(1)) != id {
			r.fail(errMagic)
			return r.err
		}
	}
	method := r.take(1)
	h.Flags = byte(r.take(1))
	h.ModTime = r.take(4)
	h.XFL = byte(r.take(1))
	h.OS = byte(r.take(1))
	switch {
	case method != methodDeflate:
		r.fail(errMethod)
	case h.Flags&^(ftext|fhcrc|fextra|fname|fcomment) != 0:
		r.fail(errFlags)
	}
	if r.err != nil {
		return r.err
	}
	if h.Flags&fextra != 0 {
		h.Extra = r.extra()
	}
	if h.Flags&fname != 0 {
		h.Name = r.text()
	}
	if h.Flags&fcomment != 0 {
		h.Comment = r.text()
	}
	if h.Flags&fhcrc != 0 {
		want := r.crc & 0xffff
		if r.take(2) != want {
			r.fail(errHCRC)
		}
	}
	return r.err
}

// firstSum returns the checksum of no data.
func (f Framing) firstSum() uint32 {
	if f == Zlib {
		return 1
	}
	return 0
}

// sum returns the checksum of what sum is the checksum of, followed by p.
func (f Framing) sum(sum uint32, p []byte) uint32 {
	switch f {
	case Zlib:
		return updateAdler(sum, p)
	case Gzip:
		return crc32.Update(sum, crc32.IEEETable, p)
	}
	return 0
}

// trailer reads what stands behind the data, and compares it with the checksum and number of bytes.
func (c *core) trailer(f Framing, sum uint32, size int64) error {
	c.align()
	begin := c.bitOffset()
	switch f {
	case Zlib:
		v, err := c.take(4)
		if err != nil {
			return err
		}
		// The one number of the three RFCs that has its highest byte first.
		if want := uint32(v>>24 | v>>8&0xff00 | v<<8&0xff0000 | v<<24&0xff000000); want != sum {
			return c.damageAt(begin, partTrailer, errChecksum)
		}
	case Gzip:
		crc, err := c.take(4)
		if err != nil {
			return err
		}
		isize, err := c.take(4)
		if err != nil {
			return err
		}
		if uint32(crc) != sum {
			return c.damageAt(begin, partTrailer, errChecksum)
		}
		if uint32(isize) != uint32(size) {
			return c.damageAt(begin+32, partTrailer, errISIZE)
		}
	}
	c.align()
	return nil
}

// atEnd reports, with io.EOF, that there is no more input, or src's error. Nothing of the input is in bits.
func (c *core) atEnd() error {
	if c.ip < len(c.in) {
		return nil
	}
	return c.more()
}
