package convert

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// layered is an image over another one, as qcow2 has them: clusters that it holds, as data or as zeros, and others in which the
// backing image shows through.
type layered struct {
	*sparse
	mu      sync.Mutex
	cluster int64
	state   []byte // of each cluster: through, asData or asZero
	lazy    bool   // Zero does nothing where the backing image is zero
	back    block.Device
}

const through, asData, asZero = 0, 1, 2

func newLayered(size, cluster int64, back block.Device) *layered {
	return &layered{sparse: newSparse(make([]byte, size)), cluster: cluster, state: make([]byte, (size+cluster-1)/cluster), back: back}
}

func (d *layered) Info() block.Info {
	i := d.sparse.Info()
	i.PreferredBlock = d.cluster
	return i
}

// below reads what shows through.
func (d *layered) below(ctx context.Context, p []byte, off int64) error {
	clear(p)
	if d.back == nil || off >= d.back.Size() {
		return nil
	}
	return d.back.Read(ctx, p[:min(int64(len(p)), d.back.Size()-off)], off)
}

// clusters calls f for each part of the range that lies in one cluster.
func (d *layered) clusters(off, n int64, f func(i, off, n int64) error) error {
	for end := off + n; off < end; {
		i := off / d.cluster
		k := min(end, (i+1)*d.cluster) - off
		if err := f(i, off, k); err != nil {
			return err
		}
		off += k
	}
	return nil
}

func (d *layered) Read(ctx context.Context, p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	start := off
	return d.clusters(off, int64(len(p)), func(i, off, n int64) error {
		p := p[off-start:][:n]
		switch d.state[i] {
		case asData:
			return d.sparse.Read(ctx, p, off)
		case asZero:
			clear(p)
			return nil
		}
		return d.below(ctx, p, off)
	})
}

// own makes the cluster one of data, with its old content.
func (d *layered) own(ctx context.Context, i int64) error {
	start := i * d.cluster
	p := d.data[start:min(start+d.cluster, int64(len(d.data)))]
	switch d.state[i] {
	case through:
		if err := d.below(ctx, p, start); err != nil {
			return err
		}
	case asZero:
		clear(p)
	}
	d.state[i] = asData
	return nil
}

func (d *layered) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	start := off
	return d.clusters(off, int64(len(p)), func(i, off, n int64) error {
		if err := d.own(ctx, i); err != nil {
			return err
		}
		return d.sparse.Write(ctx, p[off-start:][:n], off, f)
	})
}

func (d *layered) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.clusters(off, n, func(i, off, n int64) error {
		whole := off%d.cluster == 0 && (n == d.cluster || off+n == int64(len(d.data)))
		if d.lazy && d.state[i] == through {
			p := make([]byte, n)
			if err := d.below(ctx, p, off); err != nil || block.IsZero(p) {
				return err
			}
		}
		if whole {
			d.state[i] = asZero
			return nil
		}
		if err := d.own(ctx, i); err != nil {
			return err
		}
		return d.sparse.Zero(ctx, off, n, f)
	})
}

func (d *layered) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	base := len(buf)
	err := d.clusters(off, n, func(i, off, n int64) error {
		e := block.Extent{Off: off, Len: n, Flags: block.ExtAlloc}
		switch {
		case d.state[i] == asZero:
			e.Flags |= block.ExtZero
		case d.state[i] == asData:
		case d.back == nil || off >= d.back.Size():
			e.Flags = block.ExtZero
		default:
			e.Depth++
		}
		buf = block.AppendExtent(buf, base, e)
		return nil
	})
	return buf, err
}

func (d *layered) Resize(ctx context.Context, size int64) error {
	d.state = append(d.state, make([]byte, (size+d.cluster-1)/d.cluster-int64(len(d.state)))...)
	return d.sparse.Resize(ctx, size)
}

