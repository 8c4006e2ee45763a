package blocktest

import (
	"errors"
	"io"
	"math"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// extents checks Extents over many ranges of a device in many states.
func (s suite) extents(t *testing.T) {
	d := s.open(t)
	s.extentsOf(t, d)
	if !s.ReadOnly {
		s.drive(t, d, 6)
		s.extentsOf(t, d)
	}
}

func (s suite) extentsOf(t *testing.T, d block.Device) {
	t.Helper()
	ctx, size, rnd := t.Context(), d.Size(), s.rand(7)
	whole, err := mapped(ctx, d, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	const unknown = "no such bitmap, surely"
	if _, err := d.Extents(ctx, block.Map{Bitmap: unknown}, 0, size, nil); size > 0 && !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("extents of an unknown bitmap: %v, want %v", err, errors.ErrUnsupported)
	}
	for range s.Ops / 4 {
		if size == 0 {
			break
		}
		off := rnd.Int64N(size)
		n := 1 + rnd.Int64N(size-off)
		part, err := extents(ctx, d, block.Map{}, off, n)
		if err != nil {
			t.Fatal(err)
		}
		if err := sameMap(whole, part); err != "" {
			t.Fatalf("extents of %d bytes at %d: %s", n, off, err)
		}
	}
}

// sameMap compares the extents of a range with those of the whole device: the same place has the same bytes behind it. Flags may differ
// where a block is described in parts, except for what must not: where a file holds the bytes.
func sameMap(whole, part []block.Extent) string {
	for _, p := range part {
		for _, w := range whole {
			w, ok := w.Clip(p.Off, p.Len)
			if !ok {
				continue
			}
			p, _ := p.Clip(w.Off, w.Len)
			if w.Node != p.Node || w.Node != "" && w.NodeOff != p.NodeOff {
				return "bytes move: " + describe(w) + " in the map of the whole device, " + describe(p) + " alone"
			}
		}
	}
	return ""
}

// zeroFlags checks what the flags of Zero promise.
func (s suite) zeroFlags(t *testing.T) {
	d, m := s.open(t), s.model(t)
	ctx, caps := t.Context(), d.Info().Caps
	data := make([]byte, s.Size)
	for i := range data {
		data[i] = byte(i%251) + 1
	}
	off, n := s.Size/4, s.Size/2
	for f := range block.FUA | block.NoHole | block.Fast + 1 {
		err := d.Write(ctx, data, 0, 0)
		if refused(ctx, d, err, 0, s.Size) {
			return // a device with ranges that cannot be written: random operations check those
		}
		if err != nil {
			t.Fatalf("write of the whole device: %v", err)
		}
		m.write(data, 0, s.Size)
		before, err := extents(ctx, d, block.Map{}, off, n)
		if err != nil {
			t.Fatal(err)
		}
		err = d.Zero(ctx, off, n, f)
		switch {
		case err == nil && f&block.Fast != 0 && !caps.FastZero:
			t.Errorf("Zero with flags %d works, and Caps.FastZero is not set", f)
		case err == nil:
			m.write(nil, off, n)
		case f&block.Fast == 0 || !errors.Is(err, errors.ErrUnsupported):
			t.Errorf("Zero with flags %d: %v", f, err)
		}
		after, err := mapped(ctx, d, off, n)
		if err != nil {
			t.Fatal(err)
		}
		if f&block.NoHole != 0 && allocated(before) && !allocated(inner(after, d.Info().MinBlock)) {
			t.Errorf("Zero with flags %d (NoHole) left a hole: %v became %v", f, before, after)
		}
		check(t, d, m, "after Zero")
	}
}

// inner returns what of the extents lies in whole blocks. A block that is zeroed in part is written, and whoever writes may find out
// that it is all zeros.
func inner(all []block.Extent, unit int64) (whole []block.Extent) {
	first, fits := block.RoundUp(all[0].Off, unit)
	last := block.RoundDown(all[len(all)-1].End(), unit)
	for _, e := range all {
		if e, ok := e.Clip(first, last-first); ok && fits {
			whole = append(whole, e)
		}
	}
	return whole
}

// allocated reports whether all extents occupy space in the device itself.
func allocated(all []block.Extent) bool {
	for _, e := range all {
		if e.Flags&block.ExtAlloc == 0 || e.Depth > 0 {
			return false
		}
	}
	return true
}

// size checks growth and Resize against Caps.
func (s suite) size(t *testing.T) {
	d := s.open(t)
	r := newRunner(s.Config, d, s.model(t), &dice{rnd: s.rand(8)})
	r.whole = true
	ctx, caps := t.Context(), d.Info().Caps
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	data := r.bytes(1000)
	data[999] |= 1
	if caps.Grow {
		end := d.Size()
		do(r.changed(ctx, d.Write(ctx, data, end-500, 0), "write across the end", data, end-500, 1000))
		do(r.changed(ctx, d.Write(ctx, data, end+9999, block.FUA), "write past the end", data, end+9999, 1000))
		end = d.Size()
		do(r.changed(ctx, d.Zero(ctx, end-5, 5000, 0), "zero across the end", nil, end-5, 5000))
		do(r.changed(ctx, d.Zero(ctx, end+9999, 1, block.NoHole), "zero past the end", nil, end+9999, 1))
		check(t, d, r.m, "after growing")
	}
	if caps.Resize {
		// What is cut off must not come back.
		unit := s.ResizeUnit
		for _, size := range []int64{s.Size / 2, s.Size, s.Size / 3, s.Size/3 + 4096, 0, s.Size, 2 * s.Size, s.Size} {
			size = block.RoundDown(size, unit)
			do(d.Resize(ctx, size))
			r.m.resize(size)
			check(t, d, r.m, "after Resize")
			if size > 1000 {
				do(r.changed(ctx, d.Write(ctx, data, size-1000, 0), "write at the end", data, size-1000, 1000))
			}
		}
		if err := d.Resize(ctx, -1); err == nil {
			t.Errorf("Resize to -1 works")
		}
	} else if err := d.Resize(ctx, s.Size*2); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Resize without Caps.Resize: %v, want %v", err, errors.ErrUnsupported)
	}
	check(t, d, r.m, "after all")
}

