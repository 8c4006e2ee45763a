//go:build !purego

package deflate

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestFastAssembly compares every step, and the output, with those of the portable code.
func TestFastAssembly(t *testing.T) {
	if !assembled {
		t.Skip("the processor lacks the instructions")
	}
	r := rand.New(rand.NewPCG(5, 6))
	for i := range 60 {
		window := minWindow << r.IntN(8)
		src := stretches(r, 1+r.IntN(1<<(6+r.IntN(15))))
		from := r.IntN(min(len(src), 2*maxDistance))
		if i%3 == 0 {
			from = 0
		}
		asm, portable := newFast(window), newFast(window)
		portable.portable = true
		for _, p := range [][]byte{src[:len(src)/2+1], src} {
			from := min(from, len(p)-1)
			part := p[:min(len(p), from+maxLanes*maxLaneLen)]
			n, m := asm.match(part, from), portable.match(part, from)
			if n != m {
				t.Fatalf("%d and %d lanes", n, m)
			}
			for lane := range n {
				a, b := asm.steps[lane], portable.steps[lane]
				if !slices.Equal(asm.noise[lane], portable.noise[lane]) {
					t.Fatalf("lane %d: noise at %v and %v", lane, asm.noise[lane], portable.noise[lane])
				}
				if len(a) != len(b) {
					t.Fatalf("window %d, lane %d of %d bytes from %d on: %d and %d steps", window, lane, len(p), from, len(a), len(b))
				}
				asm.counts, portable.counts = [2]stepCounts{}, [2]stepCounts{}
				if x, y := asm.count(a), portable.count(b); x != y {
					t.Fatalf("steps cover %d and %d bytes", x, y)
				}
				if asm.counts != portable.counts {
					t.Fatal("the counts differ")
				}
				for k := range a {
					if a[k] != b[k] {
						t.Fatalf("window %d, lane %d, step %d: %#x and %#x", window, lane, k, uint64(a[k]), uint64(b[k]))
					}
				}
			}
			var v, w blockWriter
			asm.encode(&v, p, from, true)
			portable.encode(&w, p, from, true)
			if !bytes.Equal(v.out, w.out) || v.acc != w.acc || v.n != w.n {
				t.Fatalf("window %d, %d bytes from %d on: the output differs", window, len(p), from)
			}
		}
	}
}
