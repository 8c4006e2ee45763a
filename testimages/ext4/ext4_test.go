package ext4

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

func options(scatter uint64) Options {
	return Options{Label: "a label of 16 by", UUID: [16]byte{1, 2, 3, 4, 5, 6, 0x47, 8, 0x89}, Time: 1_700_000_000, Scatter: scatter}
}

// format makes a file system in memory.
func format(t testing.TB, size int64, o Options, files []File) (*block.Memory, [][]block.Extent) {
	t.Helper()
	d := block.NewMemory(size)
	places, err := Format(t.Context(), d, o, files)
	if err != nil {
		t.Fatal(err)
	}
	return d, places
}

// assortment returns files of many kinds: empty and large ones, in deep and in full directories, links.
func assortment() []File {
	files := []File{
		{Path: "empty", Mode: 0o600},
		{Path: "one-byte", Mode: 0o4755, Size: 1},
		{Path: "block", Mode: 0o644, Size: BlockSize},
		{Path: "more", Mode: 0o644, Size: BlockSize + 1},
		{Path: "a/b/c/d/e/f/g/h/deep", Mode: 0o644, Size: 10},
		{Path: "link", Link: "a/b/c"},
		{Path: "long-link", Link: strings.Repeat("x", 59)},
		{Path: strings.Repeat("n", 255), Mode: 0o644, Size: 5},
		{Path: "grüße", Mode: 0o644, Size: 5},
	}
	for i := range 700 {
		files = append(files, File{Path: fmt.Sprintf("full/%s%d", strings.Repeat("y", i%50), i), Mode: 0o644, Size: int64(i)})
	}
	return files
}

// TestExtents: every file gets as many bytes as it has, on whole blocks, and no two share one.
func TestExtents(t *testing.T) {
	files := assortment()
	for i := range 40 {
		files = append(files, File{Path: fmt.Sprintf("large/%d", i), Size: int64(i) * mib / 3})
	}
	for _, scatter := range []uint64{0, 1, 2} {
		d, places := format(t, 600*mib, options(scatter), files)
		if len(places) != len(files) {
			t.Fatalf("%d files have %d places", len(files), len(places))
		}
		var all []block.Extent
		for i, p := range places {
			total := int64(0)
			for k, e := range p {
				if e.Off%BlockSize != 0 || k < len(p)-1 && e.Len%BlockSize != 0 || block.CheckRange(e.Off, e.Len, d.Size()) != nil || e.Len <= 0 {
					t.Errorf("%s: range %d of %d is %+v", files[i].Path, k, len(p), e)
				}
				total += e.Len
			}
			if want := files[i].Size; files[i].Link == "" && total != want {
				t.Errorf("%s: the ranges have %d bytes, expected %d", files[i].Path, total, want)
			}
			if scatter == 0 && len(p) > 1 {
				t.Errorf("%s comes in %d pieces, though none were asked for", files[i].Path, len(p))
			}
			all = append(all, p...)
		}
		slices.SortFunc(all, func(a, b block.Extent) int { return int(a.Off - b.Off) })
		for i := 1; i < len(all); i++ {
			if all[i-1].End() > all[i].Off {
				t.Errorf("the ranges %+v and %+v overlap", all[i-1], all[i])
			}
		}
		// What is not metadata is zero still.
		b := make([]byte, mib)
		for _, e := range all {
			if err := d.Read(t.Context(), b[:min(e.Len, mib)], e.Off); err != nil || !block.IsZero(b[:min(e.Len, mib)]) {
				t.Fatalf("there is metadata in the range %+v of a file (error %v)", e, err)
			}
		}
	}
}

func TestRepeats(t *testing.T) {
	for _, scatter := range []uint64{0, 1} {
		sum := func() [32]byte {
			d, _ := format(t, 64*mib, options(scatter), assortment())
			b := make([]byte, d.Size())
			if err := d.Read(t.Context(), b, 0); err != nil {
				t.Fatal(err)
			}
			return sha256.Sum256(b)
		}
		if first, second := sum(), sum(); first != second {
			t.Errorf("with scatter %d the same input made two different file systems", scatter)
		}
	}
}

// TestSparse: an empty file system costs a descriptor of 64 bytes for each 128 MiB, and bitmaps where there is metadata.
func TestSparse(t *testing.T) {
	for _, size := range []int64{8 * mib, 10 * gib, 1024 * gib} {
		d, _ := format(t, size, options(0), nil)
		stored := int64(0)
		var buf []block.Extent
		for off := int64(0); off < size; {
			var err error
			if buf, err = d.Extents(t.Context(), block.Map{}, off, size-off, buf[:0]); err != nil {
				t.Fatal(err)
			}
			for _, e := range buf {
				if off = e.End(); e.Flags&block.ExtAlloc != 0 {
					stored += e.Len
				}
			}
		}
		if most := size/mib + 64*kib; stored > most {
			t.Errorf("an empty file system of %d bytes stores %d, expected at most %d", size, stored, most)
		}
	}
}