// pin checks that pinned ranges hold the bytes that Read gives.
func (s suite) pin(t *testing.T) {
	d := s.open(t)
	if pinned := s.pinned(t, d); s.Pins && pinned == 0 {
		t.Errorf("no range of a fresh device can be pinned")
	}
	if !s.ReadOnly {
		m := s.drive(t, d, 9)
		s.pinned(t, d)
		check(t, d, m, "after pins were released")
	}
}

// pinned pins many ranges and returns how many worked.
func (s suite) pinned(t *testing.T, d block.Device) (pinned int) {
	t.Helper()
	ctx, size, rnd := t.Context(), d.Size(), s.rand(10)
	for i := int64(0); i < int64(s.Ops) && size > 0; i++ {
		off := min(i*4096, size-1)
		n := 1 + rnd.Int64N(size-off)
		if i == 0 {
			n = math.MaxInt64
		}
		r, release, ok := block.Pin(ctx, d, off, min(n, size-off))
		if !ok {
			continue
		}
		pinned++
		if r.Len < 1 || r.Len > n || r.Off < 0 || r.File == nil || release == nil {
			t.Fatalf("pin of %d bytes at %d: %+v", n, off, r)
		}
		want, err := readRange(ctx, d, off, r.Len)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, r.Len)
		if k, err := r.File.ReadAt(got, r.Off); k < len(got) {
			t.Fatalf("pin of %d bytes at %d: the file holds %d of %d bytes: %v", n, off, k, len(got), err)
		} else if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Fatalf("pin of %d bytes at %d: the file holds other bytes at %d", n, off, r.Off)
		}
		release()
	}
	return pinned
}
