package fusefs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
)

// flushes counts calls of Flush.
type flushes struct {
	block.Filter
	n atomic.Int64
}

func (d *flushes) Flush(ctx context.Context) error {
	d.n.Add(1)
	return d.Device.Flush(ctx)
}

// TestFlush counts what is made durable: fsync, and writes to a file that was opened with O_SYNC; closing does not.
func TestFlush(t *testing.T) {
	dev := &flushes{Filter: block.Filter{Device: block.NewMemory(1 << 20)}}
	m := mounted(t, dev, t.TempDir(), Options{})
	step := func(name string, want int64, f func() error) {
		t.Helper()
		before := dev.n.Load()
		check(t, f())
		if got := dev.n.Load() - before; got != want {
			t.Errorf("%s: %d flushes, want %d", name, got, want)
		}
	}
	f, err := os.OpenFile(m.Path(), os.O_RDWR, 0)
	check(t, err)
	write := func() error { _, err := f.WriteAt([]byte("x"), 5); return err }
	step("write", 0, write)
	step("fsync", 1, f.Sync)
	step("fdatasync", 1, func() error { return unix.Fdatasync(int(f.Fd())) })
	step("close", 0, f.Close)
	f, err = os.OpenFile(m.Path(), os.O_RDWR|os.O_SYNC, 0)
	check(t, err)
	step("write with O_SYNC", 1, write)
	check(t, f.Close())
}

// TestEnd reads and writes around the end of the file.
func TestEnd(t *testing.T) {
	const size = 1<<20 + 100
	m := mounted(t, block.NewMemory(size), t.TempDir(), Options{})
	f := open(t, m, os.O_RDWR)
	p := pattern(300, 9)
	if n, err := unix.Pwrite(int(f.Fd()), p, size-200); n != 200 || err != nil {
		t.Errorf("a write across the end stored %d bytes: %v", n, err)
	}
	for _, off := range []int64{size, 1 << 40} {
		if n, err := unix.Pwrite(int(f.Fd()), p, off); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("a write at byte %d stored %d bytes: %v", off, n, err)
		}
	}
	got := make([]byte, 300)
	if n, err := f.ReadAt(got, size-200); n != 200 || err != io.EOF || !bytes.Equal(got[:200], p[:200]) {
		t.Errorf("a read across the end gave %d bytes: %v", n, err)
	}
	check(t, f.Truncate(size))
	for _, n := range []int64{0, size - 1, size + 1} {
		if err := f.Truncate(n); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("truncated to %d bytes: %v", n, err)
		}
	}
	if st, err := f.Stat(); err != nil || st.Size() != size {
		t.Errorf("the file is %d bytes long: %v", st.Size(), err)
	}
	if err := os.Chmod(m.Path(), 0o777); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("chmod: %v", err)
	}
}

// TestFallocate tries every mode that programs use.
func TestFallocate(t *testing.T) {
	const (
		size  = 8 << 20
		keep  = unix.FALLOC_FL_KEEP_SIZE
		punch = unix.FALLOC_FL_PUNCH_HOLE
		zero  = unix.FALLOC_FL_ZERO_RANGE
	)
	rec := blocktest.NewRecorder(block.NewMemory(size))
	m := mounted(t, rec, t.TempDir(), Options{})
	f := open(t, m, os.O_RDWR)
	want := pattern(size, 5)
	_, err := f.WriteAt(want, 0)
	check(t, err)
	for _, c := range []struct {
		mode   uint32
		off, n int64
		err    error
		flags  block.Flags
	}{
		{punch | keep, 1 << 20, 1 << 20, nil, 0},
		{punch | keep, 3<<20 + 5, 77, nil, 0},
		{punch | keep, size - 5, 1 << 20, nil, 0},
		{zero | keep, 5<<20 + 1, 1 << 20, nil, block.NoHole},
		{zero, 7 << 20, 4096, nil, block.NoHole},
		{zero, size - 1, 2, unix.ENOSPC, 0},
		{keep, 0, 1, unix.EOPNOTSUPP, 0},
		{0, 0, size, unix.EOPNOTSUPP, 0},
		{unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096, unix.EOPNOTSUPP, 0},
	} {
		before := len(rec.Log().Entries())
		if err := unix.Fallocate(int(f.Fd()), c.mode, c.off, c.n); !errors.Is(err, c.err) {
			t.Errorf("mode %#x: %v, want %v", c.mode, err, c.err)
		}
		list := rec.Log().Entries()[before:]
		if c.err != nil {
			if len(list) != 0 {
				t.Errorf("mode %#x changed the device: %v", c.mode, list)
			}
			continue
		}
		clear(want[c.off:min(c.off+c.n, size)])
		if len(list) != 1 || list[0].Op != blocktest.OpZero || list[0].Flags != c.flags {
			t.Errorf("mode %#x: the device was asked for %v", c.mode, list)
		}
	}
	got := make([]byte, size)
	_, err = f.ReadAt(got, 0)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the file holds something else")
	}
	check(t, rec.Read(t.Context(), got, 0))
	if !bytes.Equal(got, want) {
		t.Error("the device holds something else")
	}
}

