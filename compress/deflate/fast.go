package deflate

import "slices"

// Level 1 takes speed before size. What a matcher waits for is memory, the length of the match that says where to go on, and the
// processor's wrong guesses whether there is one. So the input is cut into lanes that are matched each on its own, several of them by
// turns: while one waits, the others go on. And what is found at a place is written down in the same form whether it is a match or not, so that
// there is little to guess. How many lanes a machine works at by turns changes nothing in the output.
const (
	maxLanes   = 4
	maxLaneLen = 1 << 17 // bytes
	minLaneLen = 1 << 15 // where there are several, bytes
	laneMargin = 320     // a round ends so far before the end of its lane, because it looks at a place and the longest match there at once, bytes

	roundSteps = 512     // after which a lane is asked whether matching pays
	fewMatched = 64      // bytes of a round in matches, above which it does
	minSkip    = 1 << 10 // what is not matched where it does not, bytes; twice as much after each further round
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
		to := min(len(src), from+maxLanes*maxLaneLen)
		lanes := f.match(src[:to], from)
		for i := range lanes {
			steps, done := f.steps[i], 0
			for _, n := range f.noise[i] {
				from += f.add(w, src[from:], steps[done:n.after])
				from += f.flush(w, src[from:], false)
				w.stored(src[from:from+n.len], false)
				from += n.len
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

// A round makes steps of the first n lanes, quota of each unless it reaches its stop, and returns how many those have made that did not. The
// assembly may end before the quota is reached, where a lane reaches its stop; this is what it stands for.
func (f *fast) walkRound(src []byte, n, quota int) int {
	for i := range n {
		l := &f.lanes[i]
		l.walk(src[:l.end], l.stop, quota, f.back)
	}
	return quota
}
