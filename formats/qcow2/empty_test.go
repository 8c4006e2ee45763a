package qcow2

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// TestEmpty empties images of every kind over a backing image, which then shows through; a snapshot keeps what it has.
func TestEmpty(t *testing.T) {
	for _, options := range []string{"", "cluster_size=512", "compat=0.10", "cluster_size=16k,extended_l2=on", "refcount_bits=64", "data_file=data"} {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			base, path := filepath.Join(dir, "base"), filepath.Join(dir, "over")
			if options == "data_file=data" { // qemu-img looks for it from where it is
				options = "data_file=" + filepath.Join(dir, "data")
			}
			create(t, base, "", "3M")
			qemuIO(t, base, "write -P 1 0 1M", "write -P 2 2M 300k")
			create(t, path, options, "4M", "-b", base, "-F", Name)
			qemuIO(t, path, "write -P 3 512k 700k", "write -z 100k 64k", "write -P 4 3500k 20k")
			snapshots := options == "" || options == "compat=0.10"
			var before []byte
			if snapshots {
				qemuImg(t, "snapshot", "-c", "kept", path)
				before = rawOf(t, path)
				qemuIO(t, path, "write -P 5 600k 700k")
			}
			want := append(rawOf(t, base), make([]byte, 1<<20)...)

			d := openPath(t, path, true)
			e, is := block.As[formats.Emptier](d)
			if !is {
				t.Fatalf("%T cannot be emptied", d)
			}
			ok(t, e.Empty(ctx))
			got := make([]byte, d.Size())
			ok(t, d.Read(ctx, got, 0))
			same(t, got, want)
			ok(t, d.Write(ctx, []byte("x"), 700<<10, 0)) // it can be written again
			want[700<<10] = 'x'
			ok(t, d.Close())

			qemuImg(t, "check", path)
			same(t, rawOf(t, path), want)
			if snapshots && !bytes.Equal(rawOf(t, path, "-l", "kept"), before) {
				t.Error("the snapshot has changed")
			}
		})
	}
}

// TestEmptyRaw leaves a raw data file alone: without tables there would be nothing that shows it.
func TestEmptyRaw(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	create(t, path, "data_file="+filepath.Join(dir, "data")+",data_file_raw=on", "1M")
	d := openPath(t, path, true)
	if err := d.(*Device).Empty(ctx); err == nil {
		t.Error("it was emptied")
	}
}