// TestSeek finds data and holes, as cp does.
func TestSeek(t *testing.T) {
	const size = 3<<30 + 4096
	dev := block.NewMemory(size)
	m := mounted(t, dev, t.TempDir(), Options{})
	f := open(t, m, os.O_RDWR)
	for _, off := range []int64{1 << 20, 2 << 30, size - 4096} {
		_, err := f.WriteAt(bytes.Repeat([]byte{1}, 4096), off)
		check(t, err)
	}
	unit := dev.Info().PreferredBlock // the device allocates more than was written
	for _, c := range []struct {
		whence    int
		off, want int64
	}{
		{unix.SEEK_HOLE, 0, 0}, {unix.SEEK_DATA, 0, 1 << 20}, {unix.SEEK_DATA, 1<<20 + 1, 1<<20 + 1}, {unix.SEEK_HOLE, 1<<20 + 1, 1<<20 + unit},
		{unix.SEEK_DATA, 1 << 30, 2 << 30}, {unix.SEEK_HOLE, 2 << 30, 2<<30 + unit}, {unix.SEEK_HOLE, size - 4096, size},
		{unix.SEEK_DATA, 2<<30 + unit, 3 << 30},
	} {
		got, err := f.Seek(c.off, c.whence)
		if c.whence == unix.SEEK_DATA && c.want == 3<<30 && got > c.want { // it may be exact
			got = c.want
		}
		if err != nil || got != c.want {
			t.Errorf("whence %d from %d: %d, want %d: %v", c.whence, c.off, got, c.want, err)
		}
	}
	if _, err := f.Seek(size, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
		t.Errorf("data at the end: %v", err)
	}
	check(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<30, size-1<<30))
	if _, err := f.Seek(1<<30, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
		t.Errorf("data behind the last: %v", err)
	}
}

// TestSpace looks at the space that stat tells.
func TestSpace(t *testing.T) {
	dev := block.NewMemory(1 << 30)
	check(t, dev.Write(t.Context(), bytes.Repeat([]byte{1}, 1<<20), 0, 0))
	tr := newTree(t.Context(), dev, Options{}, nil)
	if got := tr.blocks() * 512; got != 1<<20 {
		t.Errorf("%d bytes are occupied, want %d", got, 1<<20)
	}
	check(t, dev.Write(t.Context(), bytes.Repeat([]byte{1}, 1<<20), 1<<29, 0))
	tr.touched()
	tr.space.next = tr.made
	if got := tr.blocks() * 512; got != 2<<20 {
		t.Errorf("%d bytes are occupied after a write, want %d", got, 2<<20)
	}
}

// TestErrors looks at what programs are told of the errors of a device.
func TestErrors(t *testing.T) {
	dev := blocktest.NewFaulty(block.NewMemory(1 << 20))
	m := mounted(t, dev, t.TempDir(), Options{})
	f := open(t, m, os.O_RDWR|unix.O_DIRECT)
	p := make([]byte, 8192)
	p = p[4096-addressOf(p)%4096:][:4096]
	for _, c := range []struct {
		err  error
		want unix.Errno
	}{
		{errors.New("whatever"), unix.EIO}, {block.ErrReadOnly, unix.EROFS}, {unix.ENOSPC, unix.ENOSPC}, {errors.ErrUnsupported, unix.EOPNOTSUPP},
		{&block.RangeError{}, unix.EINVAL}, {fs.ErrPermission, unix.EPERM}, {block.Corrupt("gz", "header", 0, "x"), unix.EIO}, {os.ErrClosed, unix.EIO},
		{context.Canceled, unix.EIO}, {unix.ENOMEM, unix.ENOMEM},
	} {
		dev.Plan(blocktest.Fault{Ops: blocktest.OpAny, Err: c.err})
		_, read := f.ReadAt(p, 0)
		_, write := f.WriteAt(p, 0)
		_, seek := f.Seek(0, unix.SEEK_DATA)
		fsync := unix.Fsync(int(f.Fd()))
		punch := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
		for name, got := range map[string]error{"read": read, "write": write, "fsync": fsync, "punch": punch, "seek": seek} {
			if name == "seek" && c.err == errors.ErrUnsupported {
				if got != nil { // a device that does not know where its holes are
					t.Errorf("seek on a device without extents: %v", got)
				}
			} else if !errors.Is(got, c.want) {
				t.Errorf("%s with %v: %v, want %v", name, c.err, got, c.want)
			}
		}
	}
	dev.Plan()
	_, err := f.ReadAt(p, 0)
	check(t, err)
}

