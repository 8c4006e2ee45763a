package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// numbered is a plan of n segments of every sort, and what it makes.
func numbered(n int) (*Plan, []byte) {
	var want []byte
	var late int
	p := &Plan{Work: int64(n)}
	type item struct {
		Segment
		size int64
	}
	var items []item
	for i := range n {
		line := fmt.Appendf(nil, "segment %d\n", i)
		s := Segment{Work: 1}
		switch i % 4 {
		case 0:
			s.Bytes = line
		case 1:
			s.Zeros = int64(i) * 100
			line = make([]byte, s.Zeros)
		case 2:
			s.Fill = func(_ context.Context, buf []byte) ([]byte, error) { return append(buf, line...), nil }
		case 3:
			s.Late = func() ([]byte, error) { late++; return line, nil }
		}
		want = append(want, line...)
		items = append(items, item{s, int64(len(line))})
	}
	p.Segments = func(yield func(Segment, error) bool) {
		var off int64
		for _, it := range items {
			at := off
			it.Placed = func(o, n int64) {
				if o != at || n != it.size {
					panic(fmt.Sprintf("placed %d bytes at %d, want %d at %d", n, o, it.size, at))
				}
			}
			off += it.size
			if !yield(it.Segment, nil) {
				return
			}
		}
	}
	patch := []byte("PATCH")
	p.Patches = func() ([]Patch, error) { return []Patch{{Off: 0, Bytes: patch}}, nil }
	return p, want
}

func TestWrite(t *testing.T) {
	ctx := t.Context()
	for _, workers := range []int{1, 2, 7} {
		p, want := numbered(103)
		var out bytes.Buffer
		var done int64
		n, err := Write(ctx, ToWriter(&out), p, Options{Workers: workers, Progress: func(d, total int64) {
			if d < done || total != 103 {
				t.Errorf("progress %d of %d after %d", d, total, done)
			}
			done = d
		}})
		if err != nil || n != int64(len(want)) || !bytes.Equal(out.Bytes(), want) || done != 103 {
			t.Fatalf("pipe: %d of %d bytes, %v, progress %d", n, len(want), err, done)
		}
		copy(want, "PATCH")
		for name, d := range map[string]*block.Memory{"new": block.NewMemory(0), "old": filled(t, len(want))} {
			n, err := Write(ctx, ToDevice(d), p, Options{Workers: workers})
			got := make([]byte, d.Size())
			if err == nil {
				err = d.Read(ctx, got, 0)
			}
			if err != nil || n != int64(len(want)) || !bytes.Equal(got, want) {
				t.Fatalf("%s device: %d of %d bytes, %v", name, n, len(want), err)
			}
		}
	}
}

// filled returns a device that is full of other bytes.
func filled(t *testing.T, n int) *block.Memory {
	d := block.NewMemory(int64(n))
	if err := d.Write(t.Context(), bytes.Repeat([]byte{0xaa}, n), 0, 0); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestHolesStayHoles(t *testing.T) {
	d := block.NewMemory(0)
	zeros := append(make([]byte, 100<<10), "end"...)
	p := &Plan{Segments: func(yield func(Segment, error) bool) {
		_ = yield(Segment{Bytes: []byte("start")}, nil) && yield(Segment{Zeros: 1 << 40}, nil) && yield(Segment{Bytes: zeros}, nil) &&
			yield(Segment{Zeros: 1 << 41}, nil)
	}}
	n, err := Write(t.Context(), ToDevice(d), p, Options{})
	if err != nil || n != d.Size() || n != 5+1<<40+int64(len(zeros))+1<<41 {
		t.Fatalf("%d bytes, the device has %d, %v", n, d.Size(), err)
	}
	ext, err := d.Extents(t.Context(), block.Map{}, 0, n, nil)
	var data int64
	for _, e := range ext {
		if e.Flags&block.ExtZero == 0 {
			data += e.Len
		}
	}
	if err != nil || data > 256<<10 {
		t.Fatalf("%d bytes are allocated, %v", data, err)
	}
}

func TestErrors(t *testing.T) {
	boom := errors.New("boom")
	fill := func(context.Context, []byte) ([]byte, error) { return []byte("x"), nil }
	for name, bad := range map[string]func(yield func(Segment, error) bool) bool{
		"plan": func(yield func(Segment, error) bool) bool { return yield(Segment{}, boom) },
		"fill": func(yield func(Segment, error) bool) bool {
			return yield(Segment{Fill: func(context.Context, []byte) ([]byte, error) { return nil, boom }}, nil)
		},
		"late": func(yield func(Segment, error) bool) bool {
			return yield(Segment{Late: func() ([]byte, error) { return nil, boom }}, nil)
		},
	} {
		p := &Plan{Segments: func(yield func(Segment, error) bool) {
			for i := range 1000 {
				if i == 500 && !bad(yield) || i != 500 && !yield(Segment{Fill: fill}, nil) {
					return
				}
			}
		}}
		if _, err := Write(t.Context(), ToWriter(new(bytes.Buffer)), p, Options{}); !errors.Is(err, boom) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	endless := &Plan{Segments: func(yield func(Segment, error) bool) {
		for i := 0; yield(Segment{Fill: fill}, nil); i++ {
			if i == 1000 {
				cancel()
			}
		}
	}}
	if _, err := Write(ctx, ToWriter(new(bytes.Buffer)), endless, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
