package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/internal/peers"
)

// loopDisk makes a disk of a file and returns its path. It skips the test where that is not allowed or the kernel cannot.
func loopDisk(t *testing.T, path string) string {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs root and loop devices:", err)
	}
	defer control.Close()
	back, err := os.OpenFile(path, os.O_RDWR, 0)
	ok(t, err)
	defer back.Close()
	for range 20 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Skip("no loop device is free:", err)
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		loop, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Skip("needs loop devices:", err)
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(back.Fd())})
		if errors.Is(err, unix.EBUSY) {
			loop.Close() // somebody else was faster
			continue
		}
		ok(t, err)
		t.Cleanup(func() {
			if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
				t.Error(err)
			}
			loop.Close()
		})
		return name
	}
	t.Skip("no loop device stays free")
	return ""
}

func TestDisk(t *testing.T) {
	const size = 8 << 20
	ctx := t.Context()
	path := newFile(t, t.TempDir(), bytes.Repeat([]byte("disk"), size/4))
	name := loopDisk(t, path)
	d := open(t, name, Options{Write: true})
	caps := d.Info().Caps
	if d.Size() != size || caps.Grow || caps.Resize || !caps.Write || d.Info().MinBlock != 1 {
		t.Fatalf("size %d, %+v", d.Size(), d.Info())
	}
	var outside *block.RangeError
	if err := d.Write(ctx, make([]byte, 10), size-5, 0); !errors.As(err, &outside) {
		t.Errorf("write past the end: %v", err)
	}
	if err := d.Zero(ctx, size-5, 10, 0); !errors.As(err, &outside) {
		t.Errorf("zero past the end: %v", err)
	}
	want(t, d.Resize(ctx, size), errors.ErrUnsupported)

	want(t, d.Zero(ctx, 513, 300, block.Fast), errors.ErrUnsupported)
	ok(t, d.Zero(ctx, 513, 300, 0))
	ok(t, d.Zero(ctx, 1000, 1<<20, block.FUA))
	ok(t, d.Zero(ctx, 3<<20+5, 1<<20, block.NoHole))
	ok(t, d.Write(ctx, []byte("written"), 3<<20+100, 0))
	ok(t, d.Discard(ctx, 4<<20+100, 1<<20))
	ok(t, d.Discard(ctx, 4<<20+100, 3))
	got := make([]byte, size)
	ok(t, d.Read(ctx, got, 0))
	expect := bytes.Repeat([]byte("disk"), size/4)
	clear(expect[513:813])
	clear(expect[1000 : 1000+1<<20])
	clear(expect[3<<20+5 : 4<<20+5])
	copy(expect[3<<20+100:], "written")
	copy(expect[4<<20+100:5<<20+100], got[4<<20+100:]) // undefined
	if !bytes.Equal(got, expect) {
		t.Error("content differs")
	}
	es, err := d.Extents(ctx, block.Map{}, 100, size-100, nil)
	if err != nil || len(es) != 1 || es[0].Flags != block.ExtData {
		t.Errorf("%v, %v", es, err)
	}

	for _, w := range [][]*way{d.ways.holes, d.ways.keeps} { // the kernel writes the zeros
		last := w[len(w)-1]
		ok(t, d.Write(ctx, []byte("gone"), 6<<20, 0))
		ok(t, last.try(ctx, d.f, 6<<20, 512))
		ok(t, d.Read(ctx, got[:4], 6<<20))
		if !last.slow || !block.IsZero(got[:4]) {
			t.Error("the last way does not zero")
		}
	}
}

func TestDiskConformance(t *testing.T) {
	const size = 1<<20 + 512
	path := newFile(t, t.TempDir(), make([]byte, size))
	name := loopDisk(t, path)
	blocktest.Run(t, blocktest.Config{
		New: func(t *testing.T) block.Device {
			d := open(t, name, Options{Write: true})
			ok(t, d.Zero(t.Context(), 0, size, 0))
			return d
		},
		Size: size,
		Ops:  60, // each flush waits for a disk
		Reopen: func(t *testing.T, d block.Device) block.Device {
			ok(t, d.Close())
			return open(t, name, Options{Write: true})
		},
		Pins: true,
	})
}

func TestDiskBusy(t *testing.T) {
	ctx := t.Context()
	path := newFile(t, t.TempDir(), make([]byte, 8<<20))
	name := loopDisk(t, path)

	_, err := Open(ctx, path, Options{Write: true})
	want(t, err, block.ErrBusy)
	_, err = Create(path, CreateOptions{})
	want(t, err, block.ErrBusy)
	ok(t, open(t, path, Options{Write: true, AllowBusy: true}).Close())

	d := open(t, name, Options{Write: true, NoLock: true})
	_, err = Open(ctx, name, Options{Write: true, NoLock: true})
	want(t, err, block.ErrBusy)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	ok(t, err)
	defer f.Close()
	_, err = New(f, Options{Write: true})
	want(t, err, block.ErrBusy)
	ok(t, d.Close())
	d, err = New(f, Options{Write: true})
	ok(t, err)
	if d.File() == f || d.File().Name() != name {
		t.Error("the disk was not claimed")
	}
	_, err = Open(ctx, name, Options{Write: true, NoLock: true})
	want(t, err, block.ErrBusy)
	ok(t, d.Close())

	peers.Run(t, "mke2fs", "-q", "-F", name)
	at := t.TempDir() + "/mount point"
	ok(t, os.Mkdir(at, 0o755))
	if err := unix.Mount(name, at, "ext2", 0, ""); errors.Is(err, syscall.ENODEV) {
		ok(t, unix.Mount(name, at, "ext4", 0, ""))
	} else {
		ok(t, err)
	}
	_, err = Open(ctx, name, Options{Write: true})
	mounted := err
	ok(t, open(t, name, Options{}).Close())
	ok(t, unix.Unmount(at, 0))
	want(t, mounted, block.ErrBusy)
	if !strings.Contains(mounted.Error(), at) {
		t.Errorf("does not say where it is mounted: %v", mounted)
	}
}

func TestDiskFull(t *testing.T) {
	const limit = 1 << 20
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d", limit)); err != nil {
		t.Skip("needs root to mount a small file system:", err)
	}
	t.Cleanup(func() { ok(t, unix.Unmount(dir, 0)) })
	d := open(t, newFile(t, dir, []byte("start")), Options{Write: true})
	fillUp(t, d, limit, syscall.ENOSPC)
	ok(t, d.Close())
}
