package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
)

func TestCopyRandomLayouts(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		src := randomSparse(r, r.Int64N(1<<20))
		fresh := r.IntN(2) == 0
		dst := newSparse(nil)
		if !fresh {
			dst.data = make([]byte, r.Int64N(2<<20))
			fillRandom(r, dst.data)
		}
		tail := bytes.Clone(dst.data[min(len(src.data), len(dst.data)):])
		granule := []int64{0, 1, 512, 4096, 10000, 1 << 20}[r.IntN(6)]
		o := Options{
			Workers: 1 + r.IntN(5), Request: 1 << (10 + r.IntN(8)), ZeroGranule: granule, TargetIsZero: fresh,
			Progress: checkProgress(t, int64(len(src.data))),
		}
		st, err := Copy(t.Context(), src, dst, o)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(dst.data[:len(src.data)], src.data) || !bytes.Equal(dst.data[len(src.data):], tail) {
			t.Fatalf("seed %d: the copy differs", seed)
		}
		if src.read != int64(len(src.data))-src.known() {
			t.Errorf("seed %d: read %d bytes of %d, of which %d were known to be zero", seed, src.read, len(src.data), src.known())
		}
		if st.Size != int64(len(src.data)) || st.Read != src.read || st.Read+st.Zero != st.Size || st.Found > st.Read {
			t.Errorf("seed %d: %+v", seed, st)
		}
		if granule == 0 && (dst.flags&block.NoHole == 0 && dst.zeroed > 0 || dst.wrote+dst.zeroed != st.Size) {
			t.Errorf("seed %d: -S 0 has to allocate all: wrote %d, zeroed %d of %d", seed, dst.wrote, dst.zeroed, st.Size)
		}
		if granule > 0 && fresh && dst.zeroed > 0 {
			t.Errorf("seed %d: zeroed %d bytes of a new target", seed, dst.zeroed)
		}
	}
}

// checkProgress returns a Progress that fails the test where done falls or passes total.
func checkProgress(t *testing.T, want int64) func(done, total int64) {
	var last int64
	return func(done, total int64) {
		if done < last || done > total || total != want {
			t.Errorf("progress %d of %d after %d; the total is %d", done, total, last, want)
		}
		last = done
	}
}

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		p             string // one letter for each 8 bytes
		off           int64
		unit, granule int64
		want          string
	}{
		{"dddd", 0, 8, 8, "d32"},
		{"....", 0, 8, 8, ".32"},
		{"d..d", 0, 8, 8, "d8 .16 d8"},
		{"d..d", 0, 8, 16, "d8 .16 d8"},
		{"d..d", 0, 8, 24, "d32"},
		{"..d.", 0, 8, 16, ".16 d16"},
		{"d..d", 0, 16, 16, "d32"},
		{"d..d", 8, 16, 16, "d8 .16 d8"},
		{"....", 0, 8, 1000, ".32"},
		{"..dd", 0, 8, 0, "d32"},
		{"....", 0, 8, 0, "d32"},
		{"d..", 0, 8, 8, "d8 .16"},
		{"", 0, 8, 8, ""},
	} {
		var p []byte
		for _, l := range c.p {
			p = append(p, bytes.Repeat([]byte{byte(l - '.')}, 8)...)
		}
		var got []string
		_ = split(p, c.off, c.unit, c.granule, func(i, j int64, zero bool) error {
			got = append(got, fmt.Sprintf("%c%d", map[bool]rune{true: '.', false: 'd'}[zero], j-i))
			return nil
		})
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%q at %d by %d, granule %d: %s, want %s", c.p, c.off, c.unit, c.granule, s, c.want)
		}
	}
}

