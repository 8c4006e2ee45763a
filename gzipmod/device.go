package gzipmod

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzipmod/mark"
)

// OpenOptions for Open.
type OpenOptions struct {
	// Write makes the kept ranges writable. The file must be locked against other writers. Without a Mark Open returns errors.ErrUnsupported.
	Write bool
	// Mark keeps the mark of unfinished changes. For reading it may be nil; then an interrupted change is not noticed.
	Mark mark.Store
	// Cache is how many bytes of decoded chunks are kept; 0 means 64 MiB. One chunk is kept in any case.
	Cache int64
}

// Device is a modifiable image. Its kept ranges can be written where it was opened so; the rest is read-only, as Extents says.
//
// A Write is in the file when it returns, and the checksums follow at Flush or Close. Whatever happens in between, Repair puts them right.
type Device struct {
	file   block.Device
	info   block.Info
	layout *Layout
	dirty  bool // a change was interrupted before Open
	cache  chunkCache
	unpack unpackers

	calls   block.Calls // settling is done alone
	changes *changes    // nil for reading only
}

// Open opens a modifiable image in file and takes ownership of it, unless it returns an error: block.ErrNotFormat for what is no gzip file,
// ErrNoIndex for a foreign one, ErrIncomplete, ErrDirty for writing where a change was interrupted.
func Open(ctx context.Context, file block.Device, o OpenOptions) (*Device, error) {
	dirty, err := mark.Exists(ctx, o.Mark)
	if err != nil {
		return nil, err
	}
	if dirty && o.Write {
		return nil, ErrDirty
	}
	l, header, err := readLayout(ctx, file)
	if err != nil {
		if dirty && errors.As(err, new(*block.CorruptError)) {
			return nil, fmt.Errorf("%w: %w", ErrDirty, err)
		}
		return nil, err
	}
	if !l.Complete {
		return nil, ErrIncomplete
	}
	if err := checkSize(file, l); err != nil {
		return nil, err
	}
	if err := checkTail(ctx, file, l); err != nil && !(dirty && errors.As(err, new(*block.CorruptError))) {
		return nil, err
	}
	d := &Device{file: file, layout: l, dirty: dirty, cache: chunkCache{limit: o.Cache}}
	if d.cache.limit <= 0 {
		d.cache.limit = 64 << 20
	}
	lower := file.Info()
	d.info = block.Info{Name: lower.Name, Format: indexFormat, MinBlock: 1, PreferredBlock: l.ChunkSize, Caps: block.Caps{Packed: true}}
	if o.Write {
		if !lower.Caps.Write {
			return nil, block.ErrReadOnly
		}
		if o.Mark == nil {
			return nil, errNoMark
		}
		d.info.Caps.Write, d.info.Caps.MultiConn = true, true
		d.changes = newChanges(d, o.Mark, header)
	}
	return d, nil
}

// ReadLayout returns the layout of the image in file, complete or not. It reads the header and nothing else: Open looks at the end of the
// file as well. It returns block.ErrNotFormat and ErrNoIndex as Open does.
func ReadLayout(ctx context.Context, file block.Device) (*Layout, error) {
	l, _, err := readLayout(ctx, file)
	return l, err
}

func readLayout(ctx context.Context, file block.Device) (*Layout, []byte, error) {
	p := make([]byte, min(file.Size(), maxHeader))
	if err := file.Read(ctx, p, 0); err != nil {
		return nil, nil, err
	}
	l, err := parseHeader(p)
	if err != nil {
		return nil, nil, err
	}
	return l, p[:l.headerLen], nil
}

// checkSize compares the length of the file with the index, which is complete. What follows the image is no concern of a reader.
func checkSize(file block.Device, l *Layout) error {
	if n := file.Size(); n < l.FileSize {
		return block.Corrupt(indexFormat, "file", n, "%w, it should have %d bytes", errTruncated, l.FileSize)
	}
	return nil
}

// checkWhole checks that index and trailer agree, where the index is complete.
func checkWhole(ctx context.Context, file block.Device) error {
	l, err := ReadLayout(ctx, file)
	if err != nil || !l.Complete {
		return err
	}
	if err := checkSize(file, l); err != nil {
		return err
	}
	return checkTail(ctx, file, l)
}

