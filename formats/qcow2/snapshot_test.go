package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/check"
	"github.com/imgtool/imgtool/source/file"
)

// sound checks an image by qemu-img, which exits with 3 for a leak, and by us.
func sound(t *testing.T, path string) {
	t.Helper()
	qemuImg(t, "check", "-q", "-f", Name, path)
	f := memoryOf(t, path)
	r, err := check.Check(ctx, f, formats.CheckOptions{Problem: func(p formats.Problem) { t.Logf("%+v", p) }})
	ok(t, err)
	if r.Leaks+r.Corruptions+r.CheckErrors > 0 {
		t.Fatalf("%+v", r)
	}
}

// keeper opens an image to change its snapshots, and closes it afterwards.
func keeper(t *testing.T, path string, do func(d block.Device, s formats.Snapshotter)) {
	t.Helper()
	f, err := file.Open(ctx, path, file.Options{Write: true, NoLock: true}) // peers that are started at the same time would inherit the lock
	ok(t, err)
	d, err := Open(ctx, f, formats.OpenOptions{Name: path, Write: true})
	ok(t, err)
	s, found := block.As[formats.Snapshotter](d)
	if !found {
		t.Fatal("it keeps no snapshots")
	}
	do(d, s)
	ok(t, d.Close())
}

// TestSnapshots makes, applies and deletes snapshots at random, by us and by qemu-img, with writes in between, and compares all states with a model.
func TestSnapshots(t *testing.T) {
	for i, options := range []string{"cluster_size=4k", "compat=0.10,cluster_size=512", "extended_l2=on,cluster_size=16k", "refcount_bits=64,cluster_size=1k", "compression_type=zstd"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(uint64(i), 1))
			path := filepath.Join(t.TempDir(), "image")
			create(t, path, options, "400k")
			m := model{t: t, r: r, path: path, disk: make([]byte, 400<<10), kept: map[string][]byte{}}
			qemuIO(t, path, "write -c -P 3 64k 64k")
			copy(m.disk[64<<10:], bytes.Repeat([]byte{3}, 64<<10))
			for range 14 {
				m.step()
			}
			for name, want := range m.kept {
				same(t, contents(t, view(t, path, name), r), want)
				same(t, rawOf(t, path, "-l", name), want)
			}
		})
	}
}

// model is what an image and its snapshots hold.
type model struct {
	t    *testing.T
	r    *rand.Rand
	path string
	disk []byte
	kept map[string][]byte
	made int
}

// step changes something, and compares.
func (m *model) step() {
	t := m.t
	t.Helper()
	off := m.r.Int64N(int64(len(m.disk)))
	n := 1 + m.r.Int64N(int64(len(m.disk))-off)
	theirs := m.r.IntN(2) == 0
	name := ""
	for name = range m.kept { // any
		break
	}
	switch what := m.r.IntN(7); {
	case what < 3 && !theirs:
		p := noise(m.r, int(n))
		keeper(t, m.path, func(d block.Device, _ formats.Snapshotter) { ok(t, d.Write(ctx, p, off, 0)) })
		copy(m.disk[off:], p)
	case what < 3:
		qemuIO(t, m.path, fmt.Sprintf("write -P 9 %d %d", off, n))
		copy(m.disk[off:], bytes.Repeat([]byte{9}, int(n)))
	case what < 5 || name == "":
		m.made++
		name = fmt.Sprint("s", m.made)
		if theirs {
			qemuImg(t, "snapshot", "-c", name, m.path)
		} else {
			keeper(t, m.path, func(_ block.Device, s formats.Snapshotter) { ok(t, s.CreateSnapshot(ctx, name, time.Unix(1e9, 5))) })
		}
		m.kept[name] = bytes.Clone(m.disk)
	case what == 5:
		if theirs {
			qemuImg(t, "snapshot", "-a", name, m.path)
		} else {
			keeper(t, m.path, func(_ block.Device, s formats.Snapshotter) { ok(t, s.ApplySnapshot(ctx, name)) })
		}
		m.disk = bytes.Clone(m.kept[name])
	default:
		if theirs {
			qemuImg(t, "snapshot", "-d", name, m.path)
		} else {
			keeper(t, m.path, func(_ block.Device, s formats.Snapshotter) { ok(t, s.DeleteSnapshot(ctx, name)) })
		}
		delete(m.kept, name)
	}
	sound(t, m.path)
	same(t, rawOf(t, m.path), m.disk)
	same(t, contents(t, view(t, m.path, ""), m.r), m.disk)
}

