package qcow2

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/check"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/internal/peers"
)

// TestCrash lets the power fail at every moment of a series of changes, with writes torn and reordered, and demands that each time the image
// opens, holds everything that was flushed, and has nothing wrong but space that is counted as used and is not.
func TestCrash(t *testing.T) {
	if testing.Short() {
		t.Skip("its work is done by one goroutine, and takes long under the race detector")
	}
	for i, k := range []kindOfImage{
		{name: "default"},
		{name: "small clusters", options: "cluster_size=512,refcount_bits=64"},
		{name: "4k backing", options: "cluster_size=4k,refcount_bits=1", backing: 300 << 10},
		{name: "v2", options: "compat=0.10,cluster_size=1k"},
		{name: "v2 backing", options: "compat=0.10,cluster_size=4k", backing: 300 << 10},
		{name: "subclusters", options: "extended_l2=on,cluster_size=16k", backing: 200 << 10},
		{name: "data file", options: "data_file=data,cluster_size=4k", dataFile: true, backing: 100 << 10},
		{name: "raw data file", options: "data_file=data,data_file_raw=on,cluster_size=4k", dataFile: true},
	} {
		t.Run(k.name, func(t *testing.T) {
			f := k.template(t, 400<<10)
			for seed := range seeds() {
				crash(t, f.clone(), make([]byte, 400<<10), uint64(seed*100+i))
			}
		})
	}
}

// seeds returns how many series of changes are tried.
func seeds() int {
	if os.Getenv("IMGTOOL_SOAK") != "" {
		return 30
	}
	return 1
}

// TestCrashOnOldImages does so with images that hold compressed clusters and share clusters with a snapshot.
func TestCrashOnOldImages(t *testing.T) {
	if testing.Short() {
		t.Skip("its work is done by one goroutine, and takes long under the race detector")
	}
	for i, options := range []string{"cluster_size=4k", "cluster_size=512", "extended_l2=on,cluster_size=16k,compression_type=zstd"} {
		t.Run(options, func(t *testing.T) {
			const size = 400 << 10
			dir := t.TempDir()
			want := sample(rand.New(rand.NewPCG(5, uint64(i))), size)
			ok(t, os.WriteFile(filepath.Join(dir, "raw"), want, 0o666))
			path := filepath.Join(dir, "image")
			qemuImg(t, "convert", "-f", "raw", "-O", Name, "-c", "-o", options, filepath.Join(dir, "raw"), path)
			qemuIO(t, path, "write -P 7 100k 50k")
			qemuImg(t, "snapshot", "-c", "one", path)
			qemuIO(t, path, "write -P 8 120k 50k")
			want = rawOf(t, path)
			image := memoryOf(t, path)
			for seed := range seeds() {
				crash(t, files{image: image.Clone()}, bytes.Clone(want), uint64(seed*100+i))
			}
		})
	}
}

// TestCrashGrowing does so while the refcount table gets longer.
func TestCrashGrowing(t *testing.T) {
	const size, filled = 3 << 20, 1974 << 10
	f := kindOfImage{options: "cluster_size=512,refcount_bits=64"}.template(t, size)
	want := make([]byte, size)
	copy(want, noise(rand.New(rand.NewPCG(4, 4)), filled))
	d := f.open(t, true)
	ok(t, d.Write(ctx, want[:filled], 0, 0))
	ok(t, d.Close())
	before, err := ondisk.ReadHeader(ctx, f.image)
	ok(t, err)
	crashSteps(t, f, want, 1, 12)
	after, err := ondisk.ReadHeader(ctx, f.image)
	ok(t, err)
	if before.RefcountTableOffset == after.RefcountTableOffset {
		t.Errorf("the refcount table has not grown: %+v, %d bytes", after, f.image.Size())
	}
}

// history is what a disk held after each change.
type history struct {
	versions [][]byte
	flushed  []int  // by number of the log's mark: the version that was durable
	backing  []byte // what the backing image shows
}

// beyond reports whether byte b may be at off in a moment in which the disk gets shorter than that: nothing is there any more.
func (h *history) beyond(b byte, off int) bool {
	return b == 0 || off < len(h.backing) && b == h.backing[off]
}

func (h *history) last() []byte { return h.versions[len(h.versions)-1] }

// crash changes an image that shows content, with crashes.
func crash(t *testing.T, f files, content []byte, seed uint64) {
	copy(content, f.backing)
	crashSteps(t, f, content, seed, 36)
}

func crashSteps(t *testing.T, f files, content []byte, seed uint64, steps int) {
	initial := []*block.Memory{f.image.Clone()}
	var log blocktest.Log
	file := log.Recorder(f.image)
	o := formats.OpenOptions{Write: true, Refer: f.refer, Memory: 1 << 20}
	if f.data != nil {
		initial = append(initial, f.data.Clone())
		data := log.Recorder(f.data)
		o.Refer = func(ctx context.Context, ref formats.Ref, write bool) (block.Device, error) {
			if ref.Kind == formats.DataFile {
				return block.NoClose(data), nil
			}
			return f.refer(ctx, ref, write)
		}
	}
	d, err := Open(ctx, block.NoClose(file), o)
	ok(t, err)
	h := &history{versions: [][]byte{content}, flushed: []int{0}, backing: f.backing}
	r := rand.New(rand.NewPCG(6, seed))
	kinds := 16
	switch image, _ := block.As[*Device](d); {
	case image.rawData():
		kinds = 12 // what is discarded may hold anything
	case image.h.NbSnapshots > 0 || image.data.Named():
		kinds = 15 // the size stays
	}
	for i := range steps {
		h.step(t, d, r, kinds)
		if i%4 == 3 {
			ok(t, d.Flush(ctx))
			h.flushed = append(h.flushed, len(h.versions)-1)
			log.Mark(len(h.flushed) - 1)
		}
	}
	ok(t, d.Close())
	states, kept := 0, 1
	if os.Getenv("IMGTOOL_SOAK") != "" {
		kept = 3
	}
	for s := range log.Replay(blocktest.Crashes{Initial: initial, Torn: kept, Reordered: kept + 1, Seed: seed}) {
		states++
		g := files{image: s.Devices[0], backing: f.backing}
		if f.data != nil {
			g.data = s.Devices[1]
		}
		h.survives(t, g, s, states)
		if t.Failed() {
			dump(t, g.image, "/tmp/qa/crash.qcow2")
			return
		}
	}
	t.Logf("%d states", states)
	if states < 100 {
		t.Fatalf("only %d states", states)
	}
}

