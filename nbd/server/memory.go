package server

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	// reserve is what a connection may always have, in bytes, however much the others hold: it makes progress with that.
	reserve = 64 << 10
	// pieceSize is the most that one buffer of a large request holds, in bytes. Pieces stay in the processor's cache between the two copies.
	pieceSize = 256 << 10
)

// budget counts what the buffers of all connections hold.
type budget struct {
	limit int64
	used  atomic.Int64
}

// tryTake takes n bytes for what a connection can do without, and reports whether there were so many.
func (b *budget) tryTake(n int64) bool {
	if n > b.limit-b.used.Load() {
		return false
	}
	b.used.Add(n)
	return true
}

// give returns n bytes.
func (b *budget) give(n int64) { b.used.Add(-n) }

// memory is one connection's part of the budget.
//
// A connection gets no more than what would be left for the others: one alone may fill half of the budget, a second one half of the rest, so
// that clients that do not fetch what they have asked for take little from those that do.
type memory struct {
	mu     sync.Mutex
	freed  sync.Cond
	held   int64
	limit  int64
	server *budget
}

func (m *memory) init(server *budget, limit int64) {
	m.freed.L, m.server, m.limit = &m.mu, server, limit
}

// take returns how many of n bytes may be allocated: n, or the reserve if that is less and all there is. It waits until the connection itself has
// given back enough, and for nobody else.
func (m *memory) take(n int64) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		switch {
		case m.fits(n):
		case m.held == 0:
			n = min(n, reserve)
		case m.held+n <= reserve:
		default:
			m.freed.Wait()
			continue
		}
		m.held += n
		m.server.used.Add(n)
		return n
	}
}

// tryTake is take for all of n bytes or nothing, and does not wait.
func (m *memory) tryTake(n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.fits(n) {
		return false
	}
	m.held += n
	m.server.used.Add(n)
	return true
}

// fits reports whether n bytes more leave as much to the others.
func (m *memory) fits(n int64) bool {
	return m.held+n <= min(m.limit, m.server.limit-m.server.used.Load())
}

// give returns n bytes to the budget.
func (m *memory) give(n int64) {
	m.mu.Lock()
	m.held -= n
	m.server.used.Add(-n)
	m.mu.Unlock()
	m.freed.Broadcast()
}

// Buffers come in sizes of powers of two from 4 KiB on. Those up to 1 MiB are kept for the next user until the garbage collector comes by.
const (
	minClass = 12
	maxClass = 20
)

type buffers struct {
	class [maxClass - minClass + 1]sync.Pool
}

// get returns a buffer of n bytes with any content.
func (b *buffers) get(n int) *[]byte {
	c := max(bits.Len(uint(max(n, 1)-1)), minClass)
	if c > maxClass {
		p := make([]byte, n)
		return &p
	}
	p, _ := b.class[c-minClass].Get().(*[]byte)
	if p == nil {
		p = new([]byte)
		*p = make([]byte, 1<<c)
	}
	*p = (*p)[:n]
	return p
}

// put takes back what get has returned.
func (b *buffers) put(p *[]byte) {
	c := bits.Len(uint(cap(*p) - 1))
	if c >= minClass && c <= maxClass && cap(*p) == 1<<c {
		b.class[c-minClass].Put(p)
	}
}
