package gzindex

import (
	"context"
	"errors"
	"io"
	"runtime"

	"github.com/imgtool/imgtool/block"
)

// Options for Open.
type Options struct {
	// Index is a complete index of the file. The Device uses it and adds to it what it learns; nil makes one.
	Index *Index
	// TrustIndex makes Extents show the zeros of the given index before the spans that they lie in were checked. An index that lies could hide
	// content so.
	TrustIndex bool
	// TrustSize makes Open return at once where GuessSize knows a size. The Device scans the file as far as it is read, and a
	// read that reaches the last byte fails where the image turns out to be of another size.
	TrustSize bool
	// NoScan makes Open return errors.ErrUnsupported rather than read all of the file, or read it by a table of pieces without checksums: a
	// Scanner serves better who reads everything.
	NoScan bool
	// Memory is how many bytes cache, index and decoders may take; 0 means 128 MiB, and less than 8 MiB means 8 MiB. An index that is
	// given does not count.
	Memory int64
	// Workers is how many goroutines decode ahead of a reader at a time; 0 means as many as there are CPUs.
	Workers int
	// Progress, where set, is told how many bytes of the file were scanned, from time to time, while Open makes the index.
	Progress func(fileBytes int64)
}

const (
	defaultMemory = 128 << 20
	minMemory     = 8 << 20
	blockLen      = 512 << 10 // bytes of a piece
	pieceSize     = blockLen + windowLen
	maxFull       = 12 // pieces that are kept of a span that is decoded whole, enough for one of DefaultSpan that waits for a flush mark,
	maxFound      = 64 // with those that are all zero
	maxCursors    = 16
	preferred     = 1 << 20
)

// zeroPiece is what all pieces of zeros share; nobody writes into it.
var zeroPiece [blockLen]byte

// Device is a gzip file as a disk, read-only. Its methods may be called by many goroutines; readers of different spans decode in parallel.
type Device struct {
	block.ReadOnly
	file    block.Device
	info    block.Info
	size    int64
	index   *Index
	trusted bool      // the index's zeros
	front   *frontier // scans on; nil where the index is complete from the beginning

	calls   block.Calls
	cache   cache
	flights flights
	cursors *cursors
	full    int // pieces with data of their own that one cursor decodes before they are cached
	ahead   readAhead
}

// Open opens the gzip file in file, and owns it from then on unless it returns an error: block.ErrNotFormat for what is no gzip file, a
// *block.CorruptError for a damaged one, or one that Options.Index does not belong to, which is ErrOtherFile as well.
func Open(ctx context.Context, file block.Device, o Options) (*Device, error) {
	if o.Memory == 0 {
		o.Memory = defaultMemory
	}
	o.Memory = max(o.Memory, minMemory)
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	d := &Device{file: file, index: o.Index, trusted: o.TrustIndex || o.Index == nil}
	d.info = block.Info{Name: file.Info().Name, Format: format, MinBlock: 1, PreferredBlock: preferred, Caps: block.Caps{Packed: true, Prefetch: true}}
	share := o.Memory / 8 * 3 // an index takes the last quarter
	d.cache.limit = share
	d.full = int(max(1, min((share-cursorSize)/pieceSize-1, maxFull)))
	d.cursors = newCursors(int(max(1, min(share/(cursorSize+int64(d.full+1)*pieceSize), maxCursors))))
	d.ahead.init(d, o.Workers)
	if err := d.learn(ctx, o); err != nil {
		d.ahead.stop()
		return nil, err
	}
	return d, nil
}

// learn finds an index, or begins one.
func (d *Device) learn(ctx context.Context, o Options) (err error) {
	scan := ScanOptions{Index: true, Limit: min(o.Memory/4, DefaultLimit)}
	switch {
	case o.Index == nil:
		d.index, err = indexInside(ctx, d.file, scan, o)
	case !o.Index.Complete():
		err = errIncomplete
	default:
		err = o.Index.Matches(ctx, d.file)
		if err == nil && o.Index.Size() == 0 { // nothing would ever be decoded, and so found out
			d.index, err = scanAll(ctx, d.file, scan, o.Progress)
		}
	}
	if err != nil {
		return err
	}
	if d.index == nil && o.TrustSize {
		if size, how, ok := GuessSize(ctx, d.file); ok {
			d.size, d.info.Probable = size, true
			d.front = newFrontier(d, scan, how)
			d.index = d.front.s.Index()
			return nil
		}
	}
	if d.index == nil && o.NoScan {
		return errors.ErrUnsupported
	}
	if d.index == nil {
		if d.index, err = scanAll(ctx, d.file, scan, o.Progress); err != nil {
			return err
		}
	}
	d.size = d.index.Size()
	return nil
}

var errIncomplete = errors.New("gzindex: the index is not complete")

// scanAll reads all of file, and tells progress how many bytes were taken.
func scanAll(ctx context.Context, file block.Device, o ScanOptions, progress func(int64)) (*Index, error) {
	s := NewScanner(&input{ctx: ctx, file: file, soft: file.Size()}, o)
	buf := make([]byte, windowLen+blockLen+Slop)
	at := 0
	for {
		n, err := s.Fill(buf, at)
		if err == io.EOF {
			return s.Index(), nil
		}
		if err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if progress != nil {
			progress(s.Offset())
		}
		at = keepWindow(buf, at+n)
	}
}

// keepWindow moves the last windowLen bytes of buf[:at] to the beginning, where there is little room behind them, and returns where they end.
func keepWindow(buf []byte, at int) int {
	if len(buf)-at > blockLen/2 || at <= windowLen {
		return at
	}
	return copy(buf, buf[at-windowLen:at])
}

