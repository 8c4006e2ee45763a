package convert

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
)

// badBlocks returns a device of ones in which some ranges cannot be read, and what a salvaged copy of it holds.
func badBlocks(t *testing.T, r *rand.Rand, size int64) (bad block.Device, want []byte) {
	t.Helper()
	mem := block.NewMemory(size)
	if err := mem.Write(t.Context(), bytes.Repeat([]byte{1}, int(size)), 0, 0); err != nil {
		t.Fatal(err)
	}
	want = bytes.Repeat([]byte{1}, int(size))
	var faults []blocktest.Fault
	for range r.IntN(6) {
		off := r.Int64N(size)
		n := min(1+r.Int64N(5000), size-off)
		faults = append(faults, blocktest.Fault{Ops: blocktest.OpRead, Off: off, Len: n, Err: errInjected})
		end := min((off+n+sector-1)/sector*sector, size)
		clear(want[off/sector*sector : end])
	}
	return blocktest.NewFaulty(mem, faults...), want
}

func TestSalvage(t *testing.T) {
	for seed := range uint64(80) {
		r := rand.New(rand.NewPCG(seed, 30))
		size := 1 + r.Int64N(1<<18)
		bad, want := badBlocks(t, r, size)
		told := make([]byte, size)
		s := NewSalvage(bad, func(l Loss) {
			if !errors.Is(l.Err, errInjected) {
				t.Errorf("reason %v", l.Err)
			}
			for i := l.Off; i < l.Off+l.Len; i++ {
				told[i]++
			}
		})
		dst := newSparse(nil)
		o := Options{Workers: 1 + r.IntN(4), Request: 1 << (9 + r.IntN(9))}
		if _, err := Copy(t.Context(), s, dst, o); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		var out bytes.Buffer // what was lost is neither asked for nor told again
		if _, err := WriteTo(t.Context(), s, &out, o); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(dst.data, want) || !bytes.Equal(out.Bytes(), want) {
			t.Fatalf("seed %d: the copies differ from what can be read", seed)
		}
		lost := int64(0)
		for i, n := range told {
			if lost += int64(n); n != 1-want[i] {
				t.Fatalf("seed %d: byte %d was told %d times", seed, i, n)
			}
		}
		if s.Lost() != lost {
			t.Errorf("seed %d: %d bytes lost, %d told", seed, s.Lost(), lost)
		}
	}
}