// view opens a copy of an image for reading, or of a snapshot where one is named.
func view(t *testing.T, path, snapshot string) block.Device {
	t.Helper()
	o := formats.OpenOptions{}
	if snapshot != "" {
		o.Values = map[string]string{"snapshot": snapshot}
	}
	d, err := Open(ctx, memoryOf(t, path), o)
	ok(t, err)
	return d
}

// TestSnapshotSizes: a snapshot remembers the size of the disk.
func TestSnapshotSizes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	create(t, path, "cluster_size=512", "100k")
	qemuIO(t, path, "write -P 1 0 100k")
	keeper(t, path, func(d block.Device, s formats.Snapshotter) {
		ok(t, s.CreateSnapshot(ctx, "small", time.Unix(1e9, 0)))
		ok(t, d.Resize(ctx, 4<<20))
		ok(t, d.Write(ctx, []byte{7}, 3<<20, 0))
		ok(t, s.CreateSnapshot(ctx, "large", time.Unix(1e9, 0)))
		ok(t, s.ApplySnapshot(ctx, "small"))
		if d.Size() != 100<<10 {
			t.Errorf("%d bytes", d.Size())
		}
	})
	sound(t, path)
	keeper(t, path, func(d block.Device, s formats.Snapshotter) {
		ok(t, s.ApplySnapshot(ctx, "large"))
		p := make([]byte, 1)
		if ok(t, d.Read(ctx, p, 3<<20)); p[0] != 7 || d.Size() != 4<<20 {
			t.Errorf("%d bytes, %d", d.Size(), p[0])
		}
	})
	sound(t, path)
}

// TestSnapshotNames: what is refused, and how snapshots are named.
func TestSnapshotNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	create(t, path, "", "1M")
	keeper(t, path, func(_ block.Device, s formats.Snapshotter) {
		for _, name := range []string{"2", "one", "one", "1"} {
			ok(t, s.CreateSnapshot(ctx, name, time.Unix(1e9, 5)))
		}
		for _, err := range []error{s.ApplySnapshot(ctx, "none"), s.DeleteSnapshot(ctx, "none")} {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v", err)
			}
		}
		for _, name := range []string{"", strings.Repeat("x", 256)} {
			if s.CreateSnapshot(ctx, name, time.Time{}) == nil {
				t.Errorf("a name of %d bytes", len(name))
			}
		}
		ok(t, s.DeleteSnapshot(ctx, "2")) // the ID wins
		ok(t, s.CreateSnapshot(ctx, "new", time.Unix(1e9, 5)))
		var got []string
		for _, x := range s.Snapshots() {
			got = append(got, x.ID+"="+x.Name)
			if !x.Date.Equal(time.Unix(1e9, 5)) || x.Size != 1<<20 {
				t.Errorf("%+v", x)
			}
		}
		if want := "1=2 3=one 4=1 5=new"; strings.Join(got, " ") != want {
			t.Errorf("%v, want %v", got, want)
		}
	})
	sound(t, path)
	if out := qemuImg(t, "snapshot", "-l", path); !regexp.MustCompile(`(?m)^5 +new +0 B 2001-09-09`).Match(out) {
		t.Errorf("qemu-img lists\n%s", out)
	}
	one := filepath.Join(t.TempDir(), "image")
	create(t, one, "refcount_bits=1", "1M")
	keeper(t, one, func(_ block.Device, s formats.Snapshotter) {
		if err := s.CreateSnapshot(ctx, "x", time.Time{}); err == nil {
			t.Error("refcounts of one bit count to two")
		}
	})
	sound(t, one)
}

// TestSnapshotCrash lets the power fail while snapshots are made, applied and deleted: nothing is lost, and a repair leaves nothing to complain of.
func TestSnapshotCrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	create(t, path, "cluster_size=512", "200k")
	qemuIO(t, path, "write -P 1 0 60k", "write -c -P 4 100k 4k")
	qemuImg(t, "snapshot", "-c", "old", path)
	qemuIO(t, path, "write -P 2 30k 60k")
	oldState, newState := rawOf(t, path, "-l", "old"), rawOf(t, path)
	start := memoryOf(t, path)
	for name, do := range map[string]func(s formats.Snapshotter) error{
		"create": func(s formats.Snapshotter) error { return s.CreateSnapshot(ctx, "new", time.Unix(1e9, 0)) },
		"apply":  func(s formats.Snapshotter) error { return s.ApplySnapshot(ctx, "old") },
		"delete": func(s formats.Snapshotter) error { return s.DeleteSnapshot(ctx, "old") },
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			rec := &writeLog{Filter: block.Filter{Device: start.Clone()}}
			d, err := Open(ctx, block.NoClose(rec), formats.OpenOptions{Write: true})
			ok(t, err)
			ok(t, do(d.(formats.Snapshotter)))
			ok(t, d.Close())
			disk := start.Clone()
			for _, epoch := range rec.epochs {
				for range 8 {
					crashed := disk.Clone()
					for _, w := range epoch {
						if r.IntN(2) == 0 {
							ok(t, crashed.Write(ctx, w.p, w.off, 0))
						}
					}
					survived(t, crashed, r, oldState, newState, name == "apply")
				}
				for _, w := range epoch {
					ok(t, disk.Write(ctx, w.p, w.off, 0))
				}
			}
			survived(t, disk, r, oldState, newState, name == "apply")
		})
	}
}

