package qcow2

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/segment"
	"github.com/imgtool/imgtool/source/file"
)

// writePlan writes a plan of src to a file.
func writePlan(t *testing.T, path string, src block.Device, o formats.CreateOptions) {
	t.Helper()
	p, err := Driver().Plan(ctx, src, o)
	ok(t, err)
	f, err := file.Create(path, file.CreateOptions{})
	ok(t, err)
	defer f.Abort()
	sink := segment.ToDevice(f.Device())
	if o.OneWay {
		sink = segment.ToWriter(f.Device().File())
	}
	_, err = segment.Write(ctx, sink, p, segment.Options{})
	ok(t, err)
	ok(t, f.Commit(false))
}

// own returns how many bytes of the disk an image holds itself, by qemu-img: data, and zeros.
func own(t *testing.T, path string) (data, zero int64) {
	t.Helper()
	var m []struct {
		Length     int64
		Depth      int
		Data, Zero bool
	}
	ok(t, json.Unmarshal(qemuImg(t, "map", "--output=json", path), &m))
	for _, e := range m {
		switch {
		case e.Depth > 0:
		case e.Data:
			data += e.Length
		case e.Zero:
			zero += e.Length
		}
	}
	return data, zero
}

// TestPlanOfOverlay copies an overlay without what is below it, in every form: the copy holds what the overlay does, and no more.
func TestPlanOfOverlay(t *testing.T) {
	if testing.Short() {
		t.Skip("its work is done by one goroutine, and takes long under the race detector")
	}
	const size = 8 << 20
	for _, c := range []struct {
		from     string // options of the overlay
		values   map[string]string
		compress bool
	}{
		{"", nil, false},
		{"", nil, true},
		{"", map[string]string{"compression_type": "zstd", "cluster_size": "64k"}, true},
		{"cluster_size=4k", map[string]string{"cluster_size": "4k", "refcount_bits": "8"}, false},
		{"extended_l2=on", map[string]string{"extended_l2": "on"}, false},
	} {
		for _, oneWay := range []bool{false, true} {
			dir := t.TempDir()
			base, overlay, copied := filepath.Join(dir, "base.raw"), filepath.Join(dir, "overlay.qcow2"), filepath.Join(dir, "copy.qcow2")
			ok(t, os.WriteFile(base, bytes.Repeat([]byte("backing "), size/8/2), 0o600)) // shorter than the overlay
			options := strings.Trim(c.from+",backing_file=base.raw,backing_fmt=raw", ",")
			create(t, overlay, options, "8M")
			qemuIO(t, overlay, "write -P 1 0 64k", "write -z 128k 192k", "write -P 2 1M 300k", "write -z 3M 1M", "write -P 3 4100k 4k", "write -P 4 7M 1000k", "write -z 6M 64k")
			values := map[string]string{"backing_file": "base.raw", "backing_fmt": "raw"}
			maps.Copy(values, c.values)
			src := openPath(t, overlay, false)
			writePlan(t, copied, src, formats.CreateOptions{Values: values, Compress: c.compress, OneWay: oneWay})
			qemuImg(t, "check", copied)
			qemuImg(t, "compare", overlay, copied)
			same(t, rawOf(t, copied), rawOf(t, overlay))
			data, zero := own(t, overlay)
			gotData, gotZero := own(t, copied)
			if gotData != data || gotZero != zero {
				t.Errorf("%+v, pipe %v: the copy holds %d bytes of data and %d of zeros, and the overlay %d and %d", c, oneWay, gotData, gotZero, data, zero)
			}
			ok(t, src.Close())
		}
	}
}

// TestPlanIsRead: what is planned is read here as it was.
func TestPlanIsRead(t *testing.T) {
	if testing.Short() {
		t.Skip("its work is done by one goroutine, and takes long under the race detector")
	}
	disk := block.NewMemory(6<<20 + 512)
	for i := range int64(40) {
		ok(t, disk.Write(ctx, bytes.Repeat([]byte{byte(i), byte(i * 7), 1, 0}, 10_000), i*157_000, 0))
	}
	want := make([]byte, disk.Size())
	ok(t, disk.Read(ctx, want, 0))
	for _, values := range []map[string]string{
		nil, {"cluster_size": "512", "refcount_bits": "1"}, {"cluster_size": "2M"}, {"extended_l2": "on"}, {"compression_type": "zstd"}, {"compat": "0.10"},
		{"window": "32k", "level": "9"},
	} {
		for _, compress := range []bool{false, true} {
			path := filepath.Join(t.TempDir(), "image.qcow2")
			writePlan(t, path, disk, formats.CreateOptions{Values: values, Compress: compress})
			d := openPath(t, path, true)
			got := make([]byte, d.Size())
			ok(t, d.Read(ctx, got, 0))
			same(t, got, want)
			// It can be written to, and stays clean.
			ok(t, d.Write(ctx, bytes.Repeat([]byte{9}, 300_000), 1_000_000, 0))
			ok(t, d.Zero(ctx, 2_000_000, 500_000, 0))
			ok(t, d.Close())
			qemuImg(t, "check", path)
			m := bytes.Clone(want)
			copy(m[1_000_000:], bytes.Repeat([]byte{9}, 300_000))
			clear(m[2_000_000:2_500_000])
			same(t, rawOf(t, path), m)
		}
	}
}
