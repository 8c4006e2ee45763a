package convert

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// runs is a stream of data in steps; steps of nothing but zeros are runs of zeros.
type runs struct {
	data  []byte
	step  int
	known bool
	pos   int
	err   error // in place of io.EOF
}

func (s *runs) Size() (int64, bool) {
	if !s.known {
		return 0, false
	}
	return int64(len(s.data)), true
}

func (s *runs) Next(ctx context.Context) (block.Run, error) {
	if err := ctx.Err(); err != nil {
		return block.Run{}, err
	}
	if s.pos == len(s.data) {
		if s.err != nil {
			return block.Run{}, s.err
		}
		return block.Run{}, io.EOF
	}
	p := s.data[s.pos:min(s.pos+s.step, len(s.data))]
	s.pos += len(p)
	if block.IsZero(p) {
		return block.Run{Len: int64(len(p)), Zero: true}, nil
	}
	return block.Run{Len: int64(len(p)), Data: bytes.Clone(p)}, nil
}

func (s *runs) Close() error { return nil }

func TestCopyStream(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 2))
		model := randomSparse(r, 1+r.Int64N(1<<20))
		dst := newSparse(nil)
		o := Options{Workers: 1 + r.IntN(4), Request: 1 << (10 + r.IntN(8)), TargetIsZero: true, ZeroGranule: []int64{0, 512, 4096}[r.IntN(3)]}
		src := &runs{data: model.data, step: 1 + r.IntN(100000), known: r.IntN(2) == 0}
		if r.IntN(3) == 0 { // an old target, which can only grow
			dst.caps.Resize, o.TargetIsZero = false, false
			dst.data = make([]byte, len(model.data)/2)
			fillRandom(r, dst.data)
		}
		st, err := CopyStream(t.Context(), src, dst, o)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(dst.data, model.data) || st.Size != int64(len(model.data)) || st.Read+st.Zero != st.Size {
			t.Fatalf("seed %d: the copy differs; %+v", seed, st)
		}
	}
}

func TestCopyStreamErrors(t *testing.T) {
	data := bytes.Repeat([]byte{1}, 100000)
	dst := newSparse(nil)
	if _, err := CopyStream(t.Context(), &runs{data: data, step: 7777, err: errInjected}, dst, Options{}); !errors.Is(err, errInjected) ||
		err.Error() != "read at byte 100000: injected" {
		t.Errorf("a stream that fails at its end: %v", err)
	}
	dst = newSparse(nil)
	dst.badPut = 50000
	if _, err := CopyStream(t.Context(), &runs{data: data, step: 100}, dst, Options{Request: 4096}); !errors.Is(err, errInjected) {
		t.Errorf("a target that fails: %v", err)
	}
	dst = newSparse(make([]byte, 99999))
	dst.caps = block.Caps{Write: true}
	var re *block.RangeError
	for _, known := range []bool{true, false} {
		if _, err := CopyStream(t.Context(), &runs{data: data, step: 100, known: known}, dst, Options{}); !errors.As(err, &re) || !errors.Is(err, ErrTooSmall) {
			t.Errorf("a target that is too small, size known %v: %v", known, err)
		}
	}
}

func TestWriteTo(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 3))
		src := randomSparse(r, r.Int64N(1<<20))
		var out bytes.Buffer
		st, err := WriteTo(t.Context(), src, &out, Options{
			Workers: 1 + r.IntN(4), Request: 1 << (10 + r.IntN(8)), Progress: checkProgress(t, int64(len(src.data))),
		})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(out.Bytes(), src.data) || st.Read+st.Zero != st.Size || src.read != st.Read || st.Zero != src.known() {
			t.Fatalf("seed %d: the output differs; %+v", seed, st)
		}
	}
}

// fullPipe takes so many bytes.
type fullPipe int

func (p *fullPipe) Write(b []byte) (int, error) {
	if int(*p) < len(b) {
		return 0, errInjected
	}
	*p -= fullPipe(len(b))
	return len(b), nil
}

func TestWriteToErrors(t *testing.T) {
	for _, zero := range []bool{false, true} {
		src := newSparse(bytes.Repeat([]byte{1}, 1<<20))
		if zero {
			src.data = make([]byte, 1<<20)
			src.holes = []block.Extent{{Len: 1 << 20, Flags: block.ExtZero}}
		}
		p := fullPipe(300 << 10)
		if _, err := WriteTo(t.Context(), src, &p, Options{Request: 256 << 10}); !errors.Is(err, errInjected) ||
			err.Error() != "write at byte 262144: injected" {
			t.Errorf("a full pipe: %v", err)
		}
	}
	src := newSparse(bytes.Repeat([]byte{1}, 1<<20))
	src.badRead = 300 << 10
	if _, err := WriteTo(t.Context(), src, io.Discard, Options{Request: 4096}); !errors.Is(err, errInjected) ||
		err.Error() != "read at byte 307200: injected" {
		t.Errorf("a bad block: %v", err)
	}
}

func TestWriteStreamTo(t *testing.T) {
	model := randomSparse(rand.New(rand.NewPCG(1, 6)), 1<<20)
	var out bytes.Buffer
	st, err := WriteStreamTo(t.Context(), &runs{data: model.data, step: 5000, known: true}, &out, Options{Progress: checkProgress(t, 1<<20)})
	if err != nil || !bytes.Equal(out.Bytes(), model.data) || st.Size != 1<<20 || st.Read+st.Zero != st.Size {
		t.Errorf("%+v, %v; equal %v", st, err, bytes.Equal(out.Bytes(), model.data))
	}
	full := fullPipe(100000)
	var e *Error
	if _, err := WriteStreamTo(t.Context(), &runs{data: model.data, step: 5000}, &full, Options{}); !errors.As(err, &e) || e.Op != Write || e.Off != 100000 {
		t.Errorf("a full pipe: %v", err)
	}
	if _, err := WriteStreamTo(t.Context(), &runs{data: model.data, step: 5000, err: errInjected}, &out, Options{}); !errors.Is(err, errInjected) {
		t.Errorf("a stream that fails at its end: %v", err)
	}
}
