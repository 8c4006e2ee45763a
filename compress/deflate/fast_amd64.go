//go:build !purego

package deflate

import "golang.org/x/sys/cpu"

// assembled says whether the processor has the instructions that fast_amd64.s is made of.
var assembled = cpu.X86.HasAVX2 && cpu.X86.HasBMI1 && cpu.X86.HasBMI2 && cpu.X86.HasLZCNT

// match1 to match4 make steps of the first lanes by turns until one of them reaches its stop, at most quota of each, and return how many.

//go:noescape
func match1(lanes *[maxLanes]lane, src *byte, back, quota int) int

//go:noescape
func match2(lanes *[maxLanes]lane, src *byte, back, quota int) int

//go:noescape
func match3(lanes *[maxLanes]lane, src *byte, back, quota int) int

//go:noescape
func match4(lanes *[maxLanes]lane, src *byte, back, quota int) int

// countSteps does what countStepsPortable does.
//
//go:noescape
func countSteps(c *[2]stepCounts, steps *step, n int) int

// writeSteps does what writeStepsPortable does. It returns how many bytes it has written, and what waits.
//
//go:noescape
func writeSteps(out *byte, c *stepCodes, steps *step, n int, acc uint64, bits uint) (written int, waiting uint64, count uint)

func (f *fast) round(src []byte, n, quota int) int {
	if f.portable || !assembled {
		return f.walkRound(src, n, quota)
	}
	for i := range n {
		l := &f.lanes[i]
		l.next = &l.steps[:cap(l.steps)][len(l.steps)]
	}
	made := 0
	switch n {
	case 1:
		made = match1(&f.lanes, &src[0], f.back, quota)
	case 2:
		made = match2(&f.lanes, &src[0], f.back, quota)
	case 3:
		made = match3(&f.lanes, &src[0], f.back, quota)
	case 4:
		made = match4(&f.lanes, &src[0], f.back, quota)
	}
	for i := range n {
		l := &f.lanes[i]
		l.steps = l.steps[:len(l.steps)+made]
		l.next = nil
	}
	return made
}

func (f *fast) count(steps []step) int {
	if f.portable || !assembled {
		return countStepsPortable(&f.counts, steps)
	}
	return countSteps(&f.counts, &steps[0], len(steps))
}

func (f *fast) write(w *bitWriter, steps []step) {
	if f.portable || !assembled {
		writeStepsPortable(w, &f.codes, steps)
		return
	}
	k := len(w.out)
	n, acc, count := writeSteps(&w.out[:k+1][k], &f.codes, &steps[0], len(steps), w.acc, w.n)
	w.out, w.acc, w.n = w.out[:k+n], acc, count
}
