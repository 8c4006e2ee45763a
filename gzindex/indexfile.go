package gzindex

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/imgtool/imgtool/block"
)

// The index file; all numbers are little-endian. docs/gzindex.md describes it.
const (
	fileMagic   = "\x89gzx\r\n\x1a\n"
	fileVersion = 1

	atVersion  = 8  // u32
	atPoints   = 12 // u32: number of points
	atZeros    = 16 // u32: number of runs of zeros
	atReserved = 20 // u32: 0
	atImage    = 24 // u64: size of the image in bytes
	atFile     = 32 // u64: size of the gzip file in bytes
	atStates   = 40 // u64: length of all states in bytes
	atIdentity = 48 // SHA-256 of the first and the last 64 KiB of the gzip file
	atTableCRC = 80 // u32: CRC-32 of points and runs
	atCRC      = 84 // u32: CRC-32 of the header up to here
	headerLen  = 88

	pointLen  = 36 // u64 image, u64 bit, u32 crc, u32 state's CRC-32, u16 its length, u16 window, u16 stored, u16 nlit, u8 ndist, u8 kind, u16 unpacked length
	zerosLen  = 16 // u64 offset, u64 length
	flagFinal = 0x80
	flagSum   = 0x40 // crc is set

	maxPoints = 1 << 20 // and runs of zeros
)

// corrupt returns an error about the index file.
func corrupt(part string, off int64, cause string, args ...any) error {
	return block.Corrupt("gzip index", part, off, cause, args...)
}

// WriteTo writes the index, which must be complete, to w: see ReadIndex.
func (x *Index) WriteTo(w io.Writer) (int64, error) {
	if !x.Complete() {
		return 0, errIncomplete
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	tables, states := x.tables()
	le := binary.LittleEndian
	h := make([]byte, headerLen)
	copy(h, fileMagic)
	le.PutUint32(h[atVersion:], fileVersion)
	le.PutUint32(h[atPoints:], uint32(len(x.points)))
	le.PutUint32(h[atZeros:], uint32(len(x.zeros)))
	le.PutUint64(h[atImage:], uint64(x.size))
	le.PutUint64(h[atFile:], uint64(x.fileSize))
	le.PutUint64(h[atStates:], uint64(states))
	copy(h[atIdentity:], x.identity[:])
	le.PutUint32(h[atTableCRC:], crc32.ChecksumIEEE(tables))
	le.PutUint32(h[atCRC:], crc32.ChecksumIEEE(h[:atCRC]))
	n, err := w.Write(append(h, tables...))
	written := int64(n)
	for i := 0; i < len(x.points) && err == nil; i++ {
		var p []byte
		if p, err = x.points[i].state.load(x.source); err == nil {
			n, err = w.Write(p)
			written += int64(n)
		}
	}
	return written, err
}

// tables returns the points and the runs of zeros as they are in the file, and how long all states are. The caller holds mu.
func (x *Index) tables() (p []byte, states int64) {
	le := binary.LittleEndian
	p = make([]byte, 0, len(x.points)*pointLen+len(x.zeros)*zerosLen)
	for i := range x.points {
		pt := &x.points[i]
		length, sum := pt.state.stored()
		k := byte(pt.kind)
		if pt.final {
			k |= flagFinal
		}
		if pt.summed {
			k |= flagSum
		}
		p = le.AppendUint64(p, uint64(pt.image))
		p = le.AppendUint64(p, uint64(pt.bit))
		p = le.AppendUint32(p, pt.crc)
		p = le.AppendUint32(p, sum)
		p = le.AppendUint16(p, length)
		p = le.AppendUint16(p, pt.state.window)
		p = le.AppendUint16(p, pt.state.left)
		p = le.AppendUint16(p, pt.state.nlit)
		p = append(p, pt.state.ndist, k)
		p = le.AppendUint16(p, pt.state.raw)
		states += int64(length)
	}
	for _, z := range x.zeros {
		p = le.AppendUint64(p, uint64(z.off))
		p = le.AppendUint64(p, uint64(z.len))
	}
	return p, states
}

// ReadIndex reads an index that WriteTo wrote: size bytes of r. It reads header and tables, which take 52 bytes a point at most and are
// checked, and keeps r to read the rest when it is needed; r must stay open as long as the Index is used. Nothing in it is believed that the
// gzip file could contradict.
//
// The error is block.ErrNotFormat for another file, a *block.CorruptError for a damaged one, or r's.
func ReadIndex(r io.ReaderAt, size int64) (*Index, error) {
	h := make([]byte, headerLen)
	if size < headerLen {
		return nil, block.ErrNotFormat
	}
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), h); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if string(h[:len(fileMagic)]) != fileMagic {
		return nil, block.ErrNotFormat
	}
	if v := le.Uint32(h[atVersion:]); v != fileVersion {
		return nil, corrupt("header", atVersion, "version %d is not known; a newer imgtool may read it", v)
	}
	if sum := crc32.ChecksumIEEE(h[:atCRC]); sum != le.Uint32(h[atCRC:]) {
		return nil, corrupt("header", atCRC, "its CRC-32 is %08x, not %08x", sum, le.Uint32(h[atCRC:]))
	}
	points, zeros := int64(le.Uint32(h[atPoints:])), int64(le.Uint32(h[atZeros:]))
	image, file, states := le.Uint64(h[atImage:]), le.Uint64(h[atFile:]), le.Uint64(h[atStates:])
	tables := points*pointLen + zeros*zerosLen
	switch {
	case points == 0 || points > maxPoints || zeros > maxPoints:
		return nil, corrupt("header", atPoints, "%d points and %d runs of zeros, want 1 to %d and at most as many", points, zeros, maxPoints)
	case file > maxFile || image > file*maxRatio:
		return nil, corrupt("header", atImage, "an image of %d bytes in a file of %d", image, file)
	case states > uint64(size) || headerLen+tables+int64(states) != size:
		return nil, corrupt("header", atStates, "tables of %d bytes and states of %d do not make the %d bytes of the file", tables, states, size)
	}
	p := make([]byte, tables)
	if _, err := io.ReadFull(io.NewSectionReader(r, headerLen, tables), p); err != nil {
		return nil, err
	}
	if sum := crc32.ChecksumIEEE(p); sum != le.Uint32(h[atTableCRC:]) {
		return nil, corrupt("tables", atTableCRC, "their CRC-32 is %08x, not %08x", sum, le.Uint32(h[atTableCRC:]))
	}
	x := &Index{size: int64(image), fileSize: int64(file), complete: true, source: r}
	copy(x.identity[:], h[atIdentity:])
	if err := x.readPoints(p[:points*pointLen], headerLen+tables, size); err != nil {
		return nil, err
	}
	return x, x.readZeros(p[points*pointLen:], headerLen+points*pointLen)
}

