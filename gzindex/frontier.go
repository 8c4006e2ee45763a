package gzindex

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/imgtool/imgtool/block"
)

// frontier scans a file as far as it is read. What lies behind it is read by the index that grows on the way.
type frontier struct {
	d    *Device
	s    *Scanner
	how  string        // the size is known, for messages
	turn chan struct{} // holds a token when nobody scans; who has it owns what follows

	err error  // the scan ended so
	buf []byte // a window, and then what was decoded
	at  int    // the end of it
	n   int    // how much of it belongs to the piece at off of the image
	off int64
}

func newFrontier(d *Device, o ScanOptions, how string) *frontier {
	f := &frontier{d: d, how: how, turn: make(chan struct{}, 1), buf: make([]byte, windowLen+2*blockLen+2*Slop)}
	// A call's context must not end the scan, which outlives it. Every step looks at the caller's.
	f.s = NewScanner(&input{ctx: context.Background(), file: d.file, soft: d.file.Size()}, o)
	f.turn <- struct{}{}
	return f
}

// reach scans until the span in which byte off lies has an end.
func (f *frontier) reach(ctx context.Context, off int64) error {
	select {
	case <-f.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { f.turn <- struct{}{} }()
	for {
		if _, ok := f.d.spanAt(off); ok {
			return nil
		}
		if f.err != nil {
			return f.err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		f.err = f.step()
	}
}

// step decodes a little and caches the pieces that are whole. At the end of the file it compares the sizes.
func (f *frontier) step() error {
	if f.at > len(f.buf)-blockLen-2*Slop {
		from := max(0, f.at-f.n-windowLen)
		f.at = copy(f.buf, f.buf[from:f.at])
	}
	n, err := f.s.step(f.buf[:min(len(f.buf), f.at-f.n+blockLen+Slop)], f.at)
	f.at, f.n = f.at+n, f.n+n
	pos := f.off + int64(f.n)
	switch {
	case err == io.EOF && pos == f.d.size:
		f.cut(f.n)
		return errDone
	case err == io.EOF:
		return f.wrongSize("has %d bytes", pos)
	case err != nil:
		return err
	case pos > f.d.size:
		return f.wrongSize("has %d bytes at least", pos)
	}
	for f.n >= blockLen {
		f.cut(blockLen)
	}
	if f.n > 0 && f.d.index.covered() == pos {
		f.cut(f.n)
	}
	return nil
}

// errDone: the whole file was scanned. Nobody sees it: all spans have their ends.
var errDone = errors.New("gzindex: scanned to the end")

func (f *frontier) wrongSize(has string, n int64) error {
	return block.Corrupt(format, "file", f.s.Offset(), "the image "+has+", and not the %d that were probable by %s", n, f.d.size, f.how)
}

// cut caches the next k bytes as a piece.
func (f *frontier) cut(k int) {
	if k == 0 {
		return
	}
	data := f.buf[f.at-f.n:][:k]
	if block.IsZero(data) {
		data = zeroPiece[:k]
	} else {
		data = bytes.Clone(data)
	}
	f.d.cache.put(piece{f.off, int64(k)}, data)
	f.off, f.n = f.off+int64(k), f.n-k
}
