package block

import (
	"context"
	"slices"
	"sync"
)

// RangeLocks lets calls that touch the same bytes go one after another. Calls are served in the order in which they came, so that
// none starves and none can wait for each other. The zero value is ready to use.
type RangeLocks struct {
	mu    sync.Mutex
	locks []*RangeLock // held and awaited, in the order of arrival
}

// RangeLock is a lock on a range, held or awaited.
type RangeLock struct {
	off, end int64
	shared   bool
	done     chan struct{} // closed when it is given up; nil as long as nobody waits for that
}

// Lock waits for every earlier lock on a byte of [off, end), except where both are shared, and returns the lock, which is given back to Unlock.
// It returns the context's error where that ends first.
func (l *RangeLocks) Lock(ctx context.Context, off, end int64, shared bool) (*RangeLock, error) {
	r := &RangeLock{off: off, end: end, shared: shared}
	var before []*RangeLock
	l.mu.Lock()
	for _, o := range l.locks {
		if o.off < end && off < o.end && !(o.shared && shared) {
			if o.done == nil {
				o.done = make(chan struct{})
			}
			before = append(before, o)
		}
	}
	l.locks = append(l.locks, r)
	l.mu.Unlock()
	for _, o := range before {
		select {
		case <-o.done:
		case <-ctx.Done():
			l.Unlock(r)
			return nil, ctx.Err()
		}
	}
	return r, nil
}

// Unlock gives up a lock that Lock has returned, once.
func (l *RangeLocks) Unlock(r *RangeLock) {
	l.mu.Lock()
	i := slices.Index(l.locks, r)
	l.locks = slices.Delete(l.locks, i, i+1)
	if r.done != nil {
		close(r.done)
	}
	l.mu.Unlock()
}
