package testimages

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/imgtool/imgtool/block"
)

const (
	pieceSize = mib     // bytes that are made and written at once; a multiple of chunkSize
	overshoot = 8 * kib // what content.append may write past the end and take back
)

// writeFiles writes the content of files where places says, with as many workers as there are processors, and returns their entries in
// the manifest. d is the partition p.
func writeFiles(ctx context.Context, d block.Device, w *words, p Partition, files []*entry, places [][]block.Extent) ([]File, error) {
	listed := make([]File, len(files))
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			buf := make([]byte, 0, pieceSize+overshoot)
			for {
				i := int(next.Add(1) - 1)
				if i >= len(files) {
					return nil
				}
				f := File{Partition: p.Number, Path: files[i].path, Size: files[i].size, Off: -1}
				if len(places[i]) == 1 {
					f.Off = p.Off + places[i][0].Off
				}
				var err error
				if f.SHA256, err = writeFile(ctx, d, w, &files[i].content, places[i], buf); err != nil {
					return err
				}
				listed[i] = f
			}
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	regular := listed[:0]
	for i, f := range files {
		if f.link == "" {
			regular = append(regular, listed[i])
		}
	}
	return regular, nil
}

// writeFile makes the content of one file, writes it, and returns its SHA-256 in hexadecimal. buf is scratch space.
func writeFile(ctx context.Context, d block.Device, w *words, c *content, place []block.Extent, buf []byte) (string, error) {
	sum := sha256.New()
	done := int64(0) // bytes of place[0]
	for off := int64(0); off < c.size; off += pieceSize {
		piece := c.append(w, buf[:0], off, min(pieceSize, c.size-off))
		sum.Write(piece)
		for len(piece) > 0 {
			e := place[0]
			k := min(e.Len-done, int64(len(piece)))
			if err := d.Write(ctx, piece[:k], e.Off+done, 0); err != nil {
				return "", err
			}
			piece = piece[k:]
			if done += k; done == e.Len {
				place, done = place[1:], 0
			}
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
