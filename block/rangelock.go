package block

import (
	"context"
	"slices"
	"sync"
)

// rangeLocks lets calls that touch the same bytes go one after another. Calls are served in the order in which they came, so that
// none starves and none can wait for each other. The zero value is ready to use.
type rangeLocks struct {
	mu    sync.Mutex
	locks []*rangeLock // held and awaited, in the order of arrival
}

type rangeLock struct {
	off, end int64
	shared   bool
	done     chan struct{}
}

// lock waits for every earlier lock on a byte of [off, end), except where both are shared, and returns the lock to unlock.
func (l *rangeLocks) lock(ctx context.Context, off, end int64, shared bool) (*rangeLock, error) {
	r := &rangeLock{off: off, end: end, shared: shared, done: make(chan struct{})}
	var before []*rangeLock
	l.mu.Lock()
	for _, o := range l.locks {
		if o.off < end && off < o.end && !(o.shared && shared) {
			before = append(before, o)
		}
	}
	l.locks = append(l.locks, r)
	l.mu.Unlock()
	for _, o := range before {
		select {
		case <-o.done:
		case <-ctx.Done():
			l.unlock(r)
			return nil, ctx.Err()
		}
	}
	return r, nil
}

func (l *rangeLocks) unlock(r *rangeLock) {
	l.mu.Lock()
	i := slices.Index(l.locks, r)
	l.locks = slices.Delete(l.locks, i, i+1)
	l.mu.Unlock()
	close(r.done)
}
