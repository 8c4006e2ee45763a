package qcow2

import (
	"context"
	"slices"
	"sync"
)

// rangeLocks keeps apart those who change how the same clusters of the disk are stored. They are served in the order in which they came.
type rangeLocks struct {
	mu    sync.Mutex
	locks []*rangeLock // held and awaited, in the order of arrival
}

type rangeLock struct {
	off, end int64
	done     chan struct{}
}

// lock waits for every earlier lock on a byte of [off, end) and returns the lock to unlock.
func (l *rangeLocks) lock(ctx context.Context, off, end int64) (*rangeLock, error) {
	r := &rangeLock{off: off, end: end}
	var before []*rangeLock
	l.mu.Lock()
	for _, o := range l.locks {
		if o.off < end && off < o.end {
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
	if r.done != nil {
		close(r.done)
	}
	l.mu.Unlock()
}
