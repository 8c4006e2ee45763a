package deflate

import "slices"

// Level 1 takes speed before size. What costs a matcher time is waiting: for memory, for the length of a match because it says where to go
// on, and after each wrong guess of the processor whether there is one. So the input is cut into lanes, each of which is matched on its own, and
// several are worked at by turns: while one waits, the others go on. And what is found at a place is written down in the same form
// whether it is a match or not, so that there is little to guess. How many lanes a machine works at by turns changes nothing in the output.
const (
	maxLanes   = 4
	maxLaneLen = 1 << 17 // bytes
	minLaneLen = 1 << 15 // where there are several, bytes
	laneMargin = 320     // how far before the end of its lane a round stops, bytes: it reads a place and the longest match there unasked

	roundSteps = 512     // after which a lane is asked whether matching pays
	fewMatched = 64      // it does if more bytes of the round than this are in matches
	minSkip    = 1 << 10 // what is not matched if it does not, bytes; twice as much after each further round
	maxSkip    = 1 << 14
)

// fast is the encoder of level 1.
type fast struct {
	back     int  // minus the window
	portable bool // uses no assembly
	lanes    [maxLanes]lane
	tables   [maxLanes]fastTable
	steps    [maxLanes][]step
	noise    [maxLanes][]noise
	fastBlock
}

func newFast(window int) *fast { return &fast{back: -window} }

// encode writes the blocks of src[from:], which is not empty, the last of which is final where final says so. Matches may reach back into
// what is before from.
func (f *fast) encode(w *blockWriter, src []byte, from int, final bool) {
	for from < len(src) {
		to := from + min(len(src)-from, maxLanes*maxLaneLen)
		lanes := f.match(src[:to], from)
		for i := range lanes {
			steps, done := f.steps[i], 0
			for _, n := range f.noise[i] {
				from += f.add(w, src[from:], steps[done:n.after])
				from += f.flush(w, src[from:], false)
				w.stored(src[from:from+n.bytes], false)
				from += n.bytes
				done = n.after
			}
			from += f.add(w, src[from:], steps[done:])
		}
		from += f.flush(w, src[from:], final && to == len(src))
	}
}

// match sets f.steps and f.noise to those of src[from:], lane by lane, and returns how many lanes there are.
func (f *fast) match(src []byte, from int) int {
	n := len(src) - from
	lanes := min(max(n/minLaneLen, 1), maxLanes)
	for i := range lanes {
		start, end := from+n*i/lanes, from+n*(i+1)/lanes
		f.lanes[i] = lane{table: &f.tables[i], at: start, end: end, stop: end - laneMargin, order: i, noise: f.noise[i][:0]}
		l := &f.lanes[i]
		l.steps = slices.Grow(f.steps[i][:0], (end-start)/2+tailMargin+1)
		l.enter(src, max(0, start+f.back))
	}
	quota := roundSteps
	for going := f.going(lanes); going > 0; going = f.going(going) {
		if quota -= f.round(src, going, quota); quota == 0 {
			for i := range going {
				f.lanes[i].skip(src)
			}
			quota = roundSteps
		}
	}
	for i := range lanes {
		l := &f.lanes[i]
		l.walk(src[:l.end], l.end-tailMargin, len(src), f.back)
		l.literals(src, l.end)
		f.steps[l.order], f.noise[l.order] = l.steps, l.noise
	}
	return lanes
}

// going puts those of the first n lanes that have not reached their stop before the others, and returns how many they are.
func (f *fast) going(n int) int {
	for i := 0; i < n; {
		if f.lanes[i].at < f.lanes[i].stop {
			i++
		} else {
			n--
			f.lanes[i], f.lanes[n] = f.lanes[n], f.lanes[i]
		}
	}
	return n
}

// walkRound is a round: it makes steps of the first n lanes, quota of each that does not reach its stop before, and returns how many those
// have made that did not reach it. Assembly may make fewer, because it ends as soon as a lane is at its stop.
func (f *fast) walkRound(src []byte, n, quota int) int {
	for i := range n {
		l := &f.lanes[i]
		l.walk(src[:l.end], l.stop, quota, f.back)
	}
	return quota
}
