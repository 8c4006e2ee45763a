package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgtool/imgtool/block"
)

// space returns how many bytes a file takes up.
func space(t *testing.T, d *Device) int64 {
	t.Helper()
	info, err := d.File().Stat()
	ok(t, err)
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// TestCutOffIsNoHole: what somebody else has cut off is not zero, but an error.
func TestCutOffIsNoHole(t *testing.T) {
	for _, dir := range folders(t) {
		path := newFile(t, dir, make([]byte, 1<<20))
		d := open(t, path, Options{})
		ok(t, os.Truncate(path, 64<<10))
		for off := int64(0); off < 1<<20; off += 32 << 10 {
			es, err := d.Extents(t.Context(), block.Map{}, off, 1<<20-off, nil)
			ok(t, err)
			last := es[len(es)-1]
			if last.Flags != block.ExtData || last.Off > max(off, 64<<10) || last.Off+last.Len != 1<<20 {
				t.Errorf("at %d: %+v", off, es)
			}
		}
		if err := d.Read(t.Context(), make([]byte, 4096), 512<<10); err == nil {
			t.Error("it can be read")
		}
	}
}

func TestHoles(t *testing.T) {
	const mib = 1 << 20
	for _, dir := range folders(t) {
		ctx := t.Context()
		d := open(t, newFile(t, dir, nil), Options{Write: true})
		ok(t, d.Resize(ctx, 1<<40))
		if got := space(t, d); got > 64<<10 {
			t.Fatalf("%s: an empty file of 1 TiB takes up %d bytes", dir, got)
		}
		data := bytes.Repeat([]byte("data"), mib)
		ok(t, d.Write(ctx, data, 8*mib, block.FUA))
		full := space(t, d)
		if full < 4*mib {
			t.Fatalf("%s: 4 MiB take up %d bytes", dir, full)
		}
		wantExtents(t, d, 0, 16*mib, []int64{8, 4, 4})
		ok(t, d.Zero(ctx, 9*mib, mib, block.Fast))
		ok(t, d.Discard(ctx, 10*mib, mib))
		if got := space(t, d); got > full-2*mib {
			t.Errorf("%s: with holes it takes up %d bytes of %d", dir, got, full)
		}
		wantExtents(t, d, 0, 16*mib, []int64{8, 1, 2, 1, 4})
		wantExtents(t, d, 9*mib+1, 5, nil)

		holes := space(t, d)
		ok(t, d.Zero(ctx, 9*mib, 2*mib, block.NoHole))
		ok(t, d.Zero(ctx, 11*mib, mib, block.NoHole))
		if got := space(t, d); got < holes+2*mib {
			t.Errorf("%s: with NoHole it takes up %d bytes, before %d", dir, got, holes)
		}
		got := make([]byte, 4*mib)
		ok(t, d.Read(ctx, got, 8*mib))
		if !bytes.Equal(got[:mib], data[:mib]) || !block.IsZero(got[mib:]) {
			t.Errorf("%s: zeroing changed the wrong bytes", dir)
		}

		ok(t, d.Resize(ctx, 0))
		ok(t, d.Zero(ctx, 100, 5*mib, block.NoHole|block.Fast))
		if got := space(t, d); d.Size() != 100+5*mib || got < 5*mib {
			t.Errorf("%s: grown by NoHole to %d bytes it takes up %d", dir, d.Size(), got)
		}
	}
}

// wantExtents fails the test unless the extents are a hole, data, a hole ... of these lengths in MiB. None stands for one hole.
func wantExtents(t *testing.T, d *Device, off, n int64, mib []int64) {
	t.Helper()
	es, err := d.Extents(t.Context(), block.Map{}, off, n, []block.Extent{{Off: -7, Len: 3}})
	ok(t, err)
	if es[0] != (block.Extent{Off: -7, Len: 3}) {
		t.Fatal("the caller's extents were changed")
	}
	es = es[1:]
	want := []block.Extent{}
	if mib == nil {
		want = append(want, block.Extent{Off: off, Len: n, Flags: block.ExtZero, Node: d.name, NodeOff: off})
	}
	for i, m := range mib {
		f := block.ExtZero
		if i%2 == 1 {
			f = block.ExtData
		}
		want = append(want, block.Extent{Off: off, Len: m << 20, Flags: f, Node: d.name, NodeOff: off})
		off += m << 20
	}
	if fmt.Sprint(es) != fmt.Sprint(want) {
		t.Errorf("extents %v, want %v", es, want)
	}
}

// TestEmulated takes from a file what the operating system can do.
func TestEmulated(t *testing.T) {
	ctx := t.Context()
	refuse := func() *way {
		calls := 0
		return &way{do: func(*os.File, int64, int64) error {
			if calls++; calls > 1 {
				t.Error("asked again after it was refused")
			}
			return &fs.PathError{Op: "zero", Err: syscall.EOPNOTSUPP}
		}}
	}
	d := open(t, newFile(t, t.TempDir(), bytes.Repeat([]byte("x"), 1<<20)), Options{Write: true})
	d.oneRun.Store(true)
	d.ways = ways{holes: []*way{refuse(), refuse()}, keeps: []*way{refuse()}, discard: refuse()}
	want(t, d.Zero(ctx, 0, 1000, block.Fast), errors.ErrUnsupported)
	want(t, d.Zero(ctx, 1000, 2<<20, block.Fast), errors.ErrUnsupported)
	want(t, d.Zero(ctx, 1000, 2<<20, block.Fast|block.NoHole), errors.ErrUnsupported)
	p := make([]byte, 1<<20)
	ok(t, d.Read(ctx, p, 0))
	if d.Size() != 1<<20 || bytes.IndexByte(p, 0) >= 0 {
		t.Fatal("a Zero that returned ErrUnsupported changed the file")
	}
	ok(t, d.Discard(ctx, 0, 1000))
	ok(t, d.Discard(ctx, 0, 1000))
	ok(t, d.Zero(ctx, 10, 1000, 0))
	ok(t, d.Zero(ctx, 500, 600000, block.NoHole|block.FUA))
	ok(t, d.Read(ctx, p, 0))
	if p[9] != 'x' || !block.IsZero(p[10:600500]) || p[600500] != 'x' {
		t.Fatal("zeros were written in the wrong place")
	}
	es, err := d.Extents(ctx, block.Map{}, 5, 1<<20-5, nil)
	ok(t, err)
	if len(es) != 1 || es[0].Off != 5 || es[0].Len != 1<<20-5 || es[0].Flags != block.ExtData {
		t.Fatalf("%v", es)
	}
}

// TestForgets: a run of data that Extents remembers is forgotten when a hole is made in it.
func TestForgets(t *testing.T) {
	ctx := t.Context()
	d := open(t, newFile(t, t.TempDir(), bytes.Repeat([]byte("x"), 8<<20)), Options{Write: true})
	first := func(off int64) block.ExtentFlags {
		es, err := d.Extents(ctx, block.Map{}, off, 4096, nil)
		ok(t, err)
		return es[0].Flags
	}
	if first(4<<20) != block.ExtData || first(5<<20) != block.ExtData {
		t.Fatal("no data")
	}
	ok(t, d.Zero(ctx, 5<<20, 1<<20, 0))
	if first(5<<20) != block.ExtZero || first(6<<20) != block.ExtData {
		t.Error("after Zero")
	}
	ok(t, d.Discard(ctx, 6<<20, 1<<20))
	if first(6<<20) != block.ExtZero || first(7<<20) != block.ExtData {
		t.Error("after Discard")
	}
	ok(t, d.Resize(ctx, 7<<20))
	ok(t, d.Resize(ctx, 8<<20))
	if first(7<<20) != block.ExtZero {
		t.Error("after Resize")
	}
}

func TestFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	ok(t, unix.Mkfifo(path, 0o600))
	for _, o := range []Options{{}, {Write: true}} {
		_, err := Open(t.Context(), path, o)
		want(t, err, ErrNotSeekable)
	}
	_, err := Create(path, CreateOptions{})
	want(t, err, fs.ErrExist)
}

func TestFlushStaysFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	p := begun(t, path, CreateOptions{Size: 100})
	ok(t, p.Device().File().Close()) // a stand-in for a disk that fails
	err := p.Device().Flush(t.Context())
	if err == nil || p.Device().Flush(t.Context()) != err {
		t.Fatalf("%v", err)
	}
	p.Device().f, err = os.OpenFile(p.temp, os.O_RDWR, 0)
	ok(t, err)
	if p.Device().Flush(t.Context()) == nil || p.Commit(true) == nil {
		t.Fatal("forgot that a flush had failed")
	}
}

func TestCreateMode(t *testing.T) {
	dir := t.TempDir()
	before := unix.Umask(0o027)
	defer unix.Umask(before)
	path := filepath.Join(dir, "x")
	ok(t, begun(t, path, CreateOptions{}).Commit(false))
	mode := func(name string) fs.FileMode {
		info, err := os.Stat(name)
		ok(t, err)
		return info.Mode()
	}
	if got := mode(path); got != 0o640 {
		t.Errorf("a new file has mode %v", got)
	}
	ok(t, os.Chmod(path, 0o666))
	p := begun(t, path, CreateOptions{})
	if got := mode(p.temp); got != 0o600 {
		t.Errorf("the temporary file has mode %v", got)
	}
	ok(t, p.Commit(true))
	if got := mode(path); got != 0o666 {
		t.Errorf("after Commit the mode is %v", got)
	}

	link := filepath.Join(dir, "link")
	ok(t, os.Symlink("x", link))
	p = begun(t, link, CreateOptions{Size: 77})
	ok(t, p.Commit(false))
	info, err := os.Stat(path)
	ok(t, err)
	if target, err := os.Readlink(link); err != nil || target != "x" || info.Size() != 77 {
		t.Errorf("through a link to %q (%v) the file got size %d", target, err, info.Size())
	}
	ok(t, os.Remove(path))
	ok(t, os.MkdirAll(filepath.Join(dir, "real", "deep"), 0o777))
	ok(t, os.Symlink(filepath.Join("real", "deep"), filepath.Join(dir, "sub")))
	for _, c := range []struct{ to, made string }{{"x", "x"}, {"other", "x"}, {"sub/../y", "real/y"}, {filepath.Join(dir, "z"), "z"}} {
		ok(t, os.Remove(link))
		if c.to == "other" {
			ok(t, os.Symlink("x", filepath.Join(dir, c.to)))
		}
		ok(t, os.Symlink(c.to, link))
		ok(t, begun(t, link, CreateOptions{}).Commit(false))
		ok(t, os.Remove(filepath.Join(dir, c.made)))
	}
	for to, cause := range map[string]error{"absent/x": fs.ErrNotExist, "link": fs.ErrInvalid} {
		ok(t, os.Remove(link))
		ok(t, os.Symlink(to, link))
		_, err = Create(link, CreateOptions{})
		want(t, err, cause)
	}
}

