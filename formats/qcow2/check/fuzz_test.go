package check

import (
	"testing"

	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// small returns an image of a few clusters with a bit of everything.
func small(t testing.TB, clusterBits uint32, incompatible uint64) []byte {
	i := newImage(t, clusterBits, 12<<clusterBits)
	cs := i.h.ClusterSize()
	i.h.Size, i.h.IncompatibleFeatures = uint64(i.h.L1Span()), incompatible
	c := func(n int64) uint64 { return uint64(n * cs) }
	l2 := []uint64{c(5) | ondisk.Copied, ondisk.Compressed | c(6), c(7), ondisk.Copied | c(8)}
	if i.h.ExtendedL2() {
		l2 = []uint64{c(5) | ondisk.Copied, 0xffffffff, ondisk.Compressed | c(6), 0, c(7), 1 << 32, 0, 1 << 40}
	}
	i.fill(1*cs, 1, func(int64) uint64 { return c(3) })
	i.fill(2*cs, 1, func(int64) uint64 { return c(4) | ondisk.Copied })
	i.fill(3*cs, 4, func(int64) uint64 { return 0x0001000100010001 })
	i.fill(4*cs, int64(len(l2)), func(k int64) uint64 { return l2[k] })
	s := ondisk.Snapshot{L1TableOffset: c(9), L1Size: 1, ID: "1", Name: "one", HasDiskSize: true}
	i.h.NbSnapshots, i.h.SnapshotsOffset = 1, c(10)
	must(t, i.dev.Write(t.Context(), s.Append(nil), 10*cs, 0))
	i.fill(9*cs, 1, func(int64) uint64 { return c(4) })
	i.header()
	img := make([]byte, i.dev.Size())
	must(t, i.dev.Read(t.Context(), img, 0))
	return img
}

// FuzzCheck: a repair ends, and what it says is left is what the next check finds.
func FuzzCheck(f *testing.F) {
	f.Add(small(f, 9, 0))
	f.Add(small(f, 9, ondisk.IncompatDataFile))
	f.Add(small(f, 14, ondisk.IncompatExtendedL2|ondisk.IncompatDirty))
	f.Fuzz(func(t *testing.T, img []byte) {
		dev := memory(t, img)
		before, err := Check(t.Context(), dev, formats.CheckOptions{})
		if err != nil {
			return
		}
		o := formats.CheckOptions{Repair: formats.RepairAll}
		o.Memory = 1 << 12 // windows of a page
		repaired, err := Check(t.Context(), dev, o)
		if err != nil {
			return
		}
		after, err := Check(t.Context(), dev, formats.CheckOptions{})
		if err != nil {
			t.Fatalf("after a repair: %v", err)
		}
		repaired.LeaksFixed, repaired.CorruptionsFixed = 0, 0
		if after != repaired {
			t.Errorf("%+v\nwas repaired to\n%+v\nand is\n%+v", before, repaired, after)
		}
		if before.CheckErrors == 0 && before.Corruptions == 0 && code(after, nil) != 0 {
			t.Errorf("%+v becomes %+v", before, after)
		}
	})
}
