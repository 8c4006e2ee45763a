package check

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// image is a qcow2 file that is made by hand.
type image struct {
	t   testing.TB
	dev *block.Memory
	h   ondisk.Header
}

// newImage returns an image of version 3 in a file that claims size bytes. Its refcount table is at cluster 1.
func newImage(t testing.TB, clusterBits uint32, size int64) *image {
	return &image{t, block.NewMemory(size), ondisk.Header{Version: 3, ClusterBits: clusterBits, RefcountOrder: 4, Size: 1 << 20,
		RefcountTableOffset: 1 << clusterBits, RefcountTableClusters: 1, L1TableOffset: 2 << clusterBits, L1Size: 1}}
}

func (i *image) header() {
	i.t.Helper()
	p, err := i.h.Encode()
	must(i.t, err)
	must(i.t, i.dev.Write(i.t.Context(), p, 0, 0))
}

// fill writes n entries at off.
func (i *image) fill(off, n int64, entry func(k int64) uint64) {
	i.t.Helper()
	p := make([]byte, 0, n*8)
	for k := range n {
		p = binary.BigEndian.AppendUint64(p, entry(k))
	}
	must(i.t, i.dev.Write(i.t.Context(), p, off, 0))
}

// TestHostile: images that ask for much are answered in bounded time and memory. Time is not judged closely: what is wrong here takes hours.
func TestHostile(t *testing.T) {
	if testing.Short() {
		t.Skip("its work is done by one goroutine, and takes long under the race detector")
	}
	const huge = 1 << 55
	for _, c := range []struct {
		name string
		make func() *image
	}{
		{"file of 32 PiB", func() *image { return newImage(t, 16, huge) }},
		{"one L2 table in every entry of the longest L1 table", func() *image {
			i := newImage(t, 9, huge)
			i.h.L1Size, i.h.L1TableOffset = ondisk.MaxL1Bytes/8, 1<<30
			i.fill(1<<30, int64(i.h.L1Size), func(int64) uint64 { return 1 << 20 })
			i.fill(1<<20, 64, func(k int64) uint64 { return uint64(k+100) << 20 })
			return i
		}},
		{"L2 tables in holes", func() *image {
			i := newImage(t, 16, huge)
			i.h.L1Size, i.h.L1TableOffset = ondisk.MaxL1Bytes/8, 1<<30
			i.fill(1<<30, int64(i.h.L1Size), func(k int64) uint64 { return uint64(k+1<<20) << 20 })
			return i
		}},
		{"clusters all over the file", func() *image {
			i := newImage(t, 16, huge)
			i.h.L1Size = 1024
			i.fill(2<<16, 128, func(k int64) uint64 { return uint64(k+1) << 20 })
			for k := range int64(128) {
				i.fill((k+1)<<20, 8192, func(j int64) uint64 { return uint64(k*8192+j+1) << 34 })
			}
			return i
		}},
		{"one refcount block in every entry of the longest refcount table", func() *image {
			i := newImage(t, 16, huge)
			i.h.RefcountTableOffset, i.h.RefcountTableClusters = 1<<30, ondisk.MaxRefcountTableBytes>>16
			i.fill(1<<30, ondisk.MaxRefcountTableBytes/8, func(int64) uint64 { return 1 << 20 })
			i.fill(1<<20, 8192, func(int64) uint64 { return 1<<64 - 1 })
			return i
		}},
		{"snapshots that share the longest L1 table", func() *image {
			i := newImage(t, 9, huge)
			i.h.Size = 32 << 10
			var table []byte
			for range ondisk.MaxSnapshots {
				s := ondisk.Snapshot{L1TableOffset: 1 << 30, L1Size: ondisk.MaxL1Bytes / 8, HasDiskSize: true}
				table = s.Append(table)
			}
			i.h.NbSnapshots, i.h.SnapshotsOffset = ondisk.MaxSnapshots, 1<<40
			must(t, i.dev.Write(t.Context(), table, 1<<40, 0))
			i.fill(1<<30, ondisk.MaxL1Bytes/8, func(k int64) uint64 { return uint64(k+1<<20) << 20 })
			return i
		}},
		{"bitmaps that share the longest table", func() *image {
			i := newImage(t, 16, huge)
			var dir []byte
			for range 20000 {
				b := ondisk.BitmapEntry{BitmapTableOffset: 1 << 30, BitmapTableSize: ondisk.MaxBitmapTableBytes / 8, Type: 1, GranularityBits: 16, Name: "b"}
				dir = b.Append(dir)
			}
			x := ondisk.BitmapsExtension{NbBitmaps: 20000, BitmapDirectorySize: uint64(len(dir)), BitmapDirectoryOffset: 1 << 40}
			i.h.AutoclearFeatures = ondisk.AutoclearBitmaps
			i.h.SetExtension(ondisk.ExtBitmaps, x.Encode())
			must(t, i.dev.Write(t.Context(), dir, 1<<40, 0))
			i.fill(1<<30, ondisk.MaxBitmapTableBytes/8, func(k int64) uint64 { return uint64(k+1<<20) << 20 })
			return i
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := c.make()
			i.header()
			for _, how := range []formats.Repair{formats.RepairNothing, formats.RepairAll} {
				told := 0
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				start := time.Now()
				r, err := Check(t.Context(), i.dev, formats.CheckOptions{Repair: how, Problem: func(formats.Problem) { told++ }})
				took := time.Since(start)
				runtime.ReadMemStats(&after)
				t.Logf("%v, %d MB: %+v %v", took, (after.Sys-before.Sys)>>20, r, err)
				if told > maxTold+1 {
					t.Errorf("%d problems were told", told)
				}
				if took > time.Minute {
					t.Errorf("it took %v", took)
				}
			}
		})
	}
}
