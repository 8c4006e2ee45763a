package qcow2

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/source/file"
)

// folder is a formats.Store: files of a folder.
type folder struct {
	t       testing.TB
	dir     string
	pending []*file.Pending
}

func (f *folder) Name() string { return "image.qcow2" }

func (f *folder) Create(_ context.Context, name string) (block.Device, error) {
	if name == "" {
		name = f.Name()
	}
	if filepath.Base(name) != name {
		return nil, fs.ErrInvalid
	}
	p, err := file.Create(filepath.Join(f.dir, name), file.CreateOptions{})
	if err != nil {
		return nil, err
	}
	f.pending = append(f.pending, p)
	return block.NoClose(p.Device()), nil
}

func (f *folder) Commit(context.Context) error {
	for _, p := range f.pending {
		if err := p.Commit(false); err != nil {
			return err
		}
	}
	return nil
}

func (f *folder) Abort() error {
	for _, p := range f.pending {
		if err := p.Abort(); err != nil {
			return err
		}
	}
	return nil
}

// TestCreate creates images of all kinds, writes to them, and lets qemu-img look at what comes of it.
func TestCreate(t *testing.T) {
	peers.Need(t, "qemu-img")
	const size = 5<<20 + 512
	for _, values := range []map[string]string{
		nil,
		{"compat": "0.10"},
		{"cluster_size": "512", "refcount_bits": "1"},
		{"cluster_size": "2M", "refcount_bits": "64", "lazy_refcounts": "on"},
		{"extended_l2": "on"},
		{"compression_type": "zstd"},
		{"preallocation": "metadata"},
		{"preallocation": "falloc"},
		{"preallocation": "full", "extended_l2": "on"},
		{"data_file": "image.data"},
		{"data_file": "image.data", "preallocation": "metadata"},
		{"data_file": "image.data", "data_file_raw": "on"},
		{"data_file": "image.data", "data_file_raw": "on", "preallocation": "full", "extended_l2": "on"},
	} {
		s := &folder{t: t, dir: t.TempDir()}
		d, err := Driver().Create(t.Context(), s, formats.CreateOptions{Size: size, Values: values})
		if err != nil {
			t.Errorf("%v: %v", values, err)
			continue
		}
		want := make([]byte, size)
		for _, w := range []struct{ off, n int64 }{{0, 100}, {70_000, 200_000}, {size - 10, 10}, {3<<20 + 17, 1 << 20}} {
			p := bytes.Repeat([]byte{byte(w.off) | 1}, int(w.n))
			copy(want[w.off:], p)
			if err := d.Write(t.Context(), p, w.off, 0); err != nil {
				t.Fatalf("%v: %v", values, err)
			}
		}
		got := make([]byte, size)
		if err := errors.Join(d.Read(t.Context(), got, 0), d.Close(), s.Commit(t.Context())); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v: what was written is not read, %v", values, err)
		}
		name := filepath.Join(s.dir, s.Name())
		disk := filepath.Join(s.dir, "disk.raw")
		if err := os.WriteFile(disk, want, 0o600); err != nil {
			t.Fatal(err)
		}
		inside := func(args ...string) { // qemu-img looks for data files where it is started
			cmd := peers.Command(t, "qemu-img", args...)
			cmd.Dir = s.dir
			if text, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %v: %v\n%s", values, args, err, text)
			}
		}
		inside("check", name)
		inside("compare", "-f", "qcow2", "-F", "raw", name, disk)
		if values["data_file_raw"] == "on" {
			inside("compare", "-f", "raw", "-F", "raw", "image.data", disk)
		}
	}
}

// TestCreateRefuses: a bad option makes no file.
func TestCreateRefuses(t *testing.T) {
	good := map[string]string{"cluster_size": "64k"}
	for name, value := range map[string]string{
		"cluster_size": "3k", "refcount_bits": "17", "compat": "4", "preallocation": "some", "data_file_raw": "on", "nonsense": "1", "data_file": "sub/x",
	} {
		values := maps.Clone(good)
		values[name] = value
		s := &folder{t: t, dir: t.TempDir()}
		if _, err := Driver().Create(t.Context(), s, formats.CreateOptions{Size: 1 << 20, Values: values}); err == nil {
			t.Errorf("%s=%s is taken", name, value)
		}
		if err := s.Abort(); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
			t.Errorf("%s=%s leaves %v, %v", name, value, left, err)
		}
	}
	for _, o := range []formats.CreateOptions{{Size: -1}, {Size: 1 << 20, Compress: true}, {Size: 1 << 62}} {
		if _, err := Driver().Create(t.Context(), &folder{t: t, dir: t.TempDir()}, o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// TestCreateOverlay: a new image shows its backing file, also where it is allocated in advance.
func TestCreateOverlay(t *testing.T) {
	peers.Need(t, "qemu-img")
	for _, values := range []map[string]string{{}, {"extended_l2": "on", "preallocation": "metadata"}, {"compat": "0.10"}} {
		s := &folder{t: t, dir: t.TempDir()}
		base := bytes.Repeat([]byte("base"), 1<<20)
		if err := os.WriteFile(filepath.Join(s.dir, "base.raw"), base, 0o600); err != nil {
			t.Fatal(err)
		}
		values = maps.Clone(values)
		values["backing_file"], values["backing_fmt"] = "base.raw", "raw"
		d, err := Driver().Create(t.Context(), s, formats.CreateOptions{Size: int64(len(base)), Values: values})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.Close(), s.Commit(t.Context())); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(s.dir, s.Name())
		peers.Run(t, "qemu-img", "check", name)
		peers.Run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", name, filepath.Join(s.dir, "base.raw"))
	}
}
