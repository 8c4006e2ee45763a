package inflate

import (
	"encoding/binary"
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
	Flags   byte  // FLG, see the Flag constants
	XFL     byte  // what the compressor did: 2 its best, 4 its fastest
	Len     int64 // of the header, bytes
}

// Bits of Header.Flags: RFC 1952 section 2.3.1.
const (
	FlagText    = 1 << iota // FTEXT
	FlagHCRC                // FHCRC: the header has a checksum, which was right
	FlagExtra               // FEXTRA
	FlagName                // FNAME
	FlagComment             // FCOMMENT
)

const (
	maxHeaderText = 64 << 10 // bytes of FNAME and of FCOMMENT; longer ones are refused

	methodDeflate = 8 // CM
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

// framingHeader reads what stands before the data.
func (c *core) framingHeader(f Framing) (h Header, err error) {
	at := c.bitOffset()
	switch f {
	case Zlib:
		err = c.zlibHeader()
	case Gzip:
		err = c.gzipHeader(&h)
	}
	if damage, ok := err.(*Error); ok {
		damage.Off = at / 8
	}
	h.Len = (c.bitOffset() - at) / 8
	return h, err
}

func (c *core) zlibHeader() error {
	v, err := c.take(2)
	if err != nil {
		return err
	}
	cmf, flg := v&0xff, v>>8
	switch {
	case (cmf<<8|flg)%31 != 0:
		return c.damage(partHeader, errZlib)
	case cmf&15 != methodDeflate:
		return c.damage(partHeader, errMethod)
	case cmf>>4 > 7:
		return c.damage(partHeader, errCINFO)
	case flg&0x20 != 0: // FDICT
		return c.damage(partHeader, errDictionary)
	}
	return nil
}

// gzipReader reads the header of a member and keeps the CRC of what it has read.
type gzipReader struct {
	c   *core
	crc uint32
	err error // the first one; what is read after it is 0
}

// take reads n bytes, at most 4.
func (r *gzipReader) take(n int) uint32 {
	if r.err != nil {
		return 0
	}
	v, err := r.c.take(n)
	r.err = err
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], uint32(v))
	r.crc = crc32.Update(r.crc, crc32.IEEETable, b[:n])
	return uint32(v)
}

func (r *gzipReader) text() string {
	var text []byte
	for r.err == nil {
		b := byte(r.take(1))
		if b == 0 {
			break
		}
		if len(text) == maxHeaderText {
			r.err = r.c.damage(partHeader, errLongText)
			break
		}
		text = append(text, b)
	}
	return string(text)
}

// gzipHeader reads the header of a member: section 2.3.
func (c *core) gzipHeader(h *Header) error {
	r := gzipReader{c: c}
	magic, method, flags := r.take(2), r.take(1), byte(r.take(1))
	h.Flags = flags
	h.ModTime = r.take(4)
	h.XFL = byte(r.take(1))
	h.OS = byte(r.take(1))
	switch {
	case r.err != nil:
		return r.err
	case magic != 0x8b1f:
		return c.damage(partHeader, errMagic)
	case method != methodDeflate:
		return c.damage(partHeader, errMethod)
	case flags&^(FlagText|FlagHCRC|FlagExtra|FlagName|FlagComment) != 0:
		return c.damage(partHeader, errFlags)
	}
	if flags&FlagExtra != 0 {
		h.Extra = make([]byte, 0, r.take(2))
		for range cap(h.Extra) {
			h.Extra = append(h.Extra, byte(r.take(1)))
		}
	}
	if flags&FlagName != 0 {
		h.Name = r.text()
	}
	if flags&FlagComment != 0 {
		h.Comment = r.text()
	}
	if flags&FlagHCRC != 0 {
		want := r.crc & 0xffff
		if got := r.take(2); r.err == nil && got != want {
			return c.damage(partHeader, errHCRC)
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

// atEnd reports, with io.EOF, that there is no more input, or src's error. The input is byte aligned.
func (c *core) atEnd() error {
	if c.count() > 0 || c.ip < len(c.in) {
		return nil
	}
	return c.more()
}
