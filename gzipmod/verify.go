package gzipmod

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"runtime"
	"slices"
	"sync"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/deflate"
	"github.com/imgtool/imgtool/internal/crcmath"
)

// VerifyOptions for Verify. The zero value is a good default.
type VerifyOptions struct {
	Workers  int                     // 0 means one per processor
	Progress func(done, total int64) // bytes of the image; calls come one at a time
}

// verifyPiece is how much of a hole's DEFLATE form one worker compares at a time.
const verifyPiece = 64 << 20

// Verify reads the whole file and checks everything it says against everything else: each chunk decodes to its length and CRC, holes are
// zeros, stored blocks lie where they should, regions have the CRCs of the index, the trailer has that of the image, and nothing
// follows it. It returns the layout and what is wrong, in the order of the file, and an error where it could not check.
func Verify(ctx context.Context, file block.Device, o VerifyOptions) (*Layout, []*block.CorruptError, error) {
	l, err := ReadLayout(ctx, file)
	if err != nil {
		return nil, nil, err
	}
	if !l.Complete {
		return l, nil, ErrIncomplete
	}
	v := &verifier{file: file, layout: l, sums: make([]uint32, len(l.Regions)), progress: o.Progress}
	if err := checkSize(file, l); err != nil {
		err = v.problem(err)
		return l, v.problems, err
	}
	workers := o.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	if err := v.run(ctx, workers); err != nil {
		return l, nil, err
	}
	v.compareSums()
	if err := v.problem(checkTail(ctx, file, l)); err != nil {
		return l, nil, err
	}
	if extra := file.Size() - l.FileSize; extra > 0 {
		v.problem(block.Corrupt(indexFormat, "file", l.FileSize, "%d bytes follow the trailer; many readers refuse that", extra))
	}
	slices.SortStableFunc(v.problems, func(a, b *block.CorruptError) int {
		if a.Off < b.Off {
			return -1
		} else if a.Off > b.Off {
			return 1
		}
		return 0
	})
	return l, v.problems, nil
}

// piece is what one worker checks at a time: n bytes of the image in region r, and their CRC.
type piece struct {
	region int
	n      int64
	check  func(ctx context.Context, u *unpacker) (crc uint32, err error)
	crc    uint32
}

type verifier struct {
	file     block.Device
	layout   *Layout
	sums     []uint32 // by region, of what was read
	progress func(done, total int64)

	mu       sync.Mutex
	problems []*block.CorruptError
	done     int64
}

// problem notes a corruption and returns nil; any other error it returns.
func (v *verifier) problem(err error) error {
	var c *block.CorruptError
	if !errors.As(err, &c) {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.problems = append(v.problems, c)
	return nil
}

// run checks all pieces and combines their CRCs into those of the regions.
func (v *verifier) run(ctx context.Context, workers int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan *piece)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			u := newUnpacker()
			for p := range work {
				crc, err := p.check(ctx, u)
				if err = v.problem(err); err != nil {
					cancel(err)
				}
				p.crc = crc
				v.advance(p.n)
			}
		})
	}
	var pieces []*piece
	for i := range v.layout.Regions {
		for p := range v.pieces(i) {
			select {
			case work <- p:
				pieces = append(pieces, p)
				continue
			case <-ctx.Done():
			}
			break
		}
	}
	close(work)
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, p := range pieces {
		v.sums[p.region] = crcmath.Combine(v.sums[p.region], p.crc, p.n)
	}
	return nil
}

func (v *verifier) advance(n int64) {
	if v.progress == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done += n
	v.progress(v.done, v.layout.Size)
}

// pieces yields what is to be checked in region i, in order.
func (v *verifier) pieces(i int) func(yield func(*piece) bool) {
	r, l := v.layout.Regions[i], v.layout
	return func(yield func(*piece) bool) {
		switch r.Kind {
		case Hole:
			v.holePieces(i, yield)
		case Kept:
			for at := int64(0); at < r.Len; at += storedBatch {
				n := min(storedBatch, r.Len-at)
				if !yield(&piece{region: i, n: n, check: func(ctx context.Context, _ *unpacker) (uint32, error) {
					return readStored(ctx, v.file, r, at, n)
				}}) {
					return
				}
			}
		default:
			for k := range l.chunks(r) {
				_, n := l.chunkRange(r, k)
				if !yield(&piece{region: i, n: n, check: func(ctx context.Context, u *unpacker) (uint32, error) {
					err := l.checkChunk(ctx, v.file, u, r, k, n)
					return l.Chunks[r.chunk+k].CRC, err
				}}) {
					return
				}
			}
		}
	}
}