// fill writes data and zeros to some clusters.
func (d *layered) fill(t *testing.T, r *rand.Rand) {
	for range r.IntN(20) {
		off := r.Int64N(d.Size())
		n := min(1+r.Int64N(3*d.cluster), d.Size()-off)
		p := make([]byte, n)
		var err error
		if r.IntN(3) == 0 {
			err = d.Zero(t.Context(), off, n, 0)
		} else {
			fillRandom(r, p)
			err = d.Write(t.Context(), p, off, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func content(t *testing.T, d block.Device) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	if err := d.Read(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// randomBacking returns a backing image, or none. Its blocks are often those of like.
func randomBacking(r *rand.Rand, size int64, like block.Device) block.Device {
	if r.IntN(5) == 0 {
		return nil
	}
	d := randomSparse(r, 1+r.Int64N(2*size))
	if l, ok := like.(*sparse); ok && r.IntN(2) == 0 {
		n := min(len(l.data), len(d.data))
		copy(d.data, l.data[:r.IntN(n+1)])
		d.holes = nil
	}
	return d
}

func TestRebaseKeepsTheContent(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 20))
		size := 1 + r.Int64N(1<<18)
		from := randomBacking(r, size, nil)
		to := randomBacking(r, size, from)
		d := newLayered(size, 512<<r.IntN(8), from)
		d.lazy = r.IntN(2) == 0
		d.fill(t, r)
		want := content(t, d)
		st, err := Rebase(t.Context(), d, from, to, Options{
			Workers: 1 + r.IntN(4), Request: 1 << (12 + r.IntN(6)), Progress: checkProgress(t, size),
		})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		d.back = to
		if !bytes.Equal(content(t, d), want) {
			t.Fatalf("seed %d: the overlay reads differently", seed)
		}
		if st.Size != size || st.Read+st.Left != size || st.Written > st.Read {
			t.Errorf("seed %d: %+v", seed, st)
		}
	}
}

// TestRebaseLeavesWhatIsEqual checks that nothing is written, and nothing read, where there is no need.
func TestRebaseLeavesWhatIsEqual(t *testing.T) {
	from := newSparse(bytes.Repeat([]byte{1}, 1<<20))
	to := newSparse(bytes.Repeat([]byte{1}, 1<<20))
	d := newLayered(1<<20, 64<<10, from)
	st, err := Rebase(t.Context(), d, from, to, Options{})
	if err != nil || st.Written != 0 || st.Read != 1<<20 || bytes.ContainsAny(d.state, "\x01\x02") {
		t.Errorf("equal images: %+v, %v, clusters %v", st, err, d.state)
	}
	to.data[70000]++
	if st, err = Rebase(t.Context(), d, from, to, Options{}); err != nil || st.Written != 64<<10 || d.state[1] != asData || d.state[0] != through {
		t.Errorf("one cluster differs: %+v, %v, clusters %v", st, err, d.state)
	}
}

// TestRebaseReadsNoFileThatBothHave has two devices over one file, and two that only call themselves the same.
func TestRebaseReadsNoFileThatBothHave(t *testing.T) {
	name := filepath.Join(t.TempDir(), "base")
	open := func(content byte) onFile {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		d := newSparse(bytes.Repeat([]byte{content}, 1<<20))
		d.holes = []block.Extent{{Len: 1 << 20, Flags: block.ExtData, Node: "base"}}
		return onFile{d, f, 1 << 20}
	}
	from, to := open(1), open(1)
	from.badRead, to.badRead = 5, 5
	d := newLayered(1<<20, 64<<10, from)
	if st, err := Rebase(t.Context(), d, from, to, Options{}); err != nil || st.Left != 1<<20 {
		t.Errorf("the same file: %+v, %v", st, err)
	}
	if err := os.Rename(name, name+".old"); err != nil {
		t.Fatal(err)
	}
	from.badRead = -1
	if st, err := Rebase(t.Context(), d, from, open(2), Options{}); err != nil || st.Written != 1<<20 {
		t.Errorf("another file of the name: %+v, %v", st, err)
	}
	d = newLayered(1<<20, 64<<10, from)
	if st, err := Rebase(t.Context(), d, from.sparse, open(2).sparse, Options{}); err != nil || st.Written != 1<<20 {
		t.Errorf("no files at all: %+v, %v", st, err)
	}
}

func TestRebaseErrors(t *testing.T) {
	back := newSparse(bytes.Repeat([]byte{1}, 1<<20))
	back.badRead = 600000
	d := newLayered(1<<20, 4096, back)
	if _, err := Rebase(t.Context(), d, back, nil, Options{Request: 4096}); !errors.Is(err, errInjected) || err.Error() != "read at byte 598016: injected" {
		t.Errorf("a bad block: %v", err)
	}
	back.badRead, d.badPut = -1, 600000
	if _, err := Rebase(t.Context(), d, back, nil, Options{Request: 4096}); !errors.Is(err, errInjected) || err.Error() != "write at byte 598016: injected" {
		t.Errorf("an overlay that is full: %v", err)
	}
	d.caps = block.Caps{}
	if _, err := Rebase(t.Context(), d, back, nil, Options{}); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("an overlay that cannot be written: %v", err)
	}
}

func TestCommitWritesWhatTheOverlayHolds(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 21))
		base := randomSparse(r, 1+r.Int64N(1<<18))
		base.holes = nil
		d := newLayered(1+r.Int64N(1<<18), 512<<r.IntN(8), base)
		d.fill(t, r)
		want := content(t, d)
		if len(base.data) > len(want) {
			want = append(want, base.data[len(want):]...)
		}
		holds := int64(0)
		for i, s := range d.state {
			if s != through {
				holds += min(d.cluster, d.Size()-int64(i)*d.cluster)
			}
		}
		st, err := Commit(t.Context(), d, base, Options{
			Workers: 1 + r.IntN(4), Request: 1 << (10 + r.IntN(8)), ZeroGranule: int64(r.IntN(2)) * 4096, Progress: checkProgress(t, d.Size()),
		})
		if err != nil || !bytes.Equal(base.data, want) {
			t.Fatalf("seed %d: %v, equal %v", seed, err, bytes.Equal(base.data, want))
		}
		if st.Size != d.Size() || st.Read+st.Zero != holds || st.Left != d.Size()-holds || st.Written != holds {
			t.Errorf("seed %d: %+v; the overlay holds %d bytes", seed, st, holds)
		}
	}
	small := newSparse(make([]byte, 100))
	small.caps = block.Caps{Write: true}
	var re *block.RangeError
	if _, err := Commit(t.Context(), newLayered(101, 512, small), small, Options{}); !errors.As(err, &re) {
		t.Errorf("a base that cannot grow: %v", err)
	}
}

