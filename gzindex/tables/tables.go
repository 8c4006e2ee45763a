// Package tables reads the tables that some compressors leave in gzip files, from which follows where the file can be entered without
// anything that came before: BGZF (bgzip, of htslib), dictzip, eStargz.
//
// All that is read is untrusted. What does not hang together is no table, since the file may be a good gzip file all the same; what does may
// still be wrong, and shows only when the file is decoded: see Table.
package tables

import (
	"bytes"
	"context"
	"encoding/binary"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/inflate"
)

// Table says where a gzip file can be entered.
type Table struct {
	Name   string  // BGZF, dictzip or eStargz
	Size   int64   // of the image in bytes, at least 1; -1 where the table does not say
	Summed bool    // what lies between two places has checksums of its own
	Places []Place // in order; the first is the beginning of the file
}

// Place is where decoding can begin without a window.
type Place struct {
	Image  int64 // bytes of the image before it; -1 where the table does not say
	File   int64 // bytes of the file before it
	Member bool  // a member begins here; otherwise a DEFLATE block
}

// Options for Read.
type Options struct {
	// Span is how many bytes of the image, or of the file where the table has no others, lie between two places at least. Those between are
	// left out.
	Span int64
	// Places is how many there are at most, at least 2. Where there would be more, every second one goes.
	Places int
	// Memory is how many bytes a table may take while it is read, about; what does not fit is left out.
	Memory int64
}

// Read returns the table of the gzip file in file, or nil where there is none. It reads the beginning and the end; of BGZF, which has its sizes in
// every member, all of the file, in pieces of 1 MiB, and decodes nothing. The error is one of reading.
func Read(ctx context.Context, file block.Device, o Options) (*Table, error) {
	h, err := header(ctx, file)
	if err != nil || h == nil {
		return nil, err
	}
	if _, ok := subfield(h.Extra, bgzfID); ok {
		return readBGZF(ctx, file, o)
	}
	if ra, ok := subfield(h.Extra, dictzipID); ok {
		return readDictzip(ctx, file, h.Len, ra, o)
	}
	return readEStargz(ctx, file, o)
}

// header returns the header of the first member, or nil where there is none.
func header(ctx context.Context, file block.Device) (*inflate.Header, error) {
	// Longer ones are legal, and of no compressor that leaves a table.
	p := make([]byte, min(file.Size(), 12+0xffff+4096))
	if err := file.Read(ctx, p, 0); err != nil {
		return nil, err
	}
	h, err := inflate.NewReader(bytes.NewReader(p)).Begin(inflate.Gzip)
	if err != nil {
		return nil, nil // whoever decodes the file says what is wrong
	}
	return &h, nil
}

// subfield returns the data of the subfield of FEXTRA with an identifier: RFC 1952 section 2.3.1.1.
func subfield(extra []byte, id string) ([]byte, bool) {
	for len(extra) >= 4 {
		n := int(binary.LittleEndian.Uint16(extra[2:]))
		if n > len(extra)-4 {
			break
		}
		if string(extra[:2]) == id {
			return extra[4 : 4+n], true
		}
		extra = extra[4+n:]
	}
	return nil, false
}

// places collects places that are far enough from each other and not too many.
type places struct {
	o    Options
	list []Place
	last int64 // in the image or in the file, of the last one
}

// add adds a place, where at is what Options.Span counts.
func (c *places) add(p Place, at int64) {
	if len(c.list) > 0 && at-c.last < c.o.Span {
		return
	}
	if len(c.list) >= max(c.o.Places, 2) {
		kept := c.list[:0]
		for i, q := range c.list {
			if i%2 == 0 {
				kept = append(kept, q)
			}
		}
		c.list = kept
		c.o.Span = max(1, c.o.Span) * 2
	}
	c.list, c.last = append(c.list, p), at
}

