package block_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/imgtool/imgtool/block"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mapOf returns all extents of d as text: letters for data (d), zeros (z) and depth, then the length.
func mapOf(t testing.TB, d block.Device) string {
	t.Helper()
	var all []block.Extent
	var err error
	for off, size := int64(0), d.Size(); off < size; {
		old := len(all)
		all, err = d.Extents(t.Context(), block.Map{}, off, size-off, all)
		check(t, err)
		if len(all) == old {
			t.Fatalf("no extents at %d", off)
		}
		off = all[len(all)-1].End()
	}
	s := ""
	for _, e := range all {
		kind := "?"
		switch e.Flags {
		case block.ExtData:
			kind = "d"
		case block.ExtZero:
			kind = "z"
		case block.ExtData | block.ExtReadOnly:
			kind = "r"
		}
		s += fmt.Sprintf("%s%d:%d ", kind, e.Depth, e.Len)
	}
	return s
}

func wantMap(t testing.TB, d block.Device, want string) {
	t.Helper()
	if got := mapOf(t, d); got != want {
		t.Errorf("extents %q, want %q", got, want)
	}
}

func TestMemoryStoresNoZeros(t *testing.T) {
	ctx := t.Context()
	m := block.NewMemory(10 * 4096)
	check(t, m.Write(ctx, make([]byte, 10*4096), 0, 0))
	wantMap(t, m, "z0:40960 ")
	check(t, m.Write(ctx, []byte("x"), 4096+17, 0))
	check(t, m.Write(ctx, []byte("yz"), 5*4096-1, 0))
	wantMap(t, m, "z0:4096 d0:4096 z0:8192 d0:8192 z0:16384 ")
	check(t, m.Zero(ctx, 4096, 4096, block.NoHole)) // stays
	wantMap(t, m, "z0:4096 d0:4096 z0:8192 d0:8192 z0:16384 ")
	check(t, m.Write(ctx, []byte{0}, 5*4096-1, 0)) // the only byte of its page
	wantMap(t, m, "z0:4096 d0:4096 z0:12288 d0:4096 z0:16384 ")
	check(t, m.Discard(ctx, 4000, 4096+96))
	wantMap(t, m, "z0:20480 d0:4096 z0:16384 ")
	check(t, m.Zero(ctx, 5*4096, 1, block.Fast))
	wantMap(t, m, "z0:40960 ")
	check(t, m.Resize(ctx, 5))
	wantMap(t, m, "z0:5 ")
}

// The largest device there is costs what is written to it, and every call over all of it returns.
func TestMemoryHuge(t *testing.T) {
	ctx := t.Context()
	const size = math.MaxInt64
	m := block.NewMemory(size)
	places := []int64{0, 1 << 30, 1<<62 - 3, size - 8}
	for _, off := range places {
		check(t, m.Write(ctx, []byte("somewhere")[:8], off, 0))
	}
	p := make([]byte, 8)
	for _, off := range places {
		check(t, m.Read(ctx, p, off))
		if string(p) != "somewher" {
			t.Errorf("at %d: %q", off, p)
		}
	}
	const last = size % 4096
	wantMap(t, m, fmt.Sprintf("d0:4096 z0:%d d0:4096 z0:%d d0:8192 z0:%d d0:%d ",
		int64(1<<30-4096), int64(1<<62-4096-1<<30-4096), int64(size-last-(1<<62+4096)), int64(last)))
	check(t, m.Discard(ctx, 1, size-1))
	check(t, m.Zero(ctx, 0, size, block.Fast))
	wantMap(t, m, fmt.Sprintf("z0:%d ", int64(size)))
	check(t, m.Resize(ctx, 1))
	check(t, m.Zero(ctx, 0, size, 0)) // grows
	if m.Size() != size {
		t.Errorf("size %d", m.Size())
	}
	var e *block.RangeError
	if err := m.Write(ctx, make([]byte, 9), size-8, 0); !errors.As(err, &e) {
		t.Errorf("a write past the largest offset: %v", err)
	}
}

