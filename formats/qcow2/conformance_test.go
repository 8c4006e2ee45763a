package qcow2

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/internal/peers"
)

// kindOfImage is an image of qemu-img in memory, and what it refers to.
type kindOfImage struct {
	name, options string
	backing       int64 // size of a backing image; 0 for none
	dataFile      bool
}

var kinds = []kindOfImage{
	{name: "default"},
	{name: "v2", options: "compat=0.10"},
	{name: "v2 backing", options: "compat=0.10,cluster_size=4k", backing: 700 << 10},
	{name: "512", options: "cluster_size=512"},
	{name: "512 backing, refcounts 1", options: "cluster_size=512,refcount_bits=1", backing: 900 << 10},
	{name: "512, refcounts 64", options: "cluster_size=512,refcount_bits=64"},
	{name: "4k backing", options: "cluster_size=4k,refcount_bits=8", backing: 800 << 10},
	{name: "2M", options: "cluster_size=2M"},
	{name: "subclusters", options: "extended_l2=on"},
	{name: "subclusters 16k backing", options: "extended_l2=on,cluster_size=16k,refcount_bits=32", backing: 2 << 20},
	{name: "data file", options: "data_file=data", dataFile: true},
	{name: "data file backing", options: "data_file=data,cluster_size=4k", backing: 300 << 10, dataFile: true},
	{name: "raw data file", options: "data_file=data,data_file_raw=on,cluster_size=4k", dataFile: true},
	{name: "raw data file, subclusters", options: "data_file=data,data_file_raw=on,extended_l2=on", dataFile: true},
	{name: "preallocated", options: "preallocation=metadata,cluster_size=4k"},
}

// files are the files of an image.
type files struct {
	image, data *block.Memory
	backing     []byte
}

// template makes an image with qemu-img.
func (k kindOfImage) template(t testing.TB, size int64) files {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	args := []string{"create", "-q", "-f", Name, "-u"}
	if k.backing > 0 {
		args = append(args, "-b", "backing", "-F", "raw")
	}
	options := "lazy_refcounts=off"
	if k.options != "" {
		options = k.options
	}
	cmd := peers.Command(t, "qemu-img", append(args, "-o", options, path, itoa(size))...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f := files{image: memoryOf(t, path)}
	if k.dataFile {
		f.data = memoryOf(t, filepath.Join(dir, "data"))
	}
	if k.backing > 0 {
		f.backing = sample(rand.New(rand.NewPCG(9, uint64(k.backing))), int(k.backing))
	}
	return f
}

func memoryOf(t testing.TB, path string) *block.Memory {
	t.Helper()
	p, err := os.ReadFile(path)
	ok(t, err)
	m := block.NewMemory(0)
	ok(t, m.Write(ctx, p, 0, 0))
	return m
}

func (f files) clone() files {
	c := files{image: f.image.Clone(), backing: f.backing}
	if f.data != nil {
		c.data = f.data.Clone()
	}
	return c
}

// refer opens what the image refers to.
func (f files) refer(_ context.Context, ref formats.Ref, _ bool) (block.Device, error) {
	if ref.Kind == "data file" {
		return block.NoClose(f.data), nil
	}
	m := block.NewMemory(int64(len(f.backing)))
	return m, m.Write(ctx, f.backing, 0, 0)
}

// open opens the image. It is closed with the test, unless that has done so.
func (f files) open(t testing.TB, write bool) block.Device {
	t.Helper()
	d := f.openOnly(t, write)
	t.Cleanup(func() { d.Close() })
	return d
}

// openOnly is open for tests that open thousands, and close them.
func (f files) openOnly(t testing.TB, write bool) block.Device {
	t.Helper()
	d, err := Open(ctx, block.NoClose(f.image), formats.OpenOptions{Write: write, Refer: f.refer, Memory: 1 << 20})
	ok(t, err)
	return d
}

// verify lets qemu-img check the image.
func (f files) verify(t testing.TB, what string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	dump(t, f.image, path)
	for _, name := range []string{"data", "backing"} {
		ok(t, os.WriteFile(filepath.Join(filepath.Dir(path), name), nil, 0o666))
	}
	cmd := peers.Command(t, "qemu-img", "check", "-f", Name, path)
	cmd.Dir = filepath.Dir(path)
	if out, err := cmd.CombinedOutput(); err != nil {
		os.Rename(path, "/tmp/qa/failed.qcow2")
		t.Fatalf("%s: qemu-img check: %v\n%s", what, err, out)
	}
}

func dump(t testing.TB, m *block.Memory, path string) {
	t.Helper()
	p := make([]byte, m.Size())
	ok(t, m.Read(ctx, p, 0))
	ok(t, os.WriteFile(path, p, 0o666))
}

// content returns what a fresh image of a size shows.
func (f files) content(size int64) io.ReaderAt {
	p := make([]byte, size)
	copy(p, f.backing)
	return bytes.NewReader(p)
}

func TestConformance(t *testing.T) {
	const size = 1<<20 + 512*7
	ops := 60
	if os.Getenv("IMGTOOL_SOAK") != "" {
		ops = 300
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			fresh := k.template(t, size)
			opened := map[block.Device]files{}
			blocktest.Run(t, blocktest.Config{
				Size: size, Content: fresh.content(size), Ops: ops,
				New: func(t *testing.T) block.Device {
					f := fresh.clone()
					d := f.open(t, true)
					opened[d] = f
					return d
				},
				Reopen: func(t *testing.T, d block.Device) block.Device {
					f := opened[d]
					ok(t, d.Close())
					f.verify(t, "reopened")
					return f.open(t, true)
				},
			})
		})
	}
}
