package blocktest

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"math/rand/v2"

	"github.com/imgtool/imgtool/block"
)

// sector is what a disk writes whole or not at all, in bytes.
const sector = 512

// Crashes says which states a replay yields.
type Crashes struct {
	// Initial is what the devices held when recording began, in the order of their recorders. Nil or missing means zeros, of the
	// size that the device had. Replay does not change it.
	Initial []*block.Memory
	// Torn is for how many places in each write or zero the crash comes in the middle of it, at a multiple of 512 bytes: all where
	// there are no more, else a random sample. 0 means 4, negative none.
	Torn int
	// Reordered is how many subsets of what is not durable are tried at each write: all where there are no more, else a random sample.
	// 0 means 4, negative none.
	Reordered int
	// Seed varies the samples. The same log and the same Crashes give the same states.
	Seed uint64
}

// State is what a crash left behind.
type State struct {
	// Devices hold what each device holds, in the order of the recorders. The receiver may change and close them.
	Devices []*block.Memory
	// Entry is the index in Log.Entries of the last operation that had begun, -1 where none had.
	Entry int
	// Mark is the number of the last mark before the crash, 0 where there was none.
	Mark int
	// What says what was done and what was lost.
	What string
}

// Replay yields the states in which a crash could leave the devices: at the start, within and after every operation.
//
// What a device was told before a Flush of it began, and before an operation with FUA returned, that operation itself, is durable once
// the Flush or the operation has returned. Of everything else any part may be there: all of it, none, a subset of the operations, an
// operation in part. A flush of one device says nothing about the others. What is there was done in the order of the log, one
// operation over the other.
//
// A discarded range reads as before, as zero, or as junk.
func (l *Log) Replay(c Crashes) iter.Seq[State] {
	entries := l.Entries()
	l.mu.Lock()
	sizes := l.sizes
	l.mu.Unlock()
	if c.Torn == 0 {
		c.Torn = 4
	}
	if c.Reordered == 0 {
		c.Reordered = 4
	}
	return func(yield func(State) bool) {
		r := &replay{Crashes: c, entries: entries, flushed: make([]int, len(sizes)), rnd: rand.New(rand.NewPCG(c.Seed, 1)), yield: yield}
		for i, size := range sizes {
			m := block.NewMemory(size)
			if i < len(c.Initial) && c.Initial[i] != nil {
				m = c.Initial[i].Clone()
			}
			r.base = append(r.base, m)
		}
		r.run()
	}
}

// replay goes through a log. What is durable, with everything before it on the same device durable as well, is done to base once
// and for all; each state is a cheap clone of base with the rest done to it.
type replay struct {
	Crashes
	entries []Entry
	begun   int // entries before this index have begun
	base    []*block.Memory
	pending []int // indexes of changes that have begun and are not in base
	flushed []int // for each device: what ended before this tick is durable
	mark    int
	now     int // tick of the crash
	rnd     *rand.Rand
	yield   func(State) bool
}

// fate says how much of a pending change is there after the crash.
type fate struct {
	lost bool
	cut  int64 // bytes of it that were done; 0 means all
	junk bool  // of a discard: leave junk
}

// run visits every moment at which a crash could come: whenever an operation begins, and whenever one ends that makes something durable.
func (r *replay) run() {
	if !r.crash("before everything", nil) {
		return
	}
	var last int
	for _, e := range r.entries {
		last = max(last, e.Start, e.End)
	}
	ends := make([]int, last+1) // index+1 of the entry that ends at each tick
	for i, e := range r.entries {
		ends[e.End] = i + 1
	}
	ends[0] = 0
	for r.now = 1; r.now <= last; r.now++ {
		var more bool
		if r.begun < len(r.entries) && r.entries[r.begun].Start == r.now {
			r.begun++
			more = r.begin(r.begun - 1)
		} else if i := ends[r.now]; i > 0 {
			more = r.end(i - 1)
		} else {
			more = true // an operation without effect
		}
		if !more {
			return
		}
	}
	r.crash("after everything, and nothing was written that is not durable", r.loseAll())
}

// begin crashes while entry k is in flight. States in which k is lost came when the entries before it began; after a mark they come
// again, because more is expected of them.
func (r *replay) begin(k int) bool {
	e := r.entries[k]
	if e.Op == OpMark {
		r.mark = e.Mark
		return r.crash("nothing lost", nil) && r.crash("all volatile operations lost", r.loseAll()) && r.reorder(k)
	}
	if e.Op == OpFlush {
		return true
	}
	r.pending = append(r.pending, k)
	return r.crash("nothing lost", nil) && r.tear(k) && r.reorder(k)
}

// end crashes after entry k has returned, where that has made something durable.
func (r *replay) end(k int) bool {
	e := r.entries[k]
	switch {
	case e.Op == OpFlush:
		r.flushed[e.Dev] = max(r.flushed[e.Dev], e.Start)
	case e.Flags&block.FUA == 0:
		return true
	}
	r.settle()
	return r.crash("all volatile operations lost", r.loseAll())
}

// durable reports whether entry k survives a crash now.
func (r *replay) durable(k int) bool {
	e := r.entries[k]
	return e.End > 0 && e.End <= r.now && (e.Flags&block.FUA != 0 || e.End < r.flushed[e.Dev])
}

