package qcow2

import "sync/atomic"

// users knows who may still hold the place of a cluster that has been freed since. Time goes in generations: whoever looks up a place enters
// the present one and leaves it when done. What is freed in generation g is nobody's once g+2 has begun, because a generation begins only
// when everyone has left the one before the last.
type users struct {
	generation atomic.Int64
	inside     [2]atomic.Int64 // of even and of odd generations
}

// enter returns what to pass to leave.
func (u *users) enter() int64 {
	for {
		g := u.generation.Load()
		u.inside[g&1].Add(1)
		if u.generation.Load() == g {
			return g
		}
		u.inside[g&1].Add(-1) // a new generation has begun: this one may be waited for already
	}
}

func (u *users) leave(g int64) { u.inside[g&1].Add(-1) }

// advance begins new generations where it can, and returns the present one. It is called by one goroutine at a time.
func (u *users) advance() int64 {
	g := u.generation.Load()
	for range 2 {
		if u.inside[(g+1)&1].Load() != 0 {
			break
		}
		g = u.generation.Add(1)
	}
	return g
}