// BGZF: SAM/BAM format specification section 4.1.
const (
	bgzfID     = "BC"
	bgzfHeader = 18       // bytes of the header with the one subfield that a member must have
	bgzfMax    = 64 << 10 // bytes of a member, and of its content
	trailerLen = 8        // CRC32, ISIZE
	batch      = 1 << 20  // bytes that are read at a time
)

// readBGZF goes from member to member.
func readBGZF(ctx context.Context, file block.Device, o Options) (*Table, error) {
	c := places{o: o}
	size, end := int64(0), file.Size()
	buf := make([]byte, min(end, batch))
	base, have := int64(0), 0 // buf[:have] is the file from base on
	for at := int64(0); at < end; {
		n := bgzfMember(buf[min(at-base, int64(have)):have])
		if n == 0 || at+n > base+int64(have) { // perhaps because it is not there as a whole
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if base == at && have > 0 {
				return nil, nil
			}
			base, have = at, int(min(end-at, batch))
			if err := file.Read(ctx, buf[:have], at); err != nil {
				return nil, err
			}
			continue
		}
		isize := int64(binary.LittleEndian.Uint32(buf[at-base+n-4:]))
		if isize > bgzfMax {
			return nil, nil
		}
		if isize > 0 || len(c.list) == 0 {
			c.add(Place{Image: size, File: at, Member: true}, size)
		}
		at, size = at+n, size+isize
	}
	if size == 0 {
		return nil, nil // nothing would ever be decoded, and so found out
	}
	return &Table{Name: "BGZF", Size: size, Summed: true, Places: c.list}, nil
}

// bgzfMember returns how long the member is at the beginning of p, or 0 where none is or p is too short to tell.
func bgzfMember(p []byte) int64 {
	if len(p) < bgzfHeader || string(p[:4]) != "\x1f\x8b\x08\x04" {
		return 0
	}
	xlen := int(binary.LittleEndian.Uint16(p[10:]))
	if len(p) < 12+xlen {
		return 0
	}
	bc, ok := subfield(p[12:12+xlen], bgzfID)
	if !ok || len(bc) != 2 {
		return 0
	}
	n := int64(binary.LittleEndian.Uint16(bc)) + 1 // BSIZE
	if n < int64(12+xlen+trailerLen) {
		return 0
	}
	return n
}

// dictzip: its manual page, and the comments of its source.
const (
	dictzipID      = "RA"
	dictzipVersion = 1
	dictzipEnd     = 16 // bytes that the final, empty block takes at most
)

// readDictzip reads the sizes of the chunks, each of which ends with a full flush. The first begins headerLen bytes into the file.
func readDictzip(ctx context.Context, file block.Device, headerLen int64, ra []byte, o Options) (*Table, error) {
	le := binary.LittleEndian
	if len(ra) < 6 || le.Uint16(ra) != dictzipVersion {
		return nil, nil
	}
	chlen, chcnt := int64(le.Uint16(ra[2:])), int(le.Uint16(ra[4:]))
	if chcnt == 0 || chlen == 0 || len(ra) < 6+2*chcnt || file.Size() < headerLen+trailerLen {
		return nil, nil
	}
	tail := make([]byte, 4)
	if err := file.Read(ctx, tail, file.Size()-4); err != nil {
		return nil, err
	}
	size := int64(le.Uint32(tail)) // exact: 65535 chunks of 65535 bytes are less than 4 GiB
	if size <= int64(chcnt-1)*chlen || size > int64(chcnt)*chlen {
		return nil, nil
	}
	c := places{o: o}
	at := headerLen
	for i := range chcnt {
		p := Place{Image: int64(i) * chlen, File: at}
		if i == 0 {
			p.File, p.Member = 0, true
		}
		c.add(p, p.Image)
		at += int64(le.Uint16(ra[6+2*i:]))
	}
	if end := file.Size() - trailerLen; at > end || at < end-dictzipEnd {
		return nil, nil
	}
	return &Table{Name: "dictzip", Size: size, Places: c.list}, nil
}