func TestRefuses(t *testing.T) {
	for _, c := range []struct {
		what  string
		size  int64
		o     Options
		files []File
	}{
		{"too small", minSize - 1, Options{}, nil},
		{"too large", maxSize + 1, Options{}, nil},
		{"long label", 64 * mib, Options{Label: strings.Repeat("x", 17)}, nil},
		{"no name", 64 * mib, Options{}, []File{{Path: ""}}},
		{"absolute", 64 * mib, Options{}, []File{{Path: "/a"}}},
		{"two slashes", 64 * mib, Options{}, []File{{Path: "a//b"}}},
		{"slash at the end", 64 * mib, Options{}, []File{{Path: "a/"}}},
		{"dots", 64 * mib, Options{}, []File{{Path: "a/../b"}}},
		{"long name", 64 * mib, Options{}, []File{{Path: strings.Repeat("x", 256)}}},
		{"zero byte", 64 * mib, Options{}, []File{{Path: "a\x00"}}},
		{"twice", 64 * mib, Options{}, []File{{Path: "a"}, {Path: "a"}}},
		{"file and directory", 64 * mib, Options{}, []File{{Path: "a"}, {Path: "a/b"}}},
		{"directory and file", 64 * mib, Options{}, []File{{Path: "a/b"}, {Path: "a"}}},
		{"lost+found", 64 * mib, Options{}, []File{{Path: "lost+found"}}},
		{"negative", 64 * mib, Options{}, []File{{Path: "a", Size: -1}}},
		{"huge", 64 * mib, Options{}, []File{{Path: "a", Size: maxFile + 1}}},
		{"long link", 64 * mib, Options{}, []File{{Path: "a", Link: strings.Repeat("x", 60)}}},
		{"full", 64 * mib, Options{}, []File{{Path: "a", Size: 64 * mib}}},
		{"full, scattered", 64 * mib, options(1), []File{{Path: "a", Size: 63 * mib}}},
		{"too many files", 64 * mib, Options{}, make([]File, inodesPerGroup)},
	} {
		for i := range c.files {
			if len(c.files) > 2 {
				c.files[i].Path = fmt.Sprint(i)
			}
		}
		d := block.NewMemory(c.size)
		if _, err := Format(t.Context(), d, c.o, c.files); err == nil {
			t.Errorf("%s: accepted", c.what)
		} else if !strings.HasPrefix(err.Error(), "ext4: ") {
			t.Errorf("%s: the error does not say where it comes from: %v", c.what, err)
		}
		if ext, err := d.Extents(t.Context(), block.Map{}, 0, c.size, nil); err != nil || len(ext) != 1 || ext[0].Flags&block.ExtZero == 0 {
			t.Errorf("%s: refused after something had been written", c.what)
		}
	}
}

func TestErrors(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Format(ctx, block.NewMemory(64*mib), Options{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with a canceled context: %v", err)
	}
	if _, err := Format(t.Context(), block.Protect(block.NewMemory(64*mib)), Options{}, nil); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("on a device that can only be read: %v", err)
	}
}

func TestCapacity(t *testing.T) {
	for _, size := range []int64{8 * mib, 200*mib + 4096, 500 * mib} {
		n := Capacity(size)
		// One block each for the root directory and lost+found.
		fits := []File{{Path: "a", Size: n - 2*BlockSize}}
		format(t, size, Options{}, fits)
		fits[0].Size++
		if _, err := Format(t.Context(), block.NewMemory(size), Options{}, fits); err == nil {
			t.Errorf("a device of %d bytes holds more than its capacity, %d", size, n)
		}
	}
	if n := Capacity(minSize - 1); n != 0 {
		t.Errorf("a device that is too small has the capacity %d", n)
	}
}

// TestCRC16 uses the check value of the CRC called ARC (initial value 0) and of the one called MODBUS (all ones).
func TestCRC16(t *testing.T) {
	for _, c := range []struct{ initial, want uint16 }{{0, 0xbb3d}, {0xffff, 0x4b37}} {
		if got := crc16(c.initial, []byte("123456789")); got != c.want {
			t.Errorf("crc16 from %#x is %#x, expected %#x", c.initial, got, c.want)
		}
	}
}

// BenchmarkFormat measures the metadata of a large file system.
func BenchmarkFormat(b *testing.B) {
	files := assortment()
	for b.Loop() {
		if _, err := Format(b.Context(), block.NewMemory(1024*gib), options(1), files); err != nil {
			b.Fatal(err)
		}
	}
}
