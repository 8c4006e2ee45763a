package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/check"
)

// TestHeaderFlushFails: after a flush of the header has failed, what Flush says is durable is.
func TestHeaderFlushFails(t *testing.T) {
	template := kindOfImage{options: "cluster_size=512"}.template(t, 400<<10)
	for nth := 1; nth < 12; nth++ {
		for _, size := range []int64{64 << 20, 300 << 10} {
			f := template.clone()
			faulty := blocktest.NewFaulty(block.NoClose(f.image))
			d, err := Open(ctx, faulty, formats.OpenOptions{Write: true, Memory: 1 << 20})
			ok(t, err)
			r := rand.New(rand.NewPCG(1, 1))
			ok(t, d.Write(ctx, noise(r, 4096), 0, 0))
			ok(t, d.Flush(ctx))
			faulty.Plan(blocktest.Fault{Ops: blocktest.OpFlush, Nth: nth, Times: 1, Err: syscall.EIO})
			err = d.Resize(ctx, size)
			if faulty.Hits()[0] == 0 {
				continue
			}
			faulty.Plan()
			if !errors.Is(err, syscall.EIO) {
				t.Fatalf("flush %d: %v", nth, err)
			}
			want, off := noise(r, 4096), d.Size()-8192
			if d.Write(ctx, want, off, 0) != nil || d.Flush(ctx) != nil {
				continue // it says so
			}
			got := make([]byte, 4096)
			ok(t, files{image: f.image.Clone()}.open(t, false).Read(ctx, got, off))
			same(t, got, want)
		}
	}
}

// stepped stops the flush that begins while it is armed.
type stepped struct {
	block.Filter
	armed          atomic.Bool
	reached, leave chan struct{}
	err            error // of that flush
}

func (s *stepped) Flush(ctx context.Context) error {
	if s.armed.CompareAndSwap(true, false) {
		close(s.reached)
		<-s.leave
		return s.err
	}
	return s.Device.Flush(ctx)
}