// randomFile names, in the environment of a process that TestRandom starts, the file on which it is to do random things. A process that maps a file
// which it serves itself could wait for itself.
const randomFile = "IMGTOOL_FUSEFS_RANDOM"

// TestRandom does random things to the file, through several handles, O_DIRECT and a mapping, and compares each read with a copy in memory.
func TestRandom(t *testing.T) {
	if name := os.Getenv(randomFile); name != "" {
		randomly(t, name)
		return
	}
	dev := block.NewMemory(4<<20 + 512)
	m := mounted(t, dev, t.TempDir(), Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestRandom$")
	cmd.Env = append(os.Environ(), randomFile+"="+m.Path())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p, sum := make([]byte, dev.Size()), make([]byte, 4)
	check(t, dev.Read(t.Context(), p, 0))
	if copy(sum, p[len(p)-4:]); binary.LittleEndian.Uint32(sum) != crc32.ChecksumIEEE(p[:len(p)-4]) {
		t.Error("the device holds something else than the file")
	}
}

// randomly leaves the checksum of the file in its last bytes.
func randomly(t *testing.T, name string) {
	var files []*os.File
	for _, flag := range []int{0, 0, unix.O_DIRECT} {
		f, err := os.OpenFile(name, os.O_RDWR|flag, 0)
		check(t, err)
		defer f.Close()
		files = append(files, f)
	}
	st, err := files[0].Stat()
	check(t, err)
	size := st.Size()
	mapped, err := unix.Mmap(int(files[0].Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(t, err)
	defer unix.Munmap(mapped)
	buf := make([]byte, 1<<20+4096)
	buf = buf[(4096-addressOf(buf)%4096)%4096:]
	want := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 3000 {
		off, n := r.Int64N(size), int64(1)<<r.IntN(20)
		n = min(n+r.Int64N(n), size-off, 1<<20)
		f := files[r.IntN(len(files))]
		if f == files[2] {
			off = off &^ 511
			n = min(max(n&^511, 512), size-off)
		}
		p := buf[:n]
		switch r.IntN(7) {
		case 0, 1:
			copy(p, pattern(int(n), byte(i)))
			_, err = f.WriteAt(p, off)
			copy(want[off:], p)
		case 2:
			copy(mapped[off:off+n], pattern(int(n), byte(i)))
			copy(want[off:], mapped[off:off+n])
		case 3:
			modes := []uint32{unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE}
			err = unix.Fallocate(int(f.Fd()), modes[i%2]|unix.FALLOC_FL_KEEP_SIZE, off, n)
			clear(want[off : off+n])
		case 4:
			if !bytes.Equal(mapped[off:off+n], want[off:off+n]) {
				t.Fatalf("step %d: the mapping differs in %d bytes from %d", i, n, off)
			}
		default:
			_, err = f.ReadAt(p, off)
			if err == nil && !bytes.Equal(p, want[off:off+n]) {
				t.Fatalf("step %d: the file differs in %d bytes from %d", i, n, off)
			}
		}
		if err != nil {
			t.Fatalf("step %d, %d bytes from %d: %v", i, n, off, err)
		}
	}
	binary.LittleEndian.PutUint32(mapped[size-4:], crc32.ChecksumIEEE(want[:size-4]))
	check(t, unix.Msync(mapped, unix.MS_SYNC))
}

// TestParallel writes and reads from many goroutines, each in a part of its own.
func TestParallel(t *testing.T) {
	const part = 256 << 10
	m := mounted(t, block.NewMemory(16*part), t.TempDir(), Options{})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			f, err := os.OpenFile(m.Path(), os.O_RDWR, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			got := make([]byte, part)
			for round := range 5 {
				want := pattern(part, byte(i*8+round))
				_, err := f.WriteAt(want, int64(i)*part)
				_, err2 := f.ReadAt(got, int64(i)*part)
				if err = errors.Join(err, err2); err != nil || !bytes.Equal(got, want) {
					t.Errorf("part %d, round %d: %v", i, round, err)
				}
			}
		})
	}
	wg.Wait()
}

// addressOf returns where p lies in memory: O_DIRECT wants it aligned.
func addressOf(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }
