package convert

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"sync"

	"github.com/imgtool/imgtool/block"
)

// Loss is a range of a device that could not be read.
type Loss struct {
	Off, Len int64 // bytes
	Err      error // why not
}

// Salvage is a device of which every byte can be read: what the device below it cannot give reads as zero, and is reported. A failed
// read is repeated in halves, down to sectors of 512 bytes, or, where data is packed, to the units in which it is. Extents that cannot be told are described as
// data, so that they are read. What was lost stays lost for later reads, which do not ask for it again.
//
// Not every error is one of reading: that the caller wants to stop, that a reference or a key was refused, and what the format does not
// support are returned. Its methods may be called from many goroutines. Ranges cannot be pinned.
type Salvage struct {
	block.Filter
	report func(Loss)

	mu    sync.Mutex
	spans []span // that are lost, by offset, apart from each other
	lost  int64  // bytes in them
}

// span is a range of a device.
type span struct{ off, end int64 }

const (
	sector      = 512      // bytes; the least that is given up
	packedLeast = 64 << 10 // the same where bytes are unpacked in long units, each time anew
	blindStep   = 1 << 20  // how much is called data where extents cannot be told
	maxSpans    = 1 << 18  // how many ranges apart from each other are given up before all is
)

// NewSalvage returns d with losses in place of read errors. Each range is told once to report, which may be nil, one call at a time.
func NewSalvage(d block.Device, report func(Loss)) *Salvage {
	if report == nil {
		report = func(Loss) {}
	}
	return &Salvage{Filter: block.Filter{Device: d}, report: report}
}

// Lost returns how many bytes could not be read so far.
func (s *Salvage) Lost() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// Pin implements block.Pinner: the kernel would not report what it cannot read.
func (s *Salvage) Pin(context.Context, int64, int64) (block.FileRange, func(), bool) {
	return block.FileRange{}, nil, false
}

// Read implements block.Device.
func (s *Salvage) Read(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(off, int64(len(p)), s.Size()); err != nil {
		return err
	}
	if len(p) == 0 {
		return s.Filter.Read(ctx, p, off)
	}
	for len(p) > 0 {
		gone, n := s.run(off, int64(len(p)))
		if gone {
			clear(p[:n])
		} else if err := s.rescue(ctx, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// run reports whether the byte at off is lost, and for how many of the n bytes that holds.
func (s *Salvage) run(off, n int64) (bool, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.find(off)
	switch {
	case i == len(s.spans):
		return false, n
	case s.spans[i].off <= off:
		return true, min(n, s.spans[i].end-off)
	}
	return false, min(n, s.spans[i].off-off)
}

// find returns the first span that ends after off.
func (s *Salvage) find(off int64) int {
	return sort.Search(len(s.spans), func(i int) bool { return s.spans[i].end > off })
}

// rescue reads p, of which nothing is known to be lost.
func (s *Salvage) rescue(ctx context.Context, p []byte, off int64) error {
	err := s.Filter.Read(ctx, p, off)
	if err == nil || fatal(err) {
		return err
	}
	var losses []Loss
	losses, err = s.halve(ctx, p, off, s.least(ctx, off, int64(len(p))), err, nil)
	return errors.Join(s.lose(losses), err)
}

// fatal reports whether an error has other causes than data that cannot be read.
func fatal(err error) bool {
	for _, other := range []error{context.Canceled, context.DeadlineExceeded, os.ErrClosed, block.ErrDenied, block.ErrKey, errors.ErrUnsupported} {
		if errors.Is(err, other) {
			return true
		}
	}
	return false
}

// least returns in which units of the range it makes sense to read again.
func (s *Salvage) least(ctx context.Context, off, n int64) int64 {
	ext, err := s.Filter.Extents(ctx, block.Map{}, off, n, nil)
	if err == nil && slices.ContainsFunc(ext, func(e block.Extent) bool { return e.Flags&block.ExtPacked != 0 }) {
		return max(sector, min(s.Info().PreferredBlock, packedLeast))
	}
	return sector
}

// halve reads both halves of p, which has failed with cause, and appends what of them is lost.
func (s *Salvage) halve(ctx context.Context, p []byte, off, least int64, cause error, losses []Loss) ([]Loss, error) {
	n := int64(len(p))
	mid := block.RoundDown(off+n/2, least)
	if mid <= off {
		mid = off + least - off%least
	}
	if mid >= off+n {
		clear(p)
		if k := len(losses); k > 0 && losses[k-1].Off+losses[k-1].Len == off {
			losses[k-1].Len += n
			return losses, nil
		}
		return append(losses, Loss{Off: off, Len: n, Err: cause}), nil
	}
	for _, part := range []span{{off, mid}, {mid, off + n}} {
		q := p[part.off-off : part.end-off]
		err := s.Filter.Read(ctx, q, part.off)
		switch {
		case err == nil:
			continue
		case fatal(err):
			return losses, err
		}
		if losses, err = s.halve(ctx, q, part.off, least, err, losses); err != nil {
			return losses, err
		}
	}
	return losses, nil
}

// lose remembers and reports what others have not lost meanwhile.
func (s *Salvage) lose(losses []Loss) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range losses {
		for l.Len > 0 {
			i := s.find(l.Off)
			fresh := l
			if i < len(s.spans) {
				fresh.Len = min(l.Len, s.spans[i].off-l.Off)
			}
			if fresh.Len <= 0 { // known
				skip := min(l.Len, s.spans[i].end-l.Off)
				l.Off, l.Len = l.Off+skip, l.Len-skip
				continue
			}
			if len(s.spans) == maxSpans {
				return fmt.Errorf("more than %d ranges cannot be read; the last one: %w", maxSpans, l.Err)
			}
			s.insert(i, span{fresh.Off, fresh.Off + fresh.Len})
			s.report(fresh)
			l.Off, l.Len = l.Off+fresh.Len, l.Len-fresh.Len
		}
	}
	return nil
}

// insert puts a new span before the i'th, and joins those that touch.
func (s *Salvage) insert(i int, n span) {
	s.lost += n.end - n.off
	from, to := i, i
	if i < len(s.spans) && s.spans[i].off == n.end {
		n.end, to = s.spans[i].end, i+1
	}
	if i > 0 && s.spans[i-1].end == n.off {
		n.off, from = s.spans[i-1].off, i-1
	}
	s.spans = slices.Replace(s.spans, from, to, n)
}

// Extents implements block.Device.
func (s *Salvage) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	base := len(buf)
	for ask := n; ; ask /= 2 {
		got, err := s.Filter.Extents(ctx, m, off, ask, buf[:base])
		if err == nil || fatal(err) || m != (block.Map{}) || block.CheckRange(off, n, s.Size()) != nil {
			return got, err
		}
		if ask <= blindStep {
			return append(buf[:base], block.Extent{Off: off, Len: ask, Flags: block.ExtData}), nil
		}
	}
}