func TestCopyRange(t *testing.T) {
	for _, dir := range folders(t) {
		data := bytes.Repeat([]byte("0123456789"), 100000)
		src, err := os.Open(newFile(t, dir, data))
		ok(t, err)
		defer src.Close()
		dst, err := os.OpenFile(newFile(t, dir, []byte("abcdef")), os.O_RDWR, 0)
		ok(t, err)
		defer dst.Close()
		n, err := CopyRange(dst, 3, src, 10, 900000)
		if errors.Is(err, errors.ErrUnsupported) {
			continue
		}
		ok(t, err)
		got, err := os.ReadFile(dst.Name())
		ok(t, err)
		if n != 900000 || string(got) != "abc"+string(data[10:900010]) {
			t.Fatalf("%s: copied %d bytes, and not the right ones", dir, n)
		}
		n, err = CopyRange(dst, 0, src, 999000, 5000)
		if n != 1000 || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: past the end: %d, %v", dir, n, err)
		}
		_, err = CopyRange(dst, 0, dst, 1, 10) // overlaps
		want(t, err, errors.ErrUnsupported)

		err = Reflink(dst, src)
		if errors.Is(err, errors.ErrUnsupported) {
			continue
		}
		ok(t, err)
		got, err = os.ReadFile(dst.Name())
		ok(t, err)
		if !bytes.Equal(got, data) {
			t.Errorf("%s: a reflink differs", dir)
		}
	}
}

// TestLimit runs itself with a limit on the size of files, which stands for a full disk.
func TestLimit(t *testing.T) {
	const limit = 1 << 20
	if os.Getenv("FILE_TEST_LIMIT") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestLimit$")
		cmd.Env = append(os.Environ(), "FILE_TEST_LIMIT=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(unix.SIGXFSZ)
	ok(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limit, Max: limit}))
	d := open(t, newFile(t, t.TempDir(), []byte("start")), Options{Write: true})
	fillUp(t, d, limit, syscall.EFBIG)
}

// fillUp tries to write, zero and resize past a limit, and fails the test unless that gives the error and leaves the device in order.
func fillUp(t *testing.T, d *Device, limit int64, errno error) {
	t.Helper()
	ctx := context.Background()
	p := make([]byte, limit)
	size := d.Size()
	want(t, d.Zero(ctx, size, 2*limit, block.NoHole), errno)
	if d.Size() != size {
		t.Errorf("Zero failed and left size %d, before %d", d.Size(), size)
	}
	want(t, d.Write(ctx, p, limit/2, 0), errno)
	info, err := d.File().Stat()
	ok(t, err)
	if info.Size() != d.Size() {
		t.Errorf("the file has %d bytes, the device %d", info.Size(), d.Size())
	}
	start := make([]byte, 5)
	ok(t, d.Read(ctx, start, 0))
	if string(start) != "start" {
		t.Errorf("the file begins with %q", start)
	}
}
