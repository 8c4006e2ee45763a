package client

import (
	"cmp"
	"fmt"
	"slices"
)

// content says which bytes of a READ have come. Offsets are relative to the request.
type content struct {
	next  int64  // up to here all has come, in order
	spans []span // that came out of order
}

type span struct{ off, n int64 }

// add notes n bytes at off, n above 0.
func (c *content) add(off, n int64) {
	if off == c.next {
		c.next += n
		return
	}
	c.spans = append(c.spans, span{off, n})
}

// complete checks that each of n bytes has come once.
func (c *content) complete(n int64) error {
	slices.SortFunc(c.spans, func(a, b span) int { return cmp.Compare(a.off, b.off) })
	for _, s := range c.spans {
		switch {
		case s.off < c.next:
			return fmt.Errorf("the content from byte %d of the request on comes twice", s.off)
		case s.off > c.next:
			return fmt.Errorf("bytes %d to %d of the request are missing", c.next, s.off-1)
		}
		c.next += s.n
	}
	if c.next != n {
		return fmt.Errorf("bytes %d to %d of the request are missing", c.next, n-1)
	}
	return nil
}

// any reports whether something has come.
func (c *content) any() bool { return c.next > 0 || len(c.spans) > 0 }
