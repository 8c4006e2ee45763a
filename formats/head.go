package formats

import (
	"context"
	"strings"

	"github.com/imgtool/imgtool/block"
)

// HeadSize is how many bytes a Head shows at most, in bytes.
const HeadSize = 64 << 10

// Head is what a probe sees of an image: its first bytes, read once, and other ranges that are read when a probe asks for them, which
// over a network is slow. What cannot be read is nil; the first error is remembered. A Head is used by one goroutine at a time; its copies
// are the same Head. The zero value shows nothing.
type Head struct {
	first []byte
	size  int64
	far   func(p []byte, off int64) error
	err   *error
}

// NewHead reads the first bytes of d. A failure is not returned but kept for Err, as with every other range.
func NewHead(ctx context.Context, d block.Device) Head {
	h := Head{size: d.Size(), err: new(error)}
	h.far = func(p []byte, off int64) error { return d.Read(ctx, p, off) }
	h.first = h.read(0, int(min(h.size, HeadSize)))
	return h
}

// StreamHead returns a view of a pipe of which the first bytes are known. Nothing else of it can be seen, and its size is not known unless
// whole says that the first bytes are all there are. The Head keeps first, which must not change.
func StreamHead(first []byte, whole bool) Head {
	h := Head{first: first[:min(len(first), HeadSize)], size: -1, err: new(error)}
	if whole {
		h.size = int64(len(first))
	}
	return h
}

// Size returns the size in bytes, or -1 where it is not known.
func (h Head) Size() int64 { return h.size }

// First returns the first bytes: HeadSize of them, or all where there are fewer. They must not be changed.
func (h Head) First() []byte { return h.first }

// HasPrefix reports whether the image starts with magic.
func (h Head) HasPrefix(magic string) bool {
	return strings.HasPrefix(string(h.first[:min(len(magic), len(h.first))]), magic)
}

// At returns the n bytes at off, or nil where the image does not have all of them, they cannot be read, or n is more than HeadSize.
// The bytes must not be changed.
func (h Head) At(off int64, n int) []byte {
	if n <= 0 || n > HeadSize || off < 0 {
		return nil
	}
	if end, ok := block.Add(off, int64(n)); ok && end <= int64(len(h.first)) {
		return h.first[off:end:end]
	}
	if h.far == nil || block.CheckRange(off, int64(n), h.size) != nil {
		return nil
	}
	return h.read(off, n)
}

// Tail returns the last n bytes, or nil as At does.
func (h Head) Tail(n int) []byte {
	if h.size < int64(n) {
		return nil
	}
	return h.At(h.size-int64(n), n)
}

// Err returns the first error of reading, or nil.
func (h Head) Err() error {
	if h.err == nil {
		return nil
	}
	return *h.err
}

func (h Head) read(off int64, n int) []byte {
	p := make([]byte, n)
	if err := h.far(p, off); err != nil {
		if *h.err == nil {
			*h.err = err
		}
		return nil
	}
	return p
}