// Info implements block.Device.
func (d *Device) Info() block.Info { return d.info }

// Size implements block.Device.
func (d *Device) Size() int64 { return d.size }

// Index returns the index that the Device uses. Where the size was only probable it grows as reads go on.
func (d *Device) Index() *Index { return d.index }

// enter begins a call; the caller must call d.calls.End where it returns nil.
func (d *Device) enter(ctx context.Context, off, n int64) error {
	if err := d.calls.Begin(ctx); err != nil {
		return err
	}
	err := block.CheckRange(off, n, d.size)
	if err != nil {
		d.calls.End()
	}
	return err
}

// Read implements block.Device. A reader that goes forward is decoded ahead of.
func (d *Device) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.enter(ctx, off, int64(len(p))); err != nil {
		return err
	}
	defer d.calls.End()
	d.ahead.follow(off, int64(len(p)))
	for len(p) > 0 {
		data, at, err := d.piece(ctx, off)
		if err != nil {
			return err
		}
		n := copy(p, data[off-at:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// piece returns the piece in which byte off lies, and where it begins. The caller does not change the bytes.
func (d *Device) piece(ctx context.Context, off int64) (data []byte, at int64, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		sp, ok := d.spanAt(off)
		if !ok {
			if err := d.front.reach(ctx, off); err != nil {
				return nil, 0, err
			}
			continue
		}
		p := sp.pieceAt(off)
		if data, ok := d.cache.get(p); ok {
			return data, p.off, nil
		}
		work := p
		if !sp.checked {
			work = piece{sp.image, sp.len}
		}
		mine, err := d.flights.begin(ctx, work)
		if err != nil {
			return nil, 0, err
		}
		if !mine {
			continue
		}
		data, err = d.load(ctx, sp, p)
		d.flights.end(work)
		return data, p.off, err
	}
}

// pieceAt returns the piece of the span in which byte off of the image lies.
func (sp *span) pieceAt(off int64) piece {
	at := sp.image + block.RoundDown(off-sp.image, blockLen)
	return piece{at, min(blockLen, sp.image+sp.len-at)}
}

// load decodes a piece, and caches it. Of a span that was never checked it decodes everything, and caches what is read next as well.
func (d *Device) load(ctx context.Context, sp span, want piece) (data []byte, err error) {
	if data, ok := d.cache.get(want); ok { // put there since the caller looked
		return data, nil
	}
	c, inside, err := d.cursors.take(ctx, sp, want.off-sp.image)
	if err != nil {
		return nil, err
	}
	defer func() { d.cursors.give(c, err != nil) }()
	if !inside || !sp.checked {
		if err := c.enter(ctx, d.file, d.index, sp); err != nil {
			return nil, err
		}
	}
	var found []cached
	full := 0 // of them hold data of their own
	for c.at < sp.len && (data == nil || !sp.checked) {
		p := sp.pieceAt(sp.image + c.at)
		b, err := c.next(ctx, int(p.len))
		if err != nil {
			return nil, err
		}
		if !sp.checked && !d.index.zerosHold(p, b) {
			return nil, sp.blame(errZeros)
		}
		if p.off <= want.off-int64(d.full)*blockLen || full == d.full || len(found) == maxFound {
			continue
		}
		if block.IsZero(b) {
			b = zeroPiece[:len(b)]
		} else {
			c.detach()
			full++
		}
		found = append(found, cached{p, b})
		if p == want {
			data = b
		}
	}
	if c.at == sp.len {
		if err := c.check(); err != nil {
			return nil, err
		}
		d.index.setChecked(sp)
	}
	for _, f := range found {
		d.cache.put(f.piece, f.data)
	}
	return data, nil
}

// spanAt returns the span in which byte off lies; not ok where the frontier has to go on first. Nothing is known of the last byte until the end
// of the file was seen.
func (d *Device) spanAt(off int64) (span, bool) {
	sp, ok := d.index.spanAt(off)
	if ok && d.front != nil && sp.image+sp.len >= d.size && !(d.index.Complete() && d.index.Size() == d.size) {
		return span{}, false
	}
	return sp, ok
}

// Extents implements block.Device: the zeros that are known of, and data.
func (d *Device) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if m != (block.Map{}) {
		return buf, errors.ErrUnsupported
	}
	if err := d.enter(ctx, off, n); err != nil {
		return buf, err
	}
	defer d.calls.End()
	base, end := len(buf), off+n
	add := func(to int64, flags block.ExtentFlags) {
		if off < to {
			buf = block.AppendExtent(buf, base, block.Extent{Off: off, Len: to - off, Flags: flags})
			off = to
		}
	}
	d.index.zeroRuns(off, n, d.trusted, func(z run) {
		add(z.off, block.ExtAlloc|block.ExtPacked)
		add(z.end(), block.ExtZero)
	})
	add(end, block.ExtAlloc|block.ExtPacked)
	return buf, nil
}

// Prefetch implements block.Device: the range, or as much of it as a quarter of the cache holds, is decoded.
func (d *Device) Prefetch(ctx context.Context, off, n int64) error {
	if err := d.enter(ctx, off, n); err != nil {
		return err
	}
	defer d.calls.End()
	d.ahead.want(off, min(off+n, off+d.cache.limit/4))
	return nil
}

// Close implements block.Device.
func (d *Device) Close() error {
	if err := d.calls.Close(); err != nil {
		return err
	}
	d.ahead.stop()
	return d.file.Close()
}

var _ block.Device = (*Device)(nil)