// TestSyncTwice: who asks for a flush while another one runs waits for it, and flushes again where it fails.
func TestSyncTwice(t *testing.T) {
	f := kindOfImage{}.template(t, 1<<20)
	s := &stepped{Filter: block.Filter{Device: block.NoClose(f.image)}, reached: make(chan struct{}), leave: make(chan struct{}), err: syscall.EIO}
	dev, err := Open(ctx, s, formats.OpenOptions{Write: true})
	ok(t, err)
	d := dev.(*Device)
	d.wrote.Store(true)
	s.armed.Store(true)
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- d.syncFile(ctx) }()
	<-s.reached
	go func() { second <- d.syncFile(ctx) }()
	select {
	case err := <-second:
		t.Errorf("%v, while the flush of what was written before it runs", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(s.leave)
	if err := <-first; !errors.Is(err, syscall.EIO) {
		t.Errorf("%v", err)
	}
	if !t.Failed() {
		ok(t, <-second)
	}
	if d.wrote.Load() {
		t.Error("nobody has flushed again")
	}
}

// lone is the store of one file in memory.
type lone struct{ dev block.Device }

func (s lone) Create(context.Context, string) (block.Device, error) { return s.dev, nil }
func (s lone) Name() string                                         { return "image" }
func (s lone) Commit(context.Context) error                         { return nil }
func (s lone) Abort() error                                         { return nil }

// TestCreatedIsFlushed: a new image is flushed when somebody asks for it, though nothing was written since, and else not.
func TestCreatedIsFlushed(t *testing.T) {
	for _, want := range []bool{false, true} {
		rec := blocktest.NewRecorder(block.NewMemory(0))
		d, err := createImage(ctx, lone{rec}, formats.CreateOptions{Size: 1 << 20})
		ok(t, err)
		if want {
			ok(t, d.Flush(ctx))
		}
		ok(t, d.Close())
		flushed := slices.ContainsFunc(rec.Log().Entries(), func(e blocktest.Entry) bool { return e.Op == blocktest.OpFlush })
		if flushed != want {
			t.Errorf("flushed: %v, asked for: %v", flushed, want)
		}
	}
}

// TestClosePinned: Close waits for what is pinned, and does not free it.
func TestClosePinned(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	create(t, path, "", "1M")
	d := openPath(t, path, true)
	want := bytes.Repeat([]byte{9}, 64<<10)
	ok(t, d.Write(ctx, want, 0, 0))
	r, release, pinned := block.Pin(ctx, d, 0, 64<<10)
	if !pinned {
		t.Fatal("not pinned")
	}
	ok(t, d.Discard(ctx, 0, 64<<10))
	closed := make(chan error, 1)
	go func() { closed <- d.Close() }()
	time.Sleep(20 * time.Millisecond)
	got := make([]byte, 64<<10)
	_, err := r.File.ReadAt(got, r.Off)
	ok(t, err)
	same(t, got, want)
	release()
	ok(t, <-closed)
	clean(t, path, "closed")
}

// TestSnapshotCrashFlags: wherever the power fails, no entry may be written in place that has two users. Flags that are missing are all that is wrong.
func TestSnapshotCrashFlags(t *testing.T) {
	for op, do := range map[string]func(d *Device) error{
		"create": func(d *Device) error { return d.CreateSnapshot(ctx, "new", time.Unix(1e9, 0)) },
		"apply":  func(d *Device) error { return d.ApplySnapshot(ctx, "old") },
		"delete": func(d *Device) error { return d.DeleteSnapshot(ctx, "old") },
	} {
		f := kindOfImage{options: "cluster_size=512"}.template(t, 100<<10)
		d := f.open(t, true)
		r := rand.New(rand.NewPCG(1, 1))
		ok(t, d.Write(ctx, noise(r, 50<<10), 0, 0))
		ok(t, d.(*Device).CreateSnapshot(ctx, "old", time.Unix(1e9, 0)))
		ok(t, d.Write(ctx, noise(r, 20<<10), 10000, 0))
		ok(t, d.Close())
		initial := f.image.Clone()
		rec := blocktest.NewRecorder(f.image)
		dev, err := Open(ctx, block.NoClose(rec), formats.OpenOptions{Write: true})
		ok(t, err)
		ok(t, do(dev.(*Device)))
		ok(t, dev.Close())
		for s := range rec.Log().Replay(blocktest.Crashes{Initial: []*block.Memory{initial}, Torn: 2, Reordered: 3}) {
			onlyFlagsMissing(t, op+": "+s.What, s.Devices[0])
			g, err := Open(ctx, block.NoClose(s.Devices[0]), formats.OpenOptions{Write: true})
			ok(t, err)
			if err := errors.Join(g.Write(ctx, make([]byte, 40<<10), 5, 0), g.Close()); err != nil {
				t.Errorf("%s: %s: %v", op, s.What, err)
			}
			onlyFlagsMissing(t, op+", then written to: "+s.What, s.Devices[0])
		}
	}
}

// onlyFlagsMissing checks an image, which may have leaks and miss COPIED flags.
func onlyFlagsMissing(t *testing.T, what string, image block.Device) {
	t.Helper()
	_, err := check.Check(ctx, image, formats.CheckOptions{Problem: func(p formats.Problem) {
		if p.Kind != formats.Leak && !strings.Contains(p.Text, "has not the COPIED flag") {
			t.Errorf("%s: %+v", what, p)
		}
	}})
	ok(t, err)
}

// TestSnapshotFlushFails: after a snapshot operation has failed, what Flush says is durable is.
func TestSnapshotFlushFails(t *testing.T) {
	f0 := kindOfImage{options: "cluster_size=512"}.template(t, 100<<10)
	d := f0.open(t, true).(*Device)
	r := rand.New(rand.NewPCG(1, 1))
	ok(t, d.Write(ctx, noise(r, 50<<10), 0, 0))
	ok(t, d.CreateSnapshot(ctx, "old", time.Unix(1e9, 0)))
	ok(t, d.Write(ctx, noise(r, 50<<10), 10000, 0))
	ok(t, d.Close())
	for op, do := range map[string]func(d *Device) error{
		"create": func(d *Device) error { return d.CreateSnapshot(ctx, "new", time.Unix(1e9, 0)) },
		"apply":  func(d *Device) error { return d.ApplySnapshot(ctx, "old") },
		"delete": func(d *Device) error { return d.DeleteSnapshot(ctx, "old") },
	} {
		for _, kind := range []blocktest.Op{blocktest.OpFlush, blocktest.OpWrite} {
			for nth, hit := 1, true; hit; nth++ {
				f := f0.clone()
				faulty := blocktest.NewFaulty(block.NoClose(f.image))
				dev, err := Open(ctx, faulty, formats.OpenOptions{Write: true, Memory: 1 << 20})
				ok(t, err)
				d := dev.(*Device)
				faulty.Plan(blocktest.Fault{Ops: kind, Nth: nth, Times: 1, Err: syscall.EIO})
				err = do(d)
				hit = faulty.Hits()[0] > 0
				faulty.Plan()
				want := noise(r, 30<<10)
				durable := d.Write(ctx, want, 5000, 0) == nil && d.Flush(ctx) == nil
				g := files{image: f.image.Clone()}
				onlyFlagsMissing(t, op+" has failed: "+itoa(int64(nth)), g.image)
				if !durable && err == nil {
					t.Errorf("%s, %v %d: it has failed without saying so", op, kind, nth)
				}
				if durable {
					got := make([]byte, len(want))
					ok(t, g.open(t, false).Read(ctx, got, 5000))
					same(t, got, want)
				}
			}
		}
	}
}

// TestRefcountTableHostile: a refcount table that names a block twice, or something else, is refused before anything is written.
func TestRefcountTableHostile(t *testing.T) {
	f0 := kindOfImage{options: "cluster_size=512,refcount_bits=64"}.template(t, 8<<20)
	d := f0.open(t, true).(*Device)
	ok(t, d.Write(ctx, noise(rand.New(rand.NewPCG(1, 1)), 60<<10), 0, 0))
	ok(t, d.Flush(ctx))
	block0 := d.refs.table[0]
	for name, at := range map[string]uint64{"refcount block": block0, "L1 table": uint64(d.l1Offset), "refcount table": uint64(d.refs.tableOff)} {
		f := files{image: f0.image.Clone()}
		ok(t, f.image.Write(ctx, binary.BigEndian.AppendUint64(nil, at), d.refs.tableOff+8*4, 0))
		var damage *block.CorruptError
		if _, err := Open(ctx, block.NoClose(f.image), formats.OpenOptions{Write: true}); !errors.As(err, &damage) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		ok(t, f.open(t, false).Close())
	}
}

// TestGrowOverLeftovers: what tables hold behind the end of the disk does not show when it grows.
func TestGrowOverLeftovers(t *testing.T) {
	f := kindOfImage{options: "cluster_size=512"}.template(t, 2<<20)
	d := f.open(t, true)
	ok(t, d.Write(ctx, bytes.Repeat([]byte{7}, 2<<20), 0, 0))
	ok(t, d.Close())
	ok(t, f.image.Write(ctx, binary.BigEndian.AppendUint64(nil, 1<<20), 24, 0)) // the size
	d = f.open(t, true)
	ok(t, d.Resize(ctx, 1<<20+512*3+5))
	ok(t, d.Resize(ctx, 4<<20))
	got := make([]byte, 4<<20)
	ok(t, d.Read(ctx, got, 0))
	same(t, got, append(bytes.Repeat([]byte{7}, 1<<20), make([]byte, 3<<20)...))
	ok(t, d.Close())
	f.verify(t, "grown")
}

// TestManySnapshots: before the first change each L1 table is read once, however many snapshots name it.
func TestManySnapshots(t *testing.T) {
	f := kindOfImage{options: "cluster_size=64k"}.template(t, 1<<20)
	d := f.open(t, true).(*Device)
	ok(t, d.Write(ctx, make([]byte, 1<<20), 0, 0))
	ok(t, d.CreateSnapshot(ctx, "one", time.Unix(1e9, 0)))
	ok(t, d.Close())
	g := f.open(t, true).(*Device)
	list, err := g.readSnapshots(ctx)
	ok(t, err)
	for range 999 {
		list = append(list, list[0])
	}
	off, err := g.refs.allocateAll(ctx, 4)
	ok(t, err)
	var table []byte
	for i := range list {
		table = list[i].Append(table)
	}
	ok(t, g.writeFile(ctx, table, off))
	g.h.SnapshotsOffset, g.h.NbSnapshots = uint64(off), uint32(len(list))
	reads := &readCounter{Filter: block.Filter{Device: g.file}}
	g.file = reads
	tables, err := g.allTables(ctx)
	ok(t, err)
	if len(tables) != 1 || reads.n > 20 {
		t.Errorf("%d tables after %d reads", len(tables), reads.n)
	}
	stopped, stop := context.WithCancel(ctx)
	stop()
	if _, err := g.allTables(stopped); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// readCounter counts reads.
type readCounter struct {
	block.Filter
	n int
}

func (c *readCounter) Read(ctx context.Context, p []byte, off int64) error {
	c.n++
	return c.Filter.Read(ctx, p, off)
}