// survived repairs an image, and demands that the disk holds what it should, and the snapshots that there are.
func survived(t *testing.T, disk *block.Memory, r *rand.Rand, oldState, newState []byte, applied bool) {
	t.Helper()
	for range 2 { // as it is, and after a repair
		d, err := Open(ctx, block.NoClose(disk), formats.OpenOptions{})
		ok(t, err)
		got := contents(t, d, r)
		if !bytes.Equal(got, newState) && !(applied && bytes.Equal(got, oldState)) {
			t.Fatal("the disk has changed")
		}
		for _, s := range d.(formats.Snapshotter).Snapshots() {
			o := formats.OpenOptions{Values: map[string]string{"snapshot": s.ID}}
			shown, err := Open(ctx, block.NoClose(disk), o)
			ok(t, err)
			want := newState
			if s.Name == "old" {
				want = oldState
			}
			same(t, contents(t, shown, r), want)
		}
		_, err = check.Check(ctx, disk, formats.CheckOptions{Problem: func(p formats.Problem) {
			if p.Kind == formats.Corruption && p.Part == "cluster" {
				t.Errorf("counted too low: %+v", p)
			}
		}})
		ok(t, err)
		res, err := check.Check(ctx, disk, formats.CheckOptions{Repair: formats.RepairAll})
		if err != nil || res.Leaks+res.Corruptions+res.CheckErrors > 0 {
			t.Fatalf("%+v %v", res, err)
		}
	}
}

// writeLog remembers what is written between two flushes.
type writeLog struct {
	block.Filter
	epochs [][]loggedWrite
}

type loggedWrite struct {
	off int64
	p   []byte
}

func (l *writeLog) log(off int64, p []byte) {
	if len(l.epochs) == 0 {
		l.epochs = append(l.epochs, nil)
	}
	last := &l.epochs[len(l.epochs)-1]
	*last = append(*last, loggedWrite{off, bytes.Clone(p)})
}

func (l *writeLog) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	l.log(off, p)
	return l.Filter.Write(ctx, p, off, f)
}

func (l *writeLog) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	l.log(off, make([]byte, n))
	return l.Filter.Zero(ctx, off, n, f)
}

func (l *writeLog) Discard(ctx context.Context, off, n int64) error {
	l.log(off, make([]byte, n))
	return l.Filter.Discard(ctx, off, n)
}

func (l *writeLog) Flush(ctx context.Context) error {
	l.epochs = append(l.epochs, nil)
	return l.Filter.Flush(ctx)
}

// failing is a file of which the writes fail from some moment on.
type failing struct {
	block.Filter
	left int
}

func (f *failing) Write(ctx context.Context, p []byte, off int64, fl block.Flags) error {
	if f.left--; f.left < 0 {
		return errors.New("no more writes")
	}
	return f.Filter.Write(ctx, p, off, fl)
}

// TestSnapshotFails lets the writes fail after any number of them: no state is lost, nothing is counted too low, and a repair leaves nothing to complain of.
func TestSnapshotFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	create(t, path, "cluster_size=512", "100k")
	qemuIO(t, path, "write -P 1 0 60k")
	qemuImg(t, "snapshot", "-c", "old", path)
	qemuIO(t, path, "write -P 2 30k 40k")
	oldState, newState := rawOf(t, path, "-l", "old"), rawOf(t, path)
	start := memoryOf(t, path)
	for name, do := range map[string]func(s formats.Snapshotter) error{
		"create": func(s formats.Snapshotter) error { return s.CreateSnapshot(ctx, "new", time.Unix(1e9, 0)) },
		"apply":  func(s formats.Snapshotter) error { return s.ApplySnapshot(ctx, "old") },
		"delete": func(s formats.Snapshotter) error { return s.DeleteSnapshot(ctx, "old") },
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			for n := 0; ; n++ {
				disk := start.Clone()
				d, err := Open(ctx, block.NoClose(&failing{block.Filter{Device: disk}, n}), formats.OpenOptions{Write: true})
				ok(t, err)
				err = do(d.(formats.Snapshotter))
				d.Close()
				survived(t, disk, r, oldState, newState, name == "apply")
				if err == nil {
					break
				}
			}
		})
	}
}
