package qcow2

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/source/file"
)

// sample returns the content of a disk with data of all kinds in it: noise, text, zeros, and nothing.
func sample(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for off := 0; off < n; {
		k := min(n-off, 1+r.IntN(300<<10))
		switch r.IntN(4) {
		case 0:
			copy(p[off:], noise(r, k))
		case 1, 2:
			copy(p[off:], text(r, k))
		}
		off += k
	}
	return p
}

// TestRead reads images of every kind that qemu-img writes.
func TestRead(t *testing.T) {
	dir := memoryDir(t)
	r := rand.New(rand.NewPCG(1, 1))
	const size = 3<<20 + 512*77
	want := sample(r, size)
	raw := filepath.Join(dir, "raw")
	ok(t, os.WriteFile(raw, want, 0o666))
	cases := []struct {
		name, options string
		compress      bool
	}{
		{"v2", "compat=0.10", false},
		{"v2 packed", "compat=0.10", true},
		{"512", "cluster_size=512", false},
		{"512 packed", "cluster_size=512", true},
		{"4k packed", "cluster_size=4k", true},
		{"plain", "", false},
		{"zlib", "", true},
		{"zstd", "compression_type=zstd", true},
		{"2M", "cluster_size=2M", false},
		{"2M zlib", "cluster_size=2M", true},
		{"2M zstd", "cluster_size=2M,compression_type=zstd", true},
		{"subclusters", "extended_l2=on", false},
		{"subclusters packed", "extended_l2=on", true},
		{"subclusters 16k", "extended_l2=on,cluster_size=16k", false},
		{"refcounts 1", "refcount_bits=1", false},
		{"refcounts 64", "refcount_bits=64", true},
		{"lazy", "lazy_refcounts=on", false},
		{"data file", "data_file=" + filepath.Join(dir, "data"), false},
		{"raw data file", "data_file=" + filepath.Join(dir, "rawdata") + ",data_file_raw=on", false},
		{"metadata", "preallocation=metadata", false},
		{"subclusters metadata", "preallocation=metadata,extended_l2=on", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, "image")
			args := []string{"convert", "-f", "raw", "-O", Name}
			if c.options != "" {
				args = append(args, "-o", c.options)
			}
			if c.compress {
				args = append(args, "-c")
			}
			qemuImg(t, append(args, raw, path)...)
			d := openPath(t, path, false)
			same(t, contents(t, d, r), want)
			whole := make([]byte, size)
			ok(t, d.Read(ctx, whole, 0))
			same(t, whole, want)
			compareMap(t, d, path)
		})
	}
}

// compareMap compares the extents of an image with what qemu-img says of it.
func compareMap(t testing.TB, d block.Device, path string) {
	t.Helper()
	var list []struct {
		Start, Length       int64
		Depth               int
		Present, Zero, Data bool
		Offset              *int64
	}
	ok(t, json.Unmarshal(qemuImg(t, "map", "--output=json", path), &list))
	var all []block.Extent
	for off := int64(0); off < d.Size(); off = all[len(all)-1].End() {
		var err error
		all, err = d.Extents(ctx, block.Map{}, off, d.Size()-off, all)
		ok(t, err)
	}
	covered := 0
	for _, m := range list {
		for _, e := range all {
			e, ok := e.Clip(m.Start, m.Length)
			if !ok {
				continue
			}
			covered += int(e.Len)
			what := fmt.Sprintf("%+v, and qemu-img says %+v", e, m)
			if e.Depth != m.Depth || (e.Flags&block.ExtAlloc != 0) != m.Present {
				t.Fatal(what)
			}
			// Of clusters with a place, qemu-img asks the file system whether it is a hole.
			if e.Flags&block.ExtZero != 0 && !m.Zero || e.Flags&block.ExtZero == 0 && !m.Data {
				t.Fatal(what)
			}
			if e.Node != "" && (m.Offset == nil || *m.Offset+e.Off-m.Start != e.NodeOff) {
				t.Fatal(what)
			}
		}
	}
	if int64(covered) != d.Size() {
		t.Fatalf("%d bytes of %d are covered", covered, d.Size())
	}
}