// TestSalvageTellsWholeRanges checks that sectors side by side are one loss, and that reads come down to sectors only where it is needed.
func TestSalvageTellsWholeRanges(t *testing.T) {
	mem := block.NewMemory(1 << 20)
	log := blocktest.NewRecorder(blocktest.NewFaulty(mem, blocktest.Fault{Ops: blocktest.OpRead, Off: 10000, Len: 3000, Err: errInjected}))
	var told []Loss
	s := NewSalvage(log, func(l Loss) { told = append(told, l) })
	p := bytes.Repeat([]byte{7}, 1<<20)
	if err := s.Read(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	if want := (Loss{Off: 9728, Len: 3584, Err: errInjected}); len(told) != 1 || told[0].Off != want.Off || told[0].Len != want.Len {
		t.Errorf("told %+v, want %+v", told, want)
	}
	if !block.IsZero(p) {
		t.Error("the buffer keeps old bytes")
	}
}

// packed is a device that says that all of it is packed, in units of so many bytes.
type packed struct {
	block.Filter
	unit int64
}

func (d packed) Info() block.Info {
	i := d.Filter.Info()
	i.PreferredBlock, i.Caps.Packed = d.unit, true
	return i
}

func (d packed) Extents(_ context.Context, _ block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	return append(buf, block.Extent{Off: off, Len: n, Flags: block.ExtData | block.ExtPacked}), nil
}

func TestSalvageOfPackedData(t *testing.T) {
	mem := block.NewMemory(8 << 20)
	bad := blocktest.NewFaulty(mem, blocktest.Fault{Ops: blocktest.OpRead, Off: 5 << 20, Len: 1, Err: errInjected})
	for unit, want := range map[int64]int64{4096: 4096, 64 << 10: 64 << 10, 4 << 20: 64 << 10} {
		s := NewSalvage(packed{block.Filter{Device: bad}, unit}, nil)
		if err := s.Read(t.Context(), make([]byte, 8<<20), 0); err != nil || s.Lost() != want {
			t.Errorf("units of %d: %v, %d bytes lost, want %d", unit, err, s.Lost(), want)
		}
	}
}

func TestSalvageReturnsWhatIsNoReadError(t *testing.T) {
	for _, cause := range []error{context.Canceled, block.ErrDenied, block.ErrKey, errors.ErrUnsupported} {
		bad := blocktest.NewFaulty(block.NewMemory(1<<20), blocktest.Fault{Ops: blocktest.OpRead, Off: 600000, Len: 1, Err: cause})
		s := NewSalvage(bad, func(l Loss) { t.Errorf("%v: lost %+v", cause, l) })
		if err := s.Read(t.Context(), make([]byte, 1<<20), 0); !errors.Is(err, cause) {
			t.Errorf("%v became %v", cause, err)
		}
	}
	// While halves are read, too.
	bad := blocktest.NewFaulty(block.NewMemory(1<<20), blocktest.Fault{Ops: blocktest.OpRead, Times: 1, Err: errInjected},
		blocktest.Fault{Ops: blocktest.OpRead, Nth: 3, Err: block.ErrKey})
	if err := NewSalvage(bad, nil).Read(t.Context(), make([]byte, 1<<20), 0); !errors.Is(err, block.ErrKey) {
		t.Errorf("%v, want ErrKey", err)
	}
}

// TestSalvageReadsWhereExtentsAreUnknown has a map that is broken from one byte on.
func TestSalvageReadsWhereExtentsAreUnknown(t *testing.T) {
	src := randomSparse(rand.New(rand.NewPCG(1, 31)), 3<<20)
	src.badMap = 2000000
	dst := newSparse(nil)
	st, err := Copy(t.Context(), NewSalvage(src, nil), dst, Options{TargetIsZero: true, ZeroGranule: 4096})
	if err != nil || !bytes.Equal(dst.data, src.data) || st.Read <= int64(len(src.data))-src.known() || st.Zero == 0 {
		t.Errorf("%+v, %v; equal %v", st, err, bytes.Equal(dst.data, src.data))
	}
	if _, err := NewSalvage(src, nil).Extents(t.Context(), block.Map{Bitmap: "b"}, 2000000, 10, nil); !errors.Is(err, errInjected) {
		t.Errorf("the bits of a bitmap are made up: %v", err)
	}
}

func TestSalvageGivesUpInTheEnd(t *testing.T) {
	s := NewSalvage(block.NewMemory(1<<40), nil)
	var losses []Loss
	for i := range int64(maxSpans + 1) {
		losses = append(losses, Loss{Off: i * 2 * sector, Len: sector, Err: errInjected})
	}
	if err := s.lose(losses); !errors.Is(err, errInjected) || s.Lost() != maxSpans*sector {
		t.Errorf("%v, %d bytes lost", err, s.Lost())
	}
}

func TestLosesEachRangeOnce(t *testing.T) {
	var told []span
	s := NewSalvage(block.NewMemory(1<<20), func(l Loss) { told = append(told, span{l.Off, l.Off + l.Len}) })
	for _, l := range []Loss{{Off: 100, Len: 100}, {Off: 400, Len: 100}, {Off: 50, Len: 500}, {Off: 0, Len: 1000}, {Off: 500, Len: 20}} {
		if err := s.lose([]Loss{l}); err != nil {
			t.Fatal(err)
		}
	}
	want := []span{{100, 200}, {400, 500}, {50, 100}, {200, 400}, {500, 550}, {0, 50}, {550, 1000}}
	if !slices.Equal(told, want) || !slices.Equal(s.spans, []span{{0, 1000}}) || s.Lost() != 1000 {
		t.Errorf("told %v, want %v; %v", told, want, s.spans)
	}
}
