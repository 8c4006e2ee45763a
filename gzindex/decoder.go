package gzindex

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/inflate"
)

const (
	format     = "gz"
	windowLen  = 32 << 10 // how far DEFLATE reaches back, in bytes
	trailerLen = 8        // CRC32, ISIZE
)

// decoder decodes the members of a gzip file one after another, from any point, and knows where in the file it is.
type decoder struct {
	z       *inflate.Reader
	base    int64 // where the input of z began in the file
	member  int64 // where the member begins that was entered last
	begun   bool  // a member was entered
	open    bool  // inside a member
	bare    bool  // whose data z sees without framing: its checksums are the caller's business
	summing bool  // the caller computes the checksums, so that z need not

	crc, isize uint32 // of the trailer of the last member, where bare
}

// offset returns where in the file the decoder is, in bytes: exact between members.
func (d *decoder) offset() int64 { return d.base + d.z.InputOffset() }

// bit returns where in the file the next bit is.
func (d *decoder) bit() int64 { return d.base*8 + d.z.Point().In }

// start makes the decoder begin a member: r is the file from base on. With summing the caller computes the members' checksums.
func (d *decoder) start(r io.Reader, base int64, summing bool) {
	if d.z == nil {
		d.z = inflate.NewReader(r)
	} else {
		d.z.Reset(r)
	}
	d.base, d.summing, d.begun, d.open = base, summing, false, false
}

// resume makes the decoder go on at p, whose In counts from the beginning of the file; r is the file from byte p.In/8 on. The output
// before p, p.Out bytes of it, stands in the buffer that fill gets.
func (d *decoder) resume(r io.Reader, p inflate.Point) error {
	d.start(nil, 0, true)
	d.begun, d.open, d.bare = true, true, true
	return d.located(d.z.Resume(r, p, nil))
}

// begin enters the next member, and returns io.EOF where there is none. What follows the last member must be zero bytes, with which tapes
// and devices pad.
func (d *decoder) begin() error {
	if d.begun {
		if err := d.padding(); err != nil {
			return err
		}
	}
	at := d.offset()
	_, err := d.z.Begin(inflate.Gzip)
	foreign := errors.As(err, new(*inflate.Error))
	switch {
	case foreign && d.begun:
		return block.Corrupt(format, "file", at, "what follows the last member is neither a member nor padding")
	case foreign:
		return block.ErrNotFormat
	case err == io.EOF && !d.begun, err == io.ErrUnexpectedEOF:
		return block.Corrupt(format, "header", at, "%w", io.ErrUnexpectedEOF)
	case err != nil:
		return err
	}
	d.member, d.begun, d.open, d.bare = at, true, true, d.summing
	if d.summing {
		// The header is read; what follows is taken for what it is, DEFLATE data.
		_, err = d.z.Begin(inflate.Raw)
	}
	return err
}

// padding skips zero bytes after a member, and returns io.EOF where the file ends with them.
func (d *decoder) padding() error {
	for {
		p, err := d.z.Peek(512)
		if len(p) == 0 {
			return err
		}
		n := len(p) - len(bytes.TrimLeft(p, "\x00"))
		if err := d.z.Discard(n); err != nil {
			return err
		}
		if n < len(p) {
			return nil
		}
	}
}

// fill decodes into buf[at:] as inflate.Reader.Fill does, inside one member. Where the member ends it clears d.open: its checksums were
// right, or where it is bare they are in crc and isize.
func (d *decoder) fill(buf []byte, at int) (int, error) {
	n, err := d.z.Fill(buf, at)
	if err != io.EOF {
		return n, d.located(err)
	}
	d.open = false
	if d.bare {
		return n, d.readTrailer()
	}
	return n, nil
}

func (d *decoder) readTrailer() error {
	p, err := d.z.Peek(trailerLen)
	switch {
	case len(p) >= trailerLen:
		d.crc, d.isize = binary.LittleEndian.Uint32(p), binary.LittleEndian.Uint32(p[4:])
		return d.z.Discard(trailerLen)
	case err == io.EOF:
		return d.located(io.ErrUnexpectedEOF)
	}
	return err
}

// located returns err as one that says where in the file it is.
func (d *decoder) located(err error) error {
	var damage *inflate.Error
	switch {
	case err == io.ErrUnexpectedEOF:
		return block.Corrupt(format, "DEFLATE data", d.offset(), "the file is truncated: %w", io.ErrUnexpectedEOF)
	case errors.As(err, &damage):
		return block.Corrupt(format, damage.Part, d.base+damage.Off, "%w", damage.Err)
	}
	return err
}
