package gzindex

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzindex/tables"
)

// tableSpan is how many bytes lie between two points that a table gives, at least: they cost no window, so that it may be little.
const tableSpan = 256 << 10

// scannerSize is about how much memory scanAll takes besides the index, in bytes.
const scannerSize = 2 << 20

// indexInside returns the index that follows from a table inside the file; nil where there is none.
func indexInside(ctx context.Context, file block.Device, scan ScanOptions, o Options) (*Index, error) {
	t, err := tables.Read(ctx, file, tables.Options{Span: tableSpan, Places: int(scan.Limit / pointSize), Memory: o.Memory / 4})
	switch {
	case err != nil || t == nil, o.NoScan && (t.Size < 0 || !t.Summed):
		return nil, err
	case t.Size < 0:
		return scanParts(ctx, file, t.Places, scan, o)
	}
	x := &Index{size: t.Size, fileSize: file.Size(), complete: true, table: t.Name}
	for _, p := range t.Places {
		k := atBlock
		if p.Member {
			k = atMember
		}
		x.points = append(x.points, point{image: p.Image, bit: p.File * 8, kind: k})
	}
	x.identity, err = identityOf(ctx, file)
	return x, err
}

// scanParts scans a file from several members on at once. Places that turn out to be no beginnings of members are no index: it returns nil.
func scanParts(ctx context.Context, file block.Device, at []tables.Place, scan ScanOptions, o Options) (*Index, error) {
	workers := int(min(int64(o.Workers), o.Memory/4/scannerSize))
	at = fewer(at, file.Size(), max(1, 4*workers))
	if len(at) < 2 || workers < 2 {
		return nil, nil
	}
	scan.Limit /= int64(len(at))
	parts := make([]*Index, len(at))
	told := progressSum(o.Progress, len(at))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for i := range at {
		end := file.Size()
		if i+1 < len(at) {
			end = at[i+1].File
		}
		g.Go(func() error {
			w, err := block.NewWindow(file, at[i].File, end-at[i].File)
			if err != nil {
				return err
			}
			parts[i], err = scanAll(gctx, w, scan, told(i))
			return err
		})
	}
	err := g.Wait()
	if errors.Is(err, block.ErrNotFormat) || errors.As(err, new(*block.CorruptError)) {
		return nil, nil // a scan from the beginning tells which is damaged, the file or the table
	}
	if err != nil {
		return nil, err
	}
	return join(ctx, file, parts)
}

// fewer returns the places of at that divide a file of n bytes into so many parts, about.
func fewer(at []tables.Place, n int64, parts int) []tables.Place {
	kept := at[:1]
	for _, p := range at[1:] {
		if p.File-kept[len(kept)-1].File >= n/int64(parts) {
			kept = append(kept, p)
		}
	}
	return kept
}

// join returns the index of a file that consists of parts.
func join(ctx context.Context, file block.Device, parts []*Index) (*Index, error) {
	x := &Index{complete: true}
	for _, part := range parts {
		for _, p := range part.points {
			p.image, p.bit = p.image+x.size, p.bit+x.fileSize*8
			if n := len(x.points); n > 0 && x.points[n-1].image == p.image {
				x.points = x.points[:n-1] // a part that made nothing
			}
			x.points = append(x.points, p)
		}
		for _, z := range part.zeros {
			x.zeros = append(x.zeros, run{z.off + x.size, z.len})
		}
		x.size, x.fileSize = x.size+part.size, x.fileSize+part.fileSize
	}
	var err error
	x.identity, err = identityOf(ctx, file)
	return x, err
}

// progressSum returns a function per part that tells f how much of all parts was scanned.
func progressSum(f func(int64), parts int) func(i int) func(int64) {
	var mu sync.Mutex
	var sum int64
	done := make([]int64, parts)
	return func(i int) func(int64) {
		if f == nil {
			return nil
		}
		return func(n int64) {
			mu.Lock()
			defer mu.Unlock()
			sum, done[i] = sum+n-done[i], n
			f(sum)
		}
	}
}
