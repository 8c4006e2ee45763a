package block

import (
	"context"
	"os"
	"sync"
)

// Calls counts the calls in flight of a device, so that its Close can wait for them and later calls learn that it is closed.
// The zero value is ready to use; it must not be copied. A call must not begin another one on the same Calls.
type Calls struct {
	mu     sync.RWMutex
	closed bool
}

// Begin starts a call. It returns os.ErrClosed after Close, and the context's error where that is done already; only after nil
// the caller must call End.
func (c *Calls) Begin(ctx context.Context) error {
	c.mu.RLock()
	err := c.refuse(ctx)
	if err != nil {
		c.mu.RUnlock()
	}
	return err
}

// End ends a call.
func (c *Calls) End() { c.mu.RUnlock() }

// BeginAlone waits for the calls in flight and starts one that no other runs beside. It returns what Begin does; only after nil the caller
// must call EndAlone.
func (c *Calls) BeginAlone(ctx context.Context) error {
	c.mu.Lock()
	err := c.refuse(ctx)
	if err != nil {
		c.mu.Unlock()
	}
	return err
}

// EndAlone ends a call that BeginAlone has started.
func (c *Calls) EndAlone() { c.mu.Unlock() }

// refuse returns why no call may begin, or nil.
func (c *Calls) refuse(ctx context.Context) error {
	if c.closed {
		return os.ErrClosed
	}
	return ctx.Err()
}

// Close waits for the calls in flight and lets no more begin. The second time it returns os.ErrClosed.
func (c *Calls) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return os.ErrClosed
	}
	c.closed = true
	return nil
}
