package testimages

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/partition"
)

// eachBlock calls f with every block of 64 KiB that is not all zero.
func eachBlock(t testing.TB, d block.Device, f func(off int64, b []byte)) {
	t.Helper()
	const size = 64 << 10
	var buf []block.Extent
	b := make([]byte, size)
	done := int64(0) // blocks before it have been seen
	for off := int64(0); off < d.Size(); {
		var err error
		if buf, err = d.Extents(t.Context(), block.Map{}, off, d.Size()-off, buf[:0]); err != nil {
			t.Fatal(err)
		}
		for _, e := range buf {
			off = e.End()
			if e.Flags&block.ExtZero != 0 {
				continue
			}
			for at := max(block.RoundDown(e.Off, size), done); at < e.End(); at += size {
				p := b[:min(size, d.Size()-at)]
				if err := d.Read(t.Context(), p, at); err != nil {
					t.Fatal(err)
				}
				if !block.IsZero(p) {
					f(at, p)
				}
				done = at + size
			}
		}
	}
}

// sum returns a SHA-256 over the blocks of eachBlock and their offsets.
func sum(t testing.TB, d block.Device) string {
	t.Helper()
	h := sha256.New()
	eachBlock(t, d, func(off int64, b []byte) {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(off)))
		h.Write(b)
	})
	return hex.EncodeToString(h.Sum(nil))
}

// allocated returns how many bytes of d are stored.
func allocated(t testing.TB, d block.Device) (n int64) {
	t.Helper()
	var buf []block.Extent
	for off := int64(0); off < d.Size(); {
		var err error
		if buf, err = d.Extents(t.Context(), block.Map{}, off, d.Size()-off, buf[:0]); err != nil {
			t.Fatal(err)
		}
		for _, e := range buf {
			if off = e.End(); e.Flags&block.ExtAlloc != 0 {
				n += e.Len
			}
		}
	}
	return n
}

// newDisk makes a disk in memory.
func newDisk(t testing.TB, o DiskOptions) (*block.Memory, *Manifest) {
	t.Helper()
	d := block.NewMemory(0)
	m, err := Disk(t.Context(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	return d, m
}

// small is a disk that is quick to make.
func small(seed uint64) DiskOptions { return DiskOptions{Size: MinDisk, Seed: seed, Data: MinData} }

// TestDiskGolden pins the bytes. A change of the recipe changes the sum, and with it every image that anybody has kept: say so in the changelog.
func TestDiskGolden(t *testing.T) {
	const want = "a6550b013a23006af1b86603fd4618909fb5e536f67ac2d6e2d40d273251668a"
	d, _ := newDisk(t, DiskOptions{Size: 300 * mib, Seed: 1})
	if got := sum(t, d); got != want {
		t.Errorf("the disk of 300 MiB with seed 1 has the sum %s, expected %s", got, want)
	}
	checkShape(t, d)
}

// checkShape checks that the data compresses like that of an installed system, and lies in many runs.
func checkShape(t *testing.T, d block.Device) {
	t.Helper()
	var packed counter
	z, err := gzip.NewWriterLevel(&packed, 6)
	if err != nil {
		t.Fatal(err)
	}
	taken, runs, end := int64(0), 0, int64(-1)
	eachBlock(t, d, func(off int64, b []byte) {
		if off != end {
			runs++
		}
		end = off + int64(len(b))
		if off%mib == 0 { // one block of sixteen will do
			taken += int64(len(b))
			z.Write(b)
		}
	})
	z.Close()
	ratio := float64(taken) / float64(packed)
	if ratio < 2.6 || ratio > 3.4 {
		t.Errorf("gzip -6 makes the data %.2f times smaller, expected about 3", ratio)
	}
	if runs < 20 {
		t.Errorf("the data lies in %d runs, expected more", runs)
	}
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// TestDiskRepeats makes the same disk with one processor and with many, on a new device and on one that holds something.
func TestDiskRepeats(t *testing.T) {
	first, m1 := newDisk(t, small(7))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	second := block.NewMemory(MinDisk + mib)
	for off := int64(0); off < second.Size(); off += 3 * mib {
		if err := second.Write(t.Context(), bytes.Repeat([]byte{0xa5}, 70000), off, 0); err != nil {
			t.Fatal(err)
		}
	}
	m2, err := Disk(t.Context(), second, small(7))
	if err != nil {
		t.Fatal(err)
	}
	if sum(t, first) != sum(t, second) {
		t.Error("the same options made two different disks")
	}
	if !reflect.DeepEqual(m1, m2) {
		t.Error("the same options made two different manifests")
	}
	other, _ := newDisk(t, small(8))
	if sum(t, first) == sum(t, other) {
		t.Error("another seed made the same disk")
	}
}

func TestDiskManifest(t *testing.T) {
	o := small(3)
	d, m := newDisk(t, o)
	table, err := partition.Read(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if len(table.Problems) > 0 || table.DiskGUID != m.DiskGUID || len(table.Partitions) != len(m.Partitions) {
		t.Fatalf("the table reads as %+v, the manifest is %+v", table, m.Partitions)
	}
	if err := table.ProbeFileSystems(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	for i, p := range m.Partitions {
		got := table.Partitions[i]
		if got.Number != p.Number || got.Name != p.Name || got.TypeID != p.Type || got.GUID != p.GUID || got.Start != p.Off || got.Size != p.Size {
			t.Errorf("partition %d reads as %+v, the manifest says %+v", i+1, got, p)
		}
		if got.Start%mib != 0 {
			t.Errorf("partition %d starts at byte %d, not on a MiB", i+1, got.Start)
		}
		if fs := got.FS; fs.Type != p.FileSystem || !strings.EqualFold(fs.Label, p.Name) || fs.UUID != p.UUID {
			t.Errorf("the file system of partition %d reads as %+v, the manifest says %+v", i+1, fs, p)
		}
	}
	total, whole := int64(0), 0
	for _, f := range m.Files {
		total += f.Size
		if f.Off < 0 {
			continue
		}
		whole++
		b := make([]byte, f.Size)
		if err := d.Read(t.Context(), b, f.Off); err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(b); hex.EncodeToString(got[:]) != f.SHA256 {
			t.Errorf("%s is not at byte %d of the disk", f.Path, f.Off)
		}
		if p := m.Partitions[f.Partition-1]; f.Off < p.Off || f.Off+f.Size > p.Off+p.Size {
			t.Errorf("%s at byte %d is outside its partition", f.Path, f.Off)
		}
	}
	if total != o.Data {
		t.Errorf("the files have %d bytes, expected %d", total, o.Data)
	}
	if whole < len(m.Files)*9/10 {
		t.Errorf("%d of %d files lie whole, expected nine of ten", whole, len(m.Files))
	}
	byPath := func(a, b File) int { return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Path, b.Path)) }
	if !slices.IsSortedFunc(m.Files, byPath) {
		t.Error("the files are not in order of partition and path")
	}
}

// TestDiskPlatform: the boot entries have the kernel argument that is patched in place, where the manifest says.
func TestDiskPlatform(t *testing.T) {
	d, m := newDisk(t, small(4))
	for _, path := range []string{"loader/entries/linux-1.conf", "loader/entries/linux-0-rescue.conf", "grub/grub.cfg"} {
		f, ok := m.Find("boot", path)
		if !ok || f.Off < 0 {
			t.Errorf("%s: in the manifest: %v, at byte %d", path, ok, f.Off)
			continue
		}
		b := make([]byte, f.Size)
		if err := d.Read(t.Context(), b, f.Off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(b, []byte(Platform)) {
			t.Errorf("%s reads as %q, without %s", path, b, Platform)
		}
	}
	if _, ok := m.Find("root", "loader/entries/linux-1.conf"); ok {
		t.Error("Find does not look at the partition")
	}
}

// TestDiskSparse: a disk costs what it holds, whatever its size. A descriptor of 64 bytes for every 128 MiB is the least.
func TestDiskSparse(t *testing.T) {
	sizes := []int64{MinDisk, 6 * gib, 1 * tib}
	if !testing.Short() {
		sizes = append(sizes, MaxDisk)
	}
	for _, size := range sizes {
		d, m := newDisk(t, DiskOptions{Size: size, Seed: 5, Data: MinData})
		if d.Size() != size || m.Size != size {
			t.Errorf("a disk of %d bytes came out with %d, the manifest says %d", size, d.Size(), m.Size)
		}
		// Blocks that are not full, directories and bitmaps; not the data that happens to be zero.
		least, most := int64(MinData*8/10), int64(MinData*13/10+2*mib)+size/(2*mib)+size/(64*gib)*32*kib
		if n := allocated(t, d); n < least || n > most {
			t.Errorf("a disk of %d bytes stores %d, expected %d to %d", size, n, least, most)
		}
	}
}

// TestDiskFull: the most that is allowed fits.
func TestDiskFull(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 100 MiB")
	}
	for _, size := range []int64{MinDisk, MinDisk + 5*mib + 512} {
		newDisk(t, DiskOptions{Size: size, Seed: 9, Data: MaxData(size)})
	}
}

func TestDiskRefuses(t *testing.T) {
	for _, o := range []DiskOptions{
		{Size: MinDisk - 512},
		{Size: MinDisk + 1},
		{Size: MaxDisk + 512},
		{Size: -1},
		{Size: MinDisk, Data: MinData - 1},
		{Size: MinDisk, Data: -1},
		{Size: MinDisk, Data: MaxData(MinDisk) + 1},
	} {
		d := block.NewMemory(0)
		if _, err := Disk(t.Context(), d, o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
		if d.Size() != 0 {
			t.Errorf("%+v was refused after the device had been touched", o)
		}
	}
	if n := MaxData(mib); n != 0 {
		t.Errorf("a disk of 1 MiB can hold %d bytes, expected none", n)
	}
}

func TestDiskErrors(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Disk(ctx, block.NewMemory(0), small(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("with a canceled context: %v", err)
	}
	if _, err := Disk(t.Context(), block.Protect(block.NewMemory(MinDisk)), small(1)); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("on a device that can only be read: %v", err)
	}
	// Errors of late writes, which workers make, come out too.
	broken := &failing{Memory: block.NewMemory(0)}
	broken.left.Store(8 * mib)
	if _, err := Disk(t.Context(), broken, small(1)); !errors.Is(err, errFull) {
		t.Errorf("on a device that fills up: %v", err)
	}
}

var errFull = errors.New("full")

// failing is a device that fails when left bytes have been written.
type failing struct {
	*block.Memory
	left atomic.Int64
}

func (d *failing) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if d.left.Add(-int64(len(p))) < 0 {
		return errFull
	}
	return d.Memory.Write(ctx, p, off, f)
}

// BenchmarkDisk measures the making alone: nothing is stored.
func BenchmarkDisk(b *testing.B) {
	o := DiskOptions{Size: gib, Seed: 1}
	b.SetBytes(o.Size / 4)
	for b.Loop() {
		if _, err := Disk(b.Context(), block.NewNull(o.Size), o); err != nil {
			b.Fatal(err)
		}
	}
}
