package testimages

import "testing"

// TestZipf: every entry comes up, and the earlier the more often.
func TestZipf(t *testing.T) {
	for _, n := range []int{1, 2, 500, 3000} {
		var table [1 << 16]uint16
		zipf(&table, n)
		count := make([]int, n)
		for _, i := range table {
			count[i]++
		}
		for i, c := range count {
			if c == 0 {
				t.Errorf("of %d entries, entry %d never comes up", n, i)
			}
			// Rounding may be off by one.
			if i > 0 && c > count[i-1]+1 {
				t.Errorf("of %d entries, entry %d comes up %d times, the one before %d times", n, i, c, count[i-1])
			}
		}
	}
}

func TestBetween(t *testing.T) {
	r := newRandom(1, 1)
	for _, c := range []struct{ low, high int64 }{{1, 1}, {512, 512}, {512, 513}, {8 * kib, 2 * mib}, {3, 1000}} {
		below := 0
		for range 1000 {
			n := r.between(c.low, c.high)
			if n < c.low || n > c.high {
				t.Fatalf("between(%d, %d) is %d", c.low, c.high, n)
			}
			if n < (c.low+c.high)/2 {
				below++
			}
		}
		if c.high > 4*c.low && below < 600 {
			t.Errorf("between(%d, %d) is in the lower half %d times of 1000, expected more", c.low, c.high, below)
		}
	}
}
