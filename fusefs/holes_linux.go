package fusefs

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/imgtool/imgtool/block"
)

const (
	firstLook = 4 << 20 // bytes that a seek asks the extents of first; then twice as many, and so on
	lastLook  = 1 << 30

	spaceTime    = 100 * time.Millisecond // that adding up the space may take; what it has not come to counts as allocated
	spaceExtents = 1 << 16                // and extents that it may look at
)

// Lseek finds data and holes.
func (t *tree) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	if in.Offset >= uint64(t.size) {
		return fuse.Status(unix.ENXIO)
	}
	at, err := t.seek(int64(in.Offset), in.Whence == unix.SEEK_HOLE)
	if err != nil {
		return t.fail("map", at, t.size-at, err)
	}
	if at == t.size && in.Whence == unix.SEEK_DATA {
		return fuse.Status(unix.ENXIO)
	}
	out.Offset = uint64(at)
	return fuse.OK
}

// seek returns where the next hole or the next data is from off: the size of the device where there is none. Beside an error it returns what could
// not be described.
func (t *tree) seek(off int64, hole bool) (int64, error) {
	for look := int64(firstLook); off < t.size; look = min(2*look, lastLook) {
		for e, err := range block.Walk(t.ctx, t.dev, block.Map{}, off, off+min(look, t.size-off)) {
			if errors.Is(err, errors.ErrUnsupported) {
				e, err = block.Extent{Off: off, Len: t.size - off}, nil // nothing is known: data
			}
			if err != nil {
				return off, err
			}
			if (e.Flags&block.ExtZero != 0) == hole {
				return off, nil
			}
			off = e.End()
		}
	}
	return t.size, nil
}

// space is what the device occupies.
type space struct {
	stale atomic.Bool
	mu    sync.Mutex
	known bool
	next  time.Time // when it may be added up again
	bytes int64
}

// blocks returns the space that the device occupies, in 512 bytes: programs look for holes in files that occupy less than their size.
func (t *tree) blocks() int64 {
	s := &t.space
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); !s.known || s.stale.Load() && now.After(s.next) {
		s.stale.Store(false)
		s.bytes, s.known = t.allocated(), true
		s.next = now.Add(20 * time.Since(now)) // so that it takes a twentieth of the time at most
	}
	return (s.bytes + 511) / 512
}

// allocated adds up what is not known to be zero.
func (t *tree) allocated() int64 {
	ctx, cancel := context.WithTimeout(t.ctx, spaceTime)
	defer cancel()
	left, n := t.size, 0
	for e, err := range block.Walk(ctx, t.dev, block.Map{}, 0, t.size) {
		if n++; err != nil || n > spaceExtents {
			break
		}
		if e.Flags&block.ExtZero != 0 {
			left -= e.Len
		}
	}
	return left
}