// checkTail compares the end of the file with the index.
func checkTail(ctx context.Context, file block.Device, l *Layout) error {
	p := make([]byte, tailLen)
	at := l.FileSize - tailLen
	if err := file.Read(ctx, p, at); err != nil {
		return err
	}
	at += int64(len(finalBlock))
	crc, isize := binary.LittleEndian.Uint32(p[len(finalBlock):]), binary.LittleEndian.Uint32(p[len(finalBlock)+4:])
	switch want := l.CRC(); {
	case string(p[:len(finalBlock)]) != finalBlock:
		return block.Corrupt(indexFormat, "final block", at-int64(len(finalBlock)), "it is %x, not %x", p[:len(finalBlock)], finalBlock)
	case crc != want:
		return block.Corrupt(indexFormat, "trailer", at, "CRC32 is %08x, the index says %08x", crc, want)
	case isize != uint32(l.Size):
		return block.Corrupt(indexFormat, "trailer", at+4, "ISIZE is %d, the index says %d", isize, uint32(l.Size))
	}
	return nil
}

// Layout returns where everything lies. The caller does not change it. CRCs in it are as of the last Flush.
func (d *Device) Layout() *Layout { return d.layout }

// Dirty reports whether a change of the file was interrupted before it was opened.
func (d *Device) Dirty() bool { return d.dirty }

// Info implements block.Device.
func (d *Device) Info() block.Info { return d.info }

// Size implements block.Device.
func (d *Device) Size() int64 { return d.layout.Size }

// begin starts a call about a range; the caller must call d.calls.End where it returns nil.
func (d *Device) begin(ctx context.Context, off, n int64) error {
	if err := d.calls.Begin(ctx); err != nil {
		return err
	}
	err := block.CheckRange(off, n, d.layout.Size)
	if err != nil {
		d.calls.End()
	}
	return err
}

