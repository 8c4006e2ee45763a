package gzindex

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/imgtool/imgtool/block"
)

const (
	identityLen = sha256.Size
	edgeLen     = 64 << 10 // bytes at the beginning and at the end of a file by which it is known
)

// identifier passes a file on and notes by what it is known again.
type identifier struct {
	r    io.Reader
	n    int64  // bytes read
	head []byte // the first edgeLen bytes, or all
	tail []byte // the last
}

func newIdentifier(r io.Reader) *identifier { return &identifier{r: r} }

func (i *identifier) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	p = p[:n]
	i.n += int64(n)
	i.head = append(i.head, p[:min(n, edgeLen-len(i.head))]...)
	if keep := edgeLen - n; keep < len(i.tail) {
		i.tail = i.tail[:copy(i.tail, i.tail[len(i.tail)-max(0, keep):])]
	}
	i.tail = append(i.tail, p[max(0, n-edgeLen):]...)
	return n, err
}

func (i *identifier) sum() [identityLen]byte { return identify(i.head, i.tail) }

// identify returns the SHA-256 of the two edges of a file. They overlap where it is short.
func identify(head, tail []byte) (sum [identityLen]byte) {
	h := sha256.New()
	h.Write(head)
	h.Write(tail)
	h.Sum(sum[:0])
	return sum
}

// identityOf returns by what a file is known again.
func identityOf(ctx context.Context, file block.Device) (sum [identityLen]byte, err error) {
	edge := min(edgeLen, file.Size())
	head, tail := make([]byte, edge), make([]byte, edge)
	if err := file.Read(ctx, head, 0); err != nil {
		return sum, err
	}
	err = file.Read(ctx, tail, file.Size()-edge)
	return identify(head, tail), err
}

// ErrOtherFile: an index does not belong to the gzip file.
var ErrOtherFile = errors.New("the index is of another file")

// Matches returns nil where the index is of this file, as far as its length and its first and last 64 KiB tell; else a *block.CorruptError that
// is ErrOtherFile, or the error of reading.
func (x *Index) Matches(ctx context.Context, file block.Device) error {
	if n := file.Size(); n != x.fileSize {
		return block.Corrupt(format, "file", -1, "%w: that has %d bytes, this one %d", ErrOtherFile, x.fileSize, n)
	}
	identity, err := identityOf(ctx, file)
	if err == nil && identity != x.identity {
		err = block.Corrupt(format, "file", -1, "%w of the same length, or this one has been changed", ErrOtherFile)
	}
	return err
}