// TestCopyKeepsBacking copies an overlay to a new one over an image of the same content.
func TestCopyKeepsBacking(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 22))
		base := randomSparse(r, 1+r.Int64N(1<<18))
		src := newLayered(1+r.Int64N(1<<18), 512<<r.IntN(8), base)
		src.fill(t, r)
		dst := newLayered(src.Size(), src.cluster, nil) // given its backing image afterwards, as a new image is
		dst.lazy = r.IntN(2) == 0
		st, err := Copy(t.Context(), src, dst, Options{
			Workers: 1 + r.IntN(4), Request: 1 << (10 + r.IntN(8)), ZeroGranule: int64(r.IntN(2)) * 4096, KeepBacking: true,
		})
		dst.back = base
		if err != nil || !bytes.Equal(content(t, dst), content(t, src)) {
			t.Fatalf("seed %d: %v; equal %v", seed, err, bytes.Equal(content(t, dst), content(t, src)))
		}
		for i, s := range src.state {
			if s == through && dst.state[i] != through && int64(i)*src.cluster < base.Size() {
				t.Fatalf("seed %d: cluster %d of the backing image was copied", seed, i)
			}
		}
		if st.Read+st.Zero+st.Left != st.Size {
			t.Errorf("seed %d: %+v", seed, st)
		}
	}
}

func TestInUnits(t *testing.T) {
	for _, c := range []struct {
		ranges, want string // a letter for each byte: a and b to be read, c both, . known to be the same, - left
	}{
		{"", ""},
		{"aaaa....bbbb", "aaaa----bbbb"},
		{"aab.....bbbb", "cccc----bbbb"},
		{"..aa.a..a", "aaaaaaaaa"},
		{"...---..", "--------"},
		{"a..-....", "aaa-----"},
		{"-a..b.--.b", "-aaabb--bb"},
		{"........a", "--------a"},
		{"aaaaaaaaaaa.", "aaaaaaaaaaaa"},
		{"ab---ba.", "cc---ccc"},
	} {
		kinds := map[byte]kind{'a': readA, 'b': readB, 'c': readA | readB, '-': leave, '.': 0}
		seq := func(yield func(task, error) bool) {
			for i := 0; i < len(c.ranges); {
				j := i
				for j < len(c.ranges) && c.ranges[j] == c.ranges[i] {
					j++
				}
				if !yield(task{off: int64(i), n: int64(j - i), kind: kinds[c.ranges[i]]}, nil) {
					return
				}
				i = j
			}
		}
		got := ""
		for r := range inUnits(seq, 4) {
			if int(r.off) != len(got) {
				t.Errorf("%s: a gap at %d", c.ranges, len(got))
			}
			for letter, k := range kinds {
				if k == r.kind && letter != '.' {
					got += strings.Repeat(string(letter), int(r.n))
				}
			}
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.ranges, got, c.want)
		}
	}
}
