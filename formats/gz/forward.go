package gz

import (
	"container/list"
	"context"
	"errors"
	"io"
	"sort"
	"sync"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

const (
	forwardBlock   = 1 << 20   // bytes that are cached together
	forwardCache   = 128 << 20 // bytes of blocks that are cached, unless the caller says otherwise
	forwardZeroRun = 64 << 10  // the shortest run of zeros that Extents shows
	maxRestarts    = 1 << 16   // members that are remembered
)

// forward is a foreign gzip file as a device. DEFLATE cannot be entered in the middle, so it decodes from the beginning of a member; what it
// passes it caches. Opening it decodes the file once: before that not even its size is known.
type forward struct {
	block.ReadOnly
	file  block.Device
	info  block.Info
	size  int64
	zeros []block.Extent // runs of zeros, in order
	marks []restart      // where members begin, in order

	calls block.Calls

	mu     sync.Mutex // guards what follows
	dec    *decoder
	pos    int64 // of dec in the image
	limit  int   // blocks in the cache
	blocks map[int64]*list.Element
	order  list.List // of *cachedBlock, the most recently used first
}

// restart is a place where decoding can begin.
type restart struct{ image, file int64 }

type cachedBlock struct {
	off  int64
	data []byte
}

// openForward reads all of file once, and checks it.
func openForward(ctx context.Context, file block.Device, o formats.OpenOptions) (block.Device, error) {
	f := &forward{file: file, blocks: map[int64]*list.Element{}, limit: forwardCache / forwardBlock}
	if o.Memory > 0 {
		f.limit = max(int(o.Memory/forwardBlock), 1)
	}
	f.info = block.Info{Name: file.Info().Name, Format: Name, MinBlock: 1, PreferredBlock: forwardBlock, Caps: block.Caps{Packed: true}}
	d := newDecoder(io.NewSectionReader(block.At(ctx, file), 0, file.Size()), 0)
	d.started = func(fileOff, out int64) {
		if len(f.marks) < maxRestarts && (len(f.marks) == 0 || out-f.marks[len(f.marks)-1].image >= forwardBlock) {
			f.marks = append(f.marks, restart{out, fileOff})
		}
	}
	buf := make([]byte, forwardZeroRun)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := readFull(d, buf)
		if n == len(buf) && block.IsZero(buf) {
			f.zeros = block.AppendExtent(f.zeros, 0, block.Extent{Off: f.size, Len: int64(n), Flags: block.ExtZero})
		}
		f.size += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	f.rewind(0)
	return f, nil
}

// readFull fills p, and returns the reader's own error, io.EOF included, where it gives less.
func readFull(r io.Reader, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		k, err := r.Read(p[n:])
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// rewind makes the decoder begin at the last restart at or before off.
func (f *forward) rewind(off int64) {
	at := restart{}
	if i := sort.Search(len(f.marks), func(i int) bool { return f.marks[i].image > off }); i > 0 {
		at = f.marks[i-1]
	}
	// The context of each call is checked per block: the decoder outlives it.
	r := io.NewSectionReader(block.At(context.Background(), f.file), at.file, f.file.Size()-at.file)
	f.dec, f.pos = newDecoder(r, at.file), at.image
}

func (f *forward) Info() block.Info { return f.info }
func (f *forward) Size() int64      { return f.size }

// enter begins a call; the caller must call f.calls.End where it returns nil.
func (f *forward) enter(ctx context.Context, off, n int64) error {
	if err := f.calls.Begin(ctx); err != nil {
		return err
	}
	err := block.CheckRange(off, n, f.size)
	if err != nil {
		f.calls.End()
	}
	return err
}

func (f *forward) Read(ctx context.Context, p []byte, off int64) error {
	if err := f.enter(ctx, off, int64(len(p))); err != nil {
		return err
	}
	defer f.calls.End()
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(p) > 0 {
		from := block.RoundDown(off, forwardBlock)
		data, err := f.block(ctx, from)
		if err != nil {
			return err
		}
		n := copy(p, data[off-from:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// block returns the block at off, a multiple of forwardBlock.
func (f *forward) block(ctx context.Context, off int64) ([]byte, error) {
	if e := f.blocks[off]; e != nil {
		f.order.MoveToFront(e)
		return e.Value.(*cachedBlock).data, nil
	}
	if f.pos > off || f.nearerRestart(off) {
		f.rewind(off)
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		// A restart may lie inside a block: what comes before the next block's beginning is passed over.
		from := block.RoundDown(f.pos, forwardBlock)
		whole := f.pos == from
		data := make([]byte, min(forwardBlock-(f.pos-from), f.size-f.pos))
		n, err := readFull(f.dec, data)
		f.pos += int64(n)
		if n < len(data) {
			f.rewind(0)
			if err == io.EOF {
				err = block.Corrupt(Name, "file", f.dec.offset(), "it changed while it was open: %w", io.ErrUnexpectedEOF)
			}
			return nil, err
		}
		if !whole {
			continue
		}
		f.keep(from, data)
		if from == off {
			return data, nil
		}
	}
}

// nearerRestart reports whether a restart lies between the decoder's place and off.
func (f *forward) nearerRestart(off int64) bool {
	i := sort.Search(len(f.marks), func(i int) bool { return f.marks[i].image > off })
	return i > 0 && f.marks[i-1].image > f.pos
}

func (f *forward) keep(off int64, data []byte) {
	if f.blocks[off] != nil {
		return
	}
	for f.order.Len() >= f.limit {
		e := f.order.Back()
		delete(f.blocks, f.order.Remove(e).(*cachedBlock).off)
	}
	f.blocks[off] = f.order.PushFront(&cachedBlock{off, data})
}

func (f *forward) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if m != (block.Map{}) {
		return buf, errors.ErrUnsupported
	}
	if err := f.enter(ctx, off, n); err != nil {
		return buf, err
	}
	defer f.calls.End()
	end := off + n
	for i := sort.Search(len(f.zeros), func(i int) bool { return f.zeros[i].End() > off }); off < end; i++ {
		z := block.Extent{Off: end}
		if i < len(f.zeros) {
			z = f.zeros[i]
		}
		if until := min(z.Off, end); off < until {
			buf = append(buf, block.Extent{Off: off, Len: until - off, Flags: block.ExtAlloc | block.ExtPacked})
			off = until
		}
		if z, ok := z.Clip(off, end-off); ok {
			buf = append(buf, z)
			off = z.End()
		}
	}
	return buf, nil
}

func (f *forward) Prefetch(ctx context.Context, off, n int64) error {
	if err := f.enter(ctx, off, n); err != nil {
		return err
	}
	f.calls.End()
	return nil
}

func (f *forward) Close() error {
	if err := f.calls.Close(); err != nil {
		return err
	}
	return f.file.Close()
}