// Many extents come in batches, all of them.
func TestMemoryExtentBatches(t *testing.T) {
	m := block.NewMemory(0)
	const pages = 5000
	for i := range int64(pages) {
		check(t, m.Write(t.Context(), []byte{1}, i*8192, 0))
	}
	first, err := m.Extents(t.Context(), block.Map{}, 0, m.Size(), nil)
	check(t, err)
	if len(first) == 0 || len(first) > pages {
		t.Errorf("one call gives %d extents", len(first))
	}
	if n := bytes.Count([]byte(mapOf(t, m)), []byte("d0:")); n != pages {
		t.Errorf("%d data extents, want %d", n, pages)
	}
}

func TestClonesShareNothingVisible(t *testing.T) {
	ctx := t.Context()
	a := block.NewMemory(3 << 20)
	check(t, a.Write(ctx, bytes.Repeat([]byte("a"), 3<<20), 0, 0))
	b := a.Clone()
	c := b.Clone()
	check(t, b.Write(ctx, []byte("b"), 100, 0))
	check(t, a.Zero(ctx, 0, 2<<20, 0))
	check(t, c.Zero(ctx, 50, 10, block.NoHole))
	check(t, c.Resize(ctx, 1<<20))
	count := func(d block.Device, letter string) int {
		p := make([]byte, d.Size())
		check(t, d.Read(ctx, p, 0))
		return bytes.Count(p, []byte(letter))
	}
	if n := count(a, "a"); n != 1<<20 {
		t.Errorf("the first has %d", n)
	}
	if n := count(b, "a"); n != 3<<20-1 || count(b, "b") != 1 {
		t.Errorf("the second has %d", n)
	}
	if n := count(c, "a"); n != 1<<20-10 || count(c, "b") != 0 {
		t.Errorf("the third has %d", n)
	}
}

func TestNegativeSizesPanic(t *testing.T) {
	for name, f := range map[string]func(){
		"memory": func() { block.NewMemory(-1) }, "null": func() { block.NewNull(-1) }, "pattern": func() { block.NewPattern(-1) },
		"align": func() { block.Align(block.NewNull(1), 3) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 7, 4095, 4096, 4097, 8192, 100_000} {
		p := make([]byte, n)
		if !block.IsZero(p) {
			t.Errorf("%d zeros are not zero", n)
		}
		for _, i := range []int{0, 1, n / 2, 4095, 4096, n - 1} {
			if i < 0 || i >= n {
				continue
			}
			p[i] = 1
			if block.IsZero(p) {
				t.Errorf("%d bytes with a one at %d are zero", n, i)
			}
			p[i] = 0
		}
	}
}

func BenchmarkIsZero(b *testing.B) {
	for _, n := range []int{512, 4096, 65536, 1 << 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				if !block.IsZero(p) {
					b.Fatal("not zero")
				}
			}
		})
	}
}

func BenchmarkMemory(b *testing.B) {
	const size = 64 << 20
	for _, n := range []int64{4096, 65536, 1 << 20} {
		data := slices.Repeat([]byte{1, 2, 3, 4}, int(n)/4)
		run := func(name string, f func(ctx context.Context, off int64) error) {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.SetBytes(n)
				var off int64
				for b.Loop() {
					check(b, f(b.Context(), off))
					off = (off + n) % size
				}
			})
		}
		m := block.NewMemory(size)
		run("write", func(ctx context.Context, off int64) error { return m.Write(ctx, data, off, 0) })
		run("read", func(ctx context.Context, off int64) error { return m.Read(ctx, data, off) })
		fresh := block.NewMemory(size)
		run("fill", func(ctx context.Context, off int64) error {
			if off == 0 {
				if err := fresh.Discard(ctx, 0, size); err != nil {
					return err
				}
			}
			return fresh.Write(ctx, data, off, 0)
		})
	}
}