// TestChain reads a chain of images of several sizes, with zeros that hide data.
func TestChain(t *testing.T) {
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(2, 2))
	in := func(name string) string { return filepath.Join(dir, name) }
	base := noise(r, 1<<20)
	ok(t, os.WriteFile(in("base.raw"), base, 0o666))
	create(t, in("a"), "cluster_size=4k", "1500k", "-b", "base.raw", "-F", "raw")
	qemuIO(t, in("a"), "write -P 1 10k 50k", "write -z 100k 64k", "write -P 2 1100k 30k")
	create(t, in("b"), "extended_l2=on", "1200k", "-b", "a", "-F", Name)
	qemuIO(t, in("b"), "write -P 3 6k 2k", "write -z 128k 6k", "write -P 4 500k 64k", "discard 500k 32k")
	create(t, in("c"), "compat=0.10", "3M", "-b", "b", "-F", Name)
	qemuIO(t, in("c"), "write -P 5 1M 100k", "write -c -P 6 2M 64k")
	d := openPath(t, in("c"), false)
	same(t, contents(t, d, r), rawOf(t, in("c")))
	compareMap(t, d, in("c"))
}

func TestSnapshotView(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	create(t, path, "", "1M")
	qemuIO(t, path, "write -P 1 0 200k")
	qemuImg(t, "snapshot", "-c", "first", path)
	qemuIO(t, path, "write -P 2 100k 200k")
	qemuImg(t, "resize", "-q", path, "2M")
	qemuImg(t, "snapshot", "-c", "second", path)
	qemuIO(t, path, "write -P 3 0 300k")
	r := rand.New(rand.NewPCG(3, 3))
	for _, name := range []string{"first", "2"} {
		d := openPath(t, path, false, "snapshot="+name)
		want := rawOf(t, path, "-l", name) // with the size that the image has now
		if name == "first" {
			want = want[:1<<20]
		}
		same(t, contents(t, d, r), want)
	}
	same(t, contents(t, openPath(t, path, false), r), rawOf(t, path))
}

// TestHuge asks for the map of images that are nearly empty.
func TestHuge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	create(t, path, "cluster_size=2M", "64T")
	qemuIO(t, path, "write -P 1 40T 64k")
	d := openPath(t, path, false)
	all, err := d.Extents(ctx, block.Map{}, 0, d.Size(), nil)
	ok(t, err)
	if len(all) != 3 || all[1].Off != 40<<40 || all[2].End() != d.Size() {
		t.Fatalf("%+v", all)
	}
	p := make([]byte, 1<<20)
	ok(t, d.Read(ctx, p, 63<<40))
	if !block.IsZero(p) || bytes.Equal(p, nil) {
		t.Fatal("not zero")
	}
}

// TestHoles describes an image that was preallocated: what the file does not hold reads as zero. Through a window, bytes lie elsewhere.
func TestHoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	create(t, path, "preallocation=metadata", "64M")
	qemuIO(t, path, "write -P 1 10M 3M")
	d := openPath(t, path, false)
	compareMap(t, d, path)
	zeros := int64(0)
	all, err := d.Extents(ctx, block.Map{}, 0, d.Size(), nil)
	ok(t, err)
	for _, e := range all {
		if e.Flags&block.ExtZero != 0 {
			zeros += e.Len
		}
	}
	if zeros < 50<<20 {
		t.Errorf("%d bytes are zero, want 61 MiB: %+v", zeros, all)
	}
	image, err := os.ReadFile(path)
	ok(t, err)
	shifted := path + ".shifted"
	ok(t, os.WriteFile(shifted, append(make([]byte, 5000), image...), 0o666))
	f, err := file.Open(ctx, shifted, file.Options{})
	ok(t, err)
	w, err := block.NewWindow(f, 5000, int64(len(image)))
	ok(t, err)
	d, err = Open(ctx, w, formats.OpenOptions{})
	ok(t, err)
	defer d.Close()
	all, err = d.Extents(ctx, block.Map{}, 10<<20, 64<<10, nil)
	ok(t, err)
	p := make([]byte, 10)
	ok(t, f.Read(ctx, p, all[0].NodeOff))
	if !bytes.Equal(p, bytes.Repeat([]byte{1}, 10)) {
		t.Errorf("%+v, and there is %v", all[0], p)
	}
}
