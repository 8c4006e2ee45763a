package plan

import (
	"encoding/json"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/segment"
	"github.com/imgtool/imgtool/source/file"
)

func headerOf(t *testing.T, d block.Device) *ondisk.Header {
	t.Helper()
	h, err := ondisk.ReadHeader(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// sparse returns a disk of n bytes with 4 KiB of data at the beginning of each of a number of equal parts.
func sparse(t testing.TB, n int64, parts int) *block.Memory {
	t.Helper()
	m := block.NewMemory(n)
	for i := range int64(parts) {
		p := make([]byte, 4096)
		for j := range p {
			p[j] = byte(i + int64(j)%251 + 1)
		}
		if err := m.Write(t.Context(), p, n/int64(parts)*i, 0); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// writePeak writes the plan into a file and returns the most memory that was in use meanwhile, in bytes.
func writePeak(t *testing.T, name string, p *segment.Plan, oneWay bool) (peak uint64) {
	t.Helper()
	f, err := file.Create(name, file.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Abort()
	sink := segment.ToDevice(f.Device())
	if oneWay {
		sink = segment.ToWriter(f.Device().File())
	}
	var m runtime.MemStats
	_, err = segment.Write(t.Context(), sink, p, segment.Options{Progress: func(int64, int64) {
		runtime.ReadMemStats(&m)
		peak = max(peak, m.HeapAlloc)
	}})
	if err == nil {
		err = f.Commit(false)
	}
	if err != nil {
		t.Fatal(err)
	}
	return peak
}

// TestLarge: what disks of many tebibytes cost is what is in them. Tables and refcount blocks in several batches are right.
func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("its work is done by one goroutine, and takes long under the race detector")
	}
	peers.Need(t, "qemu-img")
	for _, c := range []struct {
		size   int64
		parts  int
		values map[string]string
	}{
		{1 << 40, 40, nil},
		{64 << 40, 100, nil},
		{1 << 50, 8, map[string]string{"cluster_size": "2M", "extended_l2": "on"}},
		{60 << 30, 50, map[string]string{"cluster_size": "512", "refcount_bits": "64"}},
		{20 << 30, 700, map[string]string{"cluster_size": "512", "refcount_bits": "64"}},
	} {
		src := sparse(t, c.size, c.parts)
		for _, o := range []formats.CreateOptions{{}, {Compress: true}, {OneWay: true}} {
			name := filepath.Join(t.TempDir(), "image.qcow2")
			if peak := writePeak(t, name, planOf(t, src, o, options(t, c.values)), o.OneWay); peak > 200<<20 {
				t.Errorf("%d bytes, %+v: %d bytes of memory were in use", c.size, o, peak)
			}
			var r struct {
				Allocated int64 `json:"allocated-clusters"`
			}
			if err := json.Unmarshal(peers.Run(t, "qemu-img", "check", "--output=json", name), &r); err != nil {
				t.Fatal(err)
			}
			if r.Allocated < int64(c.parts) {
				t.Errorf("%d bytes, %+v: %d clusters are allocated, and there is data in %d", c.size, o, r.Allocated, c.parts)
			}
		}
	}
}

// TestEmpty: an image without data is clean, and allocated as it should be.
func TestEmpty(t *testing.T) {
	peers.Need(t, "qemu-img")
	for _, c := range []struct {
		values map[string]string
		size   int64
		data   bool // qemu-img map sees data
	}{
		{nil, 0, false}, {nil, 1 << 40, false}, {nil, 10<<20 + 1, false},
		{map[string]string{"preallocation": "metadata"}, 10<<20 + 512, true},
		{map[string]string{"preallocation": "metadata"}, 40 << 30, true},
		{map[string]string{"preallocation": "falloc"}, 10 << 20, true},
		{map[string]string{"preallocation": "full", "cluster_size": "2M"}, 10 << 20, true},
		{map[string]string{"preallocation": "metadata", "cluster_size": "512", "refcount_bits": "1"}, 100 << 20, true},
		{map[string]string{"preallocation": "metadata", "extended_l2": "on"}, 10 << 20, false},
		{map[string]string{"compat": "0.10", "preallocation": "metadata"}, 10 << 20, true},
	} {
		p, err := Empty(t.Context(), formats.CreateOptions{Size: c.size}, options(t, c.values))
		if err != nil {
			t.Fatal(err)
		}
		name := write(t, p)
		peers.Run(t, "qemu-img", "check", name)
		var m []struct {
			Data, Present bool
			Length        int64
		}
		if err := json.Unmarshal(peers.Run(t, "qemu-img", "map", "--output=json", name), &m); err != nil {
			t.Fatal(err)
		}
		var sum int64
		for _, e := range m {
			if e.Data != c.data {
				t.Errorf("%v: %+v", c.values, e)
			}
			sum += e.Length
		}
		if want := (c.size + 511) &^ 511; sum != want {
			t.Errorf("%v: the disk has %d bytes, want %d", c.values, sum, want)
		}
	}
}