func TestCopyErrorsNameTheOffset(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(src, dst *sparse)
		want  string
	}{
		"read":    {func(s, _ *sparse) { s.badRead = 70000 }, "read at byte 65536: injected"},
		"write":   {func(_, d *sparse) { d.badPut = 70000 }, "write at byte 65536: injected"},
		"extents": {func(s, _ *sparse) { s.badMap = 70000 }, "find data and holes at byte 70000: injected"},
	} {
		src, dst := newSparse(bytes.Repeat([]byte{1}, 1<<20)), newSparse(make([]byte, 1<<20))
		c.spoil(src, dst)
		_, err := Copy(t.Context(), src, dst, Options{Request: 64 << 10, ZeroGranule: 4096})
		if !errors.Is(err, errInjected) || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// TestDamageIsFound: an error names the first sector that is damaged, wherever the request began. What is no damage is not read again.
func TestDamageIsFound(t *testing.T) {
	const size, at, n = 256 << 10, 100_000, 30_000
	for _, c := range []struct {
		err  error
		want int64
	}{
		{block.Corrupt("format", "part", 7, "it is damaged"), at / sector * sector},
		{errInjected, 0},
	} {
		src := block.NewMemory(size)
		if err := src.Write(t.Context(), bytes.Repeat([]byte{1}, size), 0, 0); err != nil {
			t.Fatal(err)
		}
		bad := blocktest.NewFaulty(src, blocktest.Fault{Ops: blocktest.OpRead, Off: at, Len: n, Err: c.err})
		o := Options{Workers: 1, Request: size}
		_, copied := Copy(t.Context(), bad, newSparse(nil), o)
		_, written := WriteTo(t.Context(), bad, io.Discard, o)
		_, compared := Compare(t.Context(), bad, src, false, o)
		for _, err := range []error{copied, written, compared} {
			var e *Error
			if !errors.As(err, &e) || e.Off != c.want || !errors.Is(err, c.err) {
				t.Errorf("%v, want byte %d: %v", err, c.want, c.err)
			}
		}
	}
}

func TestCopyTargetTooSmall(t *testing.T) {
	src, dst := newSparse(make([]byte, 100)), newSparse(make([]byte, 99))
	dst.caps = block.Caps{Write: true}
	var re *block.RangeError
	if _, err := Copy(t.Context(), src, dst, Options{}); !errors.As(err, &re) {
		t.Errorf("%v, want a RangeError", err)
	}
	dst.caps = block.Caps{}
	if _, err := Copy(t.Context(), src, dst, Options{}); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("%v, want ErrReadOnly", err)
	}
}

