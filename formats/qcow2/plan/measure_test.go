package plan

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/segment"
	"github.com/imgtool/imgtool/source/file"
)

// measured returns what qemu-img measures.
func measured(t *testing.T, args ...string) formats.Measurement {
	t.Helper()
	var m formats.Measurement
	if err := json.Unmarshal(peers.Run(t, "qemu-img", append([]string{"measure", "--output=json", "-O", "qcow2"}, args...)...), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func list(values map[string]string) string {
	s := []string{"compat=1.1"} // so that there is one
	for _, k := range slices.Sorted(maps.Keys(values)) {
		s = append(s, k+"="+values[k])
	}
	return strings.Join(s, ",")
}

// TestMeasure: the numbers are those of qemu-img, and no image gets longer.
func TestMeasure(t *testing.T) {
	peers.Need(t, "qemu-img")
	src := sample(t, 8, 6<<20+512)
	name := filepath.Join(t.TempDir(), "disk.raw")
	sparse, err := file.Create(name, file.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer sparse.Abort()
	d := sparse.Device()
	if err := d.Resize(t.Context(), src.Size()); err != nil {
		t.Fatal(err)
	}
	for e, err := range block.Walk(t.Context(), src, block.Map{}, 0, src.Size()) {
		p := make([]byte, e.Len)
		if err == nil {
			err = src.Read(t.Context(), p, e.Off)
		}
		if err == nil && e.Flags&block.ExtZero == 0 {
			err = d.Write(t.Context(), p, e.Off, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := sparse.Commit(false); err != nil {
		t.Fatal(err)
	}
	dev, err := file.Open(t.Context(), name, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	for _, values := range []map[string]string{
		{}, {"cluster_size": "512"}, {"cluster_size": "4k", "refcount_bits": "1"}, {"cluster_size": "2M"}, {"extended_l2": "on"}, {"refcount_bits": "64", "cluster_size": "1k"},
		{"preallocation": "metadata"}, {"preallocation": "falloc"}, {"preallocation": "full"}, {"extended_l2": "on", "cluster_size": "16k"},
	} {
		opts := options(t, values)
		for _, size := range []int64{0, 1, 512, 1 << 20, 100<<20 + 513, 10 << 30, 64 << 30} {
			got, err := Measure(t.Context(), nil, formats.CreateOptions{Size: size}, opts)
			if want := measured(t, "-o", list(values), "--size", fmt.Sprint(size)); err != nil || got != want {
				t.Errorf("%v, %d bytes: %+v, %v; want %+v", values, size, got, err, want)
			}
		}
		got, err := Measure(t.Context(), dev, formats.CreateOptions{}, opts)
		if want := measured(t, "-o", list(values), "-f", "raw", name); err != nil || got != want {
			t.Errorf("%v: %+v, %v; want %+v", values, got, err, want)
		}
		for _, compress := range []bool{false, true} {
			if opts.Preallocation != "off" {
				continue
			}
			if n := int64(len(written(t, planOf(t, dev, formats.CreateOptions{Compress: compress}, opts), segment.Options{}))); n > got.Required {
				t.Errorf("%v, compress %v: the image has %d bytes, and %d were enough", values, compress, n, got.Required)
			}
		}
	}
	opts := options(t, map[string]string{"backing_file": "base.raw", "backing_fmt": "raw"})
	if got, err := Measure(t.Context(), dev, formats.CreateOptions{}, opts); err != nil || got.Required != got.FullyAllocated {
		t.Errorf("with a backing file: %+v, %v", got, err)
	}
}