// Read implements block.Device. A chunk that is read whole is decoded into p; of a chunk that is read in part the rest is cached.
func (d *Device) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.begin(ctx, off, int64(len(p))); err != nil {
		return err
	}
	defer d.calls.End()
	for i := d.layout.regionAt(off); len(p) > 0; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		r := d.layout.Regions[i]
		n := min(int64(len(p)), r.End()-off)
		if err := d.readRegion(ctx, r, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (d *Device) readRegion(ctx context.Context, r Region, p []byte, off int64) error {
	switch r.Kind {
	case Hole:
		clear(p)
		return nil
	case Kept:
		return eachStored(r, off, int64(len(p)), func(fileOff, done, n int64) error {
			return d.file.Read(ctx, p[done:done+n], fileOff)
		})
	}
	for len(p) > 0 {
		k := int(off/d.layout.ChunkSize - r.Off/d.layout.ChunkSize)
		from, n := d.layout.chunkRange(r, k)
		part := p[:min(int64(len(p)), from+n-off)]
		if err := d.readChunk(ctx, r, k, part, off-from, n); err != nil {
			return err
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

// readChunk fills p from byte at of chunk k, which has n bytes.
func (d *Device) readChunk(ctx context.Context, r Region, k int, p []byte, at, n int64) error {
	if data, ok := d.cache.peek(r.chunk + k); ok {
		copy(p, data[at:])
		return nil
	}
	if int64(len(p)) == n {
		return d.decodeChunk(ctx, r, k, p)
	}
	data, err := d.cache.get(ctx, r.chunk+k, n, func(all []byte) error { return d.decodeChunk(ctx, r, k, all) })
	if err != nil {
		return err
	}
	copy(p, data[at:])
	return nil
}

// decodeChunk decodes all of chunk k into p.
func (d *Device) decodeChunk(ctx context.Context, r Region, k int, p []byte) error {
	u := d.unpack.get()
	defer d.unpack.put(u)
	return d.layout.decodeChunk(ctx, d.file, u, r, k, p)
}

func (l *Layout) decodeChunk(ctx context.Context, file block.Device, u *unpacker, r Region, k int, p []byte) error {
	return l.withChunk(ctx, file, u, r, k, func(packed []byte) (uint32, error) {
		err := u.unpack(p, packed)
		return crc32.ChecksumIEEE(p), err
	})
}

// checkChunk is decodeChunk for the check alone. The chunk has n bytes.
func (l *Layout) checkChunk(ctx context.Context, file block.Device, u *unpacker, r Region, k int, n int64) error {
	return l.withChunk(ctx, file, u, r, k, func(packed []byte) (uint32, error) { return u.sum(packed, n) })
}

// withChunk reads chunk k as it lies in the file, and checks the CRC-32 that decode returns.
func (l *Layout) withChunk(ctx context.Context, file block.Device, u *unpacker, r Region, k int, decode func(packed []byte) (uint32, error)) error {
	c := l.Chunks[r.chunk+k]
	packed := u.room(int(c.FileLen))
	fileOff := l.chunkFileOff(r, k)
	if err := file.Read(ctx, packed, fileOff); err != nil {
		return err
	}
	crc, err := decode(packed)
	if err == nil && crc != c.CRC {
		err = fmt.Errorf("its content has the CRC-32 %08x, not %08x", crc, c.CRC)
	}
	if err != nil {
		return block.Corrupt(indexFormat, fmt.Sprintf("chunk %d", r.chunk+k), fileOff, "%w", err)
	}
	return nil
}

// eachStored calls f for every piece of the n bytes from off of a kept region that lies in one stored block: where it lies in the file, how
// many bytes came before it, and its length.
func eachStored(r Region, off, n int64, f func(fileOff, done, n int64) error) error {
	for done := int64(0); done < n; {
		at := off + done - r.Off
		k := min(n-done, StoredLen-at%StoredLen)
		if err := f(r.storedOff(at), done, k); err != nil {
			return err
		}
		done += k
	}
	return nil
}

// Extents implements block.Device: one extent per region.
func (d *Device) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if m != (block.Map{}) {
		return buf, errors.ErrUnsupported
	}
	if err := d.begin(ctx, off, n); err != nil {
		return buf, err
	}
	defer d.calls.End()
	base := len(buf)
	for i := d.layout.regionAt(off); i < len(d.layout.Regions) && d.layout.Regions[i].Off < off+n; i++ {
		r := d.layout.Regions[i]
		e := block.Extent{Off: r.Off, Len: r.Len, Flags: block.ExtAlloc | block.ExtPacked}
		switch r.Kind {
		case Hole:
			e.Flags = block.ExtZero
		case Kept:
			e.Flags = block.ExtAlloc
		}
		if d.info.Caps.Write && r.Kind != Kept {
			e.Flags |= block.ExtReadOnly
		}
		if e, ok := e.Clip(off, n); ok {
			buf = block.AppendExtent(buf, base, e)
		}
	}
	return buf, nil
}

// Pin implements block.Pinner for kept ranges, a stored block at a time.
func (d *Device) Pin(ctx context.Context, off, n int64) (block.FileRange, func(), bool) {
	if n <= 0 || d.begin(ctx, off, n) != nil {
		return block.FileRange{}, nil, false
	}
	defer d.calls.End()
	r := d.layout.Regions[d.layout.regionAt(off)]
	if r.Kind != Kept {
		return block.FileRange{}, nil, false
	}
	at := off - r.Off
	return block.Pin(ctx, d.file, r.storedOff(at), min(n, r.End()-off, StoredLen-at%StoredLen))
}

// Prefetch implements block.Device: it only checks the range.
func (d *Device) Prefetch(ctx context.Context, off, n int64) error {
	if err := d.begin(ctx, off, n); err != nil {
		return err
	}
	d.calls.End()
	return nil
}

// Resize returns errors.ErrUnsupported, or ErrReadOnly where nothing can be written: an image in a .gz has its size for good.
func (d *Device) Resize(context.Context, int64) error {
	if d.changes == nil {
		return block.ErrReadOnly
	}
	return errors.ErrUnsupported
}

// Close settles the checksums, removes the mark, and closes the file. Where the settling fails the mark stays.
func (d *Device) Close() error {
	err := d.calls.Close()
	if err != nil {
		return err
	}
	if d.changes != nil {
		err = d.changes.finish(context.Background())
	}
	return errors.Join(err, d.file.Close())
}

var (
	_ block.Device = (*Device)(nil)
	_ block.Pinner = (*Device)(nil)
	_ io.Closer    = (*Device)(nil)
)