// maxFile is the largest gzip file that an index describes, so that bits of it can be counted and its image too.
const maxFile = 1 << 52

// readPoints reads the points, whose states begin at off of the index file and end with it, at size.
func (x *Index) readPoints(p []byte, off, size int64) error {
	le := binary.LittleEndian
	x.points = make([]point, len(p)/pointLen)
	for i := range x.points {
		p := p[i*pointLen:][:pointLen]
		pt := &x.points[i]
		pt.image, pt.bit = int64(le.Uint64(p)), int64(le.Uint64(p[8:]))
		pt.crc = le.Uint32(p[16:])
		pt.state = state{sum: le.Uint32(p[20:]), length: le.Uint16(p[24:]), window: le.Uint16(p[26:]), left: le.Uint16(p[28:]), nlit: le.Uint16(p[30:]), ndist: p[32], raw: le.Uint16(p[34:]), off: off}
		pt.kind, pt.final, pt.summed = kind(p[33]&^(flagFinal|flagSum)), p[33]&flagFinal != 0, p[33]&flagSum != 0
		off += int64(pt.state.length)
		if err := x.checkPoint(i, size); err != nil {
			return corrupt("point", headerLen+int64(i)*pointLen, "point %d: %w", i, err)
		}
	}
	if off != size {
		return corrupt("points", headerLen, "the states end at byte %d, the file at %d", off, size)
	}
	return nil
}

// checkPoint checks a point and the span before it.
func (x *Index) checkPoint(i int, size int64) error {
	p := &x.points[i]
	s := &p.state
	if i == 0 {
		if p.image != 0 || p.bit != 0 || p.kind != atMember {
			return errors.New("the first one is not the beginning of the file")
		}
	} else if err := checkSpan(&x.points[i-1], p.image, p.bit); err != nil {
		return err
	}
	if i == len(x.points)-1 {
		if err := checkSpan(p, x.size, x.fileSize*8); err != nil && x.size > 0 {
			return fmt.Errorf("with the end of the file: %w", err)
		}
	}
	switch {
	case p.kind >= kinds:
		return fmt.Errorf("kind %d is not known", p.kind)
	case (p.kind == atMember || p.kind == inStored) && p.bit%8 != 0:
		return fmt.Errorf("bit %d is not the beginning of a byte", p.bit)
	case (p.kind == inStored) != (s.left > 0), (p.kind == inDynamic) != (s.nlit > 0 && s.ndist > 0), p.kind == atMember && s.size() > 0:
		return errors.New("its fields do not fit its kind")
	case !p.summed && (p.kind > atBlock || s.size() > 0):
		return errors.New("a span without CRC-32 that is no piece of its own")
	case s.window > windowLen || s.nlit > maxNlit || s.ndist > maxNdist:
		return errors.New("window or code lengths are too long")
	case (s.size() > 0) != (s.length > 0) || s.off+int64(s.length) > size || !s.plausible():
		return fmt.Errorf("%d bytes of state at byte %d", s.length, s.off)
	}
	return nil
}

const (
	maxNlit  = 288
	maxNdist = 32
)

// checkSpan checks that the span of p can reach to a place in image and file.
func checkSpan(p *point, image, bit int64) error {
	n, bits := image-p.image, bit-p.bit
	if n <= 0 || bits <= 0 || image > maxFile*maxRatio || bit > maxFile*8 {
		return fmt.Errorf("it is at byte %d of the image and bit %d, the one before at %d and %d", image, bit, p.image, p.bit)
	}
	// What lies in the file makes no more, so that a small file cannot ask for much time.
	if n/maxMatch > bits/2+1 {
		return fmt.Errorf("%d bits of DEFLATE data cannot make %d bytes", bits, n)
	}
	return nil
}

const maxMatch = 258

func (x *Index) readZeros(p []byte, off int64) error {
	le := binary.LittleEndian
	x.zeros = make([]run, len(p)/zerosLen)
	end := int64(0)
	for i := range x.zeros {
		z := run{int64(le.Uint64(p[i*zerosLen:])), int64(le.Uint64(p[i*zerosLen+8:]))}
		if z.off < end || z.len <= 0 || block.CheckRange(z.off, z.len, x.size) != nil {
			return corrupt("run of zeros", off+int64(i)*zerosLen, "%d bytes at byte %d of the image of %d", z.len, z.off, x.size)
		}
		x.zeros[i], end = z, z.end()
	}
	return nil
}