// TestCancel ends each function while its source and target hang, and looks for goroutines left behind.
func TestCancel(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for name, run := range map[string]func(ctx context.Context, src, dst *sparse) error{
		"copy": func(ctx context.Context, src, dst *sparse) error {
			_, err := Copy(ctx, src, dst, Options{Workers: 4, Request: 4096})
			return err
		},
		"stream": func(ctx context.Context, src, dst *sparse) error {
			_, err := CopyStream(ctx, &runs{data: src.data, step: 1000}, dst, Options{Workers: 4, Request: 4096})
			return err
		},
		"write": func(ctx context.Context, src, dst *sparse) error {
			_, err := WriteTo(ctx, src, &bytes.Buffer{}, Options{Workers: 4, Request: 4096})
			return err
		},
		"compare": func(ctx context.Context, src, dst *sparse) error {
			_, err := Compare(ctx, src, dst, false, Options{Workers: 4, Request: 4096})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			src, dst := newSparse(bytes.Repeat([]byte{1}, 1<<20)), newSparse(bytes.Repeat([]byte{1}, 1<<20))
			var calls atomic.Int32
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			wait := func(ctx context.Context) error {
				if calls.Add(1) < 20 {
					return nil
				}
				cancel()
				return hang(ctx)
			}
			dst.block = wait
			if name != "copy" {
				src.block = wait
			}
			if err := run(ctx, src, dst); !errors.Is(err, context.Canceled) {
				t.Errorf("%v, want context.Canceled", err)
			}
			for i := 0; runtime.NumGoroutine() > before; i++ {
				if i == 1000 {
					t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// onFile is a device that lies plain in a file.
type onFile struct {
	*sparse
	file *os.File
	most int64 // bytes pinned at a time
}

func (d onFile) File() *os.File { return d.file }

func (d onFile) Pin(_ context.Context, off, n int64) (block.FileRange, func(), bool) {
	return block.FileRange{File: d.file, Off: off, Len: min(n, d.most)}, func() {}, true
}

func TestKernelCopies(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	model := randomSparse(r, 300000)
	file := func(data []byte) onFile {
		name := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		d := newSparse(bytes.Clone(data))
		d.holes = model.holes
		return onFile{d, f, 3000}
	}
	src, dst := file(model.data), file(make([]byte, len(model.data)))
	kernel := Kernel{CopyRange: func(to *os.File, toOff int64, from *os.File, fromOff, n int64) (int64, error) {
		p := make([]byte, min(n, 1000))
		if _, err := from.ReadAt(p, fromOff); err != nil {
			return 0, err
		}
		k, err := to.WriteAt(p, toOff)
		return int64(k), err
	}}
	st, err := Copy(t.Context(), src, dst, Options{Kernel: kernel})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(dst.file.Name())
	if !bytes.Equal(got, model.data) || st.Moved != int64(len(model.data))-model.known() || st.Read != 0 {
		t.Errorf("%+v, equal %v", st, bytes.Equal(got, model.data))
	}

	kernel.CopyRange = func(*os.File, int64, *os.File, int64, int64) (int64, error) { return 0, errors.ErrUnsupported }
	if st, err = Copy(t.Context(), src, dst, Options{Kernel: kernel}); err != nil || st.Moved != 0 || !bytes.Equal(dst.data, model.data) {
		t.Errorf("without the kernel: %+v, %v", st, err)
	}
}

func TestReflink(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(5000); err != nil {
		t.Fatal(err)
	}
	whole := onFile{newSparse(bytes.Repeat([]byte{1}, 5000)), f, 5000}
	part := onFile{newSparse(bytes.Repeat([]byte{1}, 4000)), f, 5000}
	for _, c := range []struct {
		name   string
		src    onFile
		fresh  bool
		err    error
		cloned int64
	}{
		{"whole", whole, true, nil, 5000},
		{"old target", whole, false, nil, 0},
		{"part of a file", part, true, nil, 0},
		{"other file system", whole, true, errors.ErrUnsupported, 0},
	} {
		dst := onFile{newSparse(make([]byte, c.src.Size())), f, 5000}
		o := Options{ZeroGranule: 4096, TargetIsZero: c.fresh, Kernel: Kernel{Reflink: func(_, _ *os.File) error { return c.err }}}
		st, err := Copy(t.Context(), c.src, dst, o)
		if err != nil || st.Cloned != c.cloned || st.Cloned+st.Read != st.Size {
			t.Errorf("%s: %+v, %v", c.name, st, err)
		}
	}
}

func BenchmarkCopy(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	src := newSparse(make([]byte, 64<<20))
	fillRandom(r, src.data)
	dst := newSparse(make([]byte, len(src.data)))
	b.SetBytes(int64(len(src.data)))
	for b.Loop() {
		if _, err := Copy(b.Context(), src, dst, Options{ZeroGranule: DefaultZeroGranule}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestCopyToAFullDisk has a target that takes so many bytes and no more.
func TestCopyToAFullDisk(t *testing.T) {
	full := errors.New("no space left on device")
	src := newSparse(bytes.Repeat([]byte{1}, 1<<20))
	for name, run := range map[string]func(dst block.Device) error{
		"copy": func(dst block.Device) error {
			_, err := Copy(t.Context(), src, dst, Options{Workers: 4, Request: 4096})
			return err
		},
		"stream": func(dst block.Device) error {
			_, err := CopyStream(t.Context(), &runs{data: src.data, step: 1000}, dst, Options{Workers: 4, Request: 4096})
			return err
		},
		"commit": func(dst block.Device) error {
			_, err := Commit(t.Context(), src, dst, Options{Workers: 4, Request: 4096})
			return err
		},
	} {
		dst := blocktest.NewFaulty(block.NewMemory(1<<20), blocktest.Fault{Ops: blocktest.OpWrite, Bytes: 300000, Err: full})
		var at *Error
		if err := run(dst); !errors.Is(err, full) || !errors.As(err, &at) || at.Op != Write {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLimits checks that buffers keep the budget, whatever is asked for.
func TestLimits(t *testing.T) {
	long := packed{block.Filter{Device: block.NewMemory(1)}, 64 << 20}
	for _, memory := range []int64{0, 1, 64 << 10, 1 << 20, 1 << 30} {
		for _, workers := range []int{0, 1, 16, 1000} {
			for _, request := range []int64{0, 512, 1 << 20, 1 << 30} {
				for buffers := range int64(3) {
					w, r := Options{Workers: workers, Request: request, Memory: memory}.limits(DefaultRequest, buffers+1, nil, long)
					budget := max(memory, minRequest*(buffers+1))
					if memory == 0 {
						budget = DefaultMemory
					}
					if w < 1 || r < 1 || int64(w)*r*(buffers+1) > budget {
						t.Errorf("memory %d, %d workers, requests of %d, %d buffers: %d workers with %d", memory, workers, request, buffers+1, w, r)
					}
				}
			}
		}
	}
}