// settle moves what is durable from pending into base, in the order of each device's log.
func (r *replay) settle() {
	blocked := make([]bool, len(r.base))
	var kept []int
	for _, k := range r.pending {
		e := r.entries[k]
		if blocked[e.Dev] = blocked[e.Dev] || !r.durable(k); blocked[e.Dev] {
			kept = append(kept, k)
		} else {
			do(r.base[e.Dev], e, fate{})
		}
	}
	r.pending = kept
}

// loseAll is the fate of pending changes where none happened that need not have.
func (r *replay) loseAll() map[int]fate {
	fates := map[int]fate{}
	for _, k := range r.pending {
		if !r.durable(k) {
			fates[k] = fate{lost: true}
		}
	}
	return fates
}

// cuts returns how many multiples of a sector lie inside a change, and the first of them as a length.
func cuts(e Entry) (count, first int64) {
	if e.Op != OpWrite && e.Op != OpZero || e.Len == 0 {
		return 0, 0
	}
	first = sector - e.Off%sector
	if first >= e.Len {
		return 0, 0
	}
	return (e.Len-first-1)/sector + 1, first
}

// tear crashes in the middle of entry k, with everything before it done.
func (r *replay) tear(k int) bool {
	count, first := cuts(r.entries[k])
	for i := range min(count, int64(max(r.Torn, 0))) {
		if count > int64(r.Torn) {
			// One place in each of Torn equal parts, so that no two are the same.
			lo, hi := i*count/int64(r.Torn), (i+1)*count/int64(r.Torn)
			i = lo + r.rnd.Int64N(hi-lo)
		}
		cut := first + i*sector
		if !r.crash(fmt.Sprintf("torn after %d of %d bytes", cut, r.entries[k].Len), map[int]fate{k: {cut: cut}}) {
			return false
		}
	}
	return true
}

// reorder crashes with entry k done and any of the earlier ones lost that may be, but not all kept, which is no reordering.
func (r *replay) reorder(k int) bool {
	var volatile []int
	for _, i := range r.pending {
		if i != k && !r.durable(i) {
			volatile = append(volatile, i)
		}
	}
	if len(volatile) == 0 {
		return true
	}
	few := len(volatile) < 16 && 1<<len(volatile)-1 <= r.Reordered
	for try := range max(r.Reordered, 0) {
		if few && try == 1<<len(volatile)-1 {
			break
		}
		fates := map[int]fate{}
		for bit, i := range volatile {
			switch {
			case few:
				fates[i] = fate{lost: try>>bit&1 == 0, junk: r.rnd.IntN(2) == 0}
			case try == 0:
				fates[i] = fate{lost: true}
			default:
				fates[i] = r.chance(i)
			}
		}
		if !r.crash("reordered", fates) {
			return false
		}
	}
	return true
}

// chance throws the dice for entry i.
func (r *replay) chance(i int) fate {
	f := fate{lost: r.rnd.IntN(2) == 0, junk: r.rnd.IntN(2) == 0}
	if count, first := cuts(r.entries[i]); count > 0 && r.rnd.IntN(4) == 0 {
		f.cut = first + r.rnd.Int64N(count)*sector
	}
	return f
}

// crash yields the state in which the pending changes have met their fates; without one they were done. It returns false where the
// receiver has seen enough.
func (r *replay) crash(what string, fates map[int]fate) bool {
	s := State{Entry: r.begun - 1, Mark: r.mark, What: what}
	for _, m := range r.base {
		s.Devices = append(s.Devices, m.Clone())
	}
	lost := ""
	for _, k := range r.pending {
		f := fates[k]
		if f.lost {
			lost += fmt.Sprintf(" %d", k)
			continue
		}
		if f.cut > 0 {
			lost += fmt.Sprintf(" %d(from byte %d)", k, f.cut)
		}
		do(s.Devices[r.entries[k].Dev], r.entries[k], f)
	}
	if r.begun > 0 {
		s.What = fmt.Sprintf("crash at entry %d: %s", r.begun-1, what)
	}
	if lost != "" {
		s.What += "; lost entries:" + lost
	}
	return r.yield(s)
}

// junkLen is how much of a discarded range is filled with junk.
const junkLen = 64 << 10

// do does a change to m.
func do(m *block.Memory, e Entry, f fate) {
	ctx := context.Background()
	n := e.Len
	if f.cut > 0 {
		n = f.cut
	}
	var err error
	switch e.Op {
	case OpWrite:
		err = m.Write(ctx, e.Data[:n], e.Off, 0)
	case OpZero:
		err = m.Zero(ctx, e.Off, n, 0)
	case OpResize:
		err = m.Resize(ctx, e.Len)
	case OpDiscard:
		// The device may be shorter now than when this was done, as a Resize before may be lost.
		if n = min(n, m.Size()-e.Off); n <= 0 {
			return
		}
		err = m.Discard(ctx, e.Off, n)
		if err == nil && f.junk {
			err = m.Write(ctx, bytes.Repeat([]byte{0xdb}, int(min(n, junkLen))), e.Off, 0)
		}
	}
	if err != nil {
		panic("blocktest: replaying onto memory: " + err.Error())
	}
}