// holePieces yields the comparison of a hole with what a hole of its length looks like; the image's bytes are counted with its last piece.
func (v *verifier) holePieces(i int, yield func(*piece) bool) {
	r := v.layout.Regions[i]
	z := deflate.Zeros(r.Len)
	off := r.FileOff + int64(len(z.Prefix))
	for left := z.Middle; left > 0; {
		at, n := off, min(left, verifyPiece)
		if !yield(&piece{region: i, check: func(ctx context.Context, _ *unpacker) (uint32, error) {
			return 0, v.isZero(ctx, at, n)
		}}) {
			return
		}
		off, left = off+n, left-n
	}
	yield(&piece{region: i, n: r.Len, check: func(ctx context.Context, _ *unpacker) (uint32, error) {
		if err := v.equal(ctx, r.FileOff, z.Prefix); err != nil {
			return 0, err
		}
		return crcmath.Zeros(r.Len), v.equal(ctx, r.FileOff+int64(len(z.Prefix))+z.Middle, z.Suffix)
	}})
}

// equal checks that the file has these bytes at off.
func (v *verifier) equal(ctx context.Context, off int64, want []byte) error {
	p := make([]byte, len(want))
	if err := v.file.Read(ctx, p, off); err != nil {
		return err
	}
	for i := range p {
		if p[i] != want[i] {
			return block.Corrupt(indexFormat, "hole", off+int64(i), "byte %#02x should be %#02x", p[i], want[i])
		}
	}
	return nil
}

// isZero checks that the file is zero in the n bytes from off. Holes of the file are not read.
func (v *verifier) isZero(ctx context.Context, off, n int64) error {
	var buf []byte
	for e, err := range block.Walk(ctx, v.file, block.Map{}, off, off+n) {
		if err != nil {
			return err
		}
		if e.Flags&block.ExtZero != 0 {
			continue
		}
		if buf == nil {
			buf = make([]byte, min(n, 1<<20))
		}
		for at := e.Off; at < e.End(); at += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), e.End()-at)]
			if err := v.file.Read(ctx, p, at); err != nil {
				return err
			}
			if !block.IsZero(p) {
				i := slices.IndexFunc(p, func(b byte) bool { return b != 0 })
				return block.Corrupt(indexFormat, "hole", at+int64(i), "byte %#02x should be zero", p[i])
			}
		}
	}
	return nil
}

// readStored checks the headers of the stored blocks that hold n bytes from byte at of a kept region, at being where a block begins, and
// returns the CRC-32 of the bytes.
func readStored(ctx context.Context, file block.Device, r Region, at, n int64) (uint32, error) {
	var crc uint32
	buf := make([]byte, storedHeader+StoredLen)
	for end := at + n; at < end; at += StoredLen {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		p := buf[:storedHeader+min(StoredLen, r.Len-at)]
		off := r.storedOff(at) - storedHeader
		if off+int64(len(p)) > file.Size() {
			return 0, block.Corrupt(indexFormat, "stored block", off, "%w", errTruncated)
		}
		if err := file.Read(ctx, p, off); err != nil {
			return 0, err
		}
		if want := appendStoredHeader(nil, len(p)-storedHeader); string(want) != string(p[:storedHeader]) {
			return 0, block.Corrupt(indexFormat, "stored block", off, "its header is %x, not %x", p[:storedHeader], want)
		}
		crc = crc32.Update(crc, crc32.IEEETable, p[storedHeader:])
	}
	return crc, nil
}

// compareSums compares what was read of each region with the index, where no part of the region was found bad before.
func (v *verifier) compareSums() {
	for i, r := range v.layout.Regions {
		end := v.layout.FileSize
		if i+1 < len(v.layout.Regions) {
			end = v.layout.Regions[i+1].FileOff
		}
		inside := func(c *block.CorruptError) bool { return c.Off >= r.FileOff && c.Off < end }
		if v.sums[i] != r.CRC && !slices.ContainsFunc(v.problems, inside) {
			v.problem(block.Corrupt(indexFormat, fmt.Sprintf("%v region %d", r.Kind, i), r.FileOff,
				"its content has the CRC-32 %08x, the index says %08x", v.sums[i], r.CRC))
		}
	}
}