// step changes d, and notes what it holds then.
func (h *history) step(t *testing.T, d block.Device, r *rand.Rand, kinds int) {
	t.Helper()
	p := bytes.Clone(h.last())
	unit := int64(1)
	if r.IntN(3) == 0 {
		unit = d.Info().PreferredBlock
	}
	size := int64(len(p))
	off := block.RoundDown(r.Int64N(size), unit)
	n := min(size-off, max(unit, block.RoundDown(1+r.Int64N(1<<uint(3+r.IntN(15))), unit)))
	switch what := r.IntN(kinds); {
	case what < 9:
		copy(p[off:off+n], noise(r, int(n)))
		ok(t, d.Write(ctx, p[off:off+n], off, 0))
	case what < 12:
		clear(p[off : off+n])
		ok(t, d.Zero(ctx, off, n, block.Flags(r.IntN(2))*block.NoHole))
	case what < 15:
		unit := d.Info().PreferredBlock
		off := block.RoundDown(off, unit)
		n := min(size-off, unit*(1+r.Int64N(4)))
		ok(t, d.Discard(ctx, off, n))
		ok(t, d.Read(ctx, p[off:off+n], off)) // old data or zeros
	default:
		size := max(100<<10, size+r.Int64N(200<<10)-100<<10)
		ok(t, d.Resize(ctx, size))
		p = append(p, make([]byte, 200<<10)...)[:size]
	}
	h.versions = append(h.versions, p)
}

// survives checks what a crash has left.
func (h *history) survives(t *testing.T, g files, s blocktest.State, number int) {
	t.Helper()
	res, err := check.Check(ctx, g.image, formats.CheckOptions{Problem: func(p formats.Problem) {
		if p.Kind != formats.Leak {
			t.Errorf("%s: %+v", s.What, p)
		}
	}})
	if err != nil || res.Corruptions > 0 || res.CheckErrors > 0 {
		t.Fatalf("%s: %+v, %v", s.What, res, err)
	}
	d := g.openOnly(t, false)
	h.between(t, d, s)
	ok(t, d.Close())
	if number%50 == 0 {
		g.checkWithQemu(t, s.What)
	}
	if number%10 == 0 {
		d := g.openOnly(t, true)
		p := noise(rand.New(rand.NewPCG(7, uint64(number))), 50<<10)
		ok(t, d.Write(ctx, p, 10<<10, block.FUA))
		got := make([]byte, len(p))
		ok(t, d.Read(ctx, got, 10<<10))
		same(t, got, p)
		ok(t, d.Close())
		if res, err := check.Check(ctx, g.image, formats.CheckOptions{}); err != nil || res.Corruptions > 0 {
			t.Fatalf("%s, then written to: %+v, %v", s.What, res, err)
		}
	}
}

// between checks that every byte holds what it held in one of the versions from the last flush on.
func (h *history) between(t *testing.T, d block.Device, s blocktest.State) {
	t.Helper()
	got := make([]byte, d.Size())
	if err := d.Read(ctx, got, 0); err != nil {
		t.Fatalf("%s: %v", s.What, err)
	}
	versions := h.versions[h.flushed[s.Mark]:]
	known := false
	for _, v := range versions {
		known = known || len(v) == len(got)
	}
	if !known {
		t.Fatalf("%s: the size is %d", s.What, len(got))
	}
	const piece = 512
pieces:
	for at := 0; at < len(got); at += piece {
		end := min(at+piece, len(got))
		for _, v := range versions {
			if end <= len(v) && bytes.Equal(got[at:end], v[at:end]) {
				continue pieces
			}
		}
		for off := at; off < end; off++ {
			if !h.was(versions, got[off], off) {
				t.Fatalf("%s: byte %d is %#02x, which it never was", s.What, off, got[off])
			}
		}
	}
}

// was reports whether byte b was at off in one of the versions.
func (h *history) was(versions [][]byte, b byte, off int) bool {
	for _, v := range versions {
		if off < len(v) && b == v[off] || off >= len(v) && h.beyond(b, off) {
			return true
		}
	}
	return false
}

// checkWithQemu lets qemu-img check the image: it may have leaks.
func (f files) checkWithQemu(t *testing.T, what string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	dump(t, f.image, path)
	for _, name := range []string{"data", "backing"} {
		ok(t, os.WriteFile(filepath.Join(filepath.Dir(path), name), nil, 0o666))
	}
	cmd := peers.Command(t, "qemu-img", "check", "-f", Name, path)
	cmd.Dir = filepath.Dir(path)
	if out, err := cmd.CombinedOutput(); err != nil && cmd.ProcessState.ExitCode() != 3 {
		t.Fatalf("%s: qemu-img check: %v\n%s", what, err, out)
	}
}
