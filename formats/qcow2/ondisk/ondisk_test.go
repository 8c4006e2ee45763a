package ondisk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
)

func sample() *Header {
	return &Header{
		Version: 3, ClusterBits: 16, Size: 10 << 30, L1Size: 20, L1TableOffset: 0x30000, RefcountTableOffset: 0x10000, RefcountTableClusters: 1,
		NbSnapshots: 2, SnapshotsOffset: 0x50000, CompatibleFeatures: CompatLazyRefcounts, AutoclearFeatures: AutoclearBitmaps, RefcountOrder: 4,
		IncompatibleFeatures: IncompatCompression, CompressionType: CompressionZstd, Unknown: []byte("8 bytes."), BackingFile: "base.img",
		Extensions: []Extension{{ExtBackingFormat, []byte("raw")}, {0x12345678, []byte("unknown")}, {ExtFeatureNames, EncodeFeatureNames(KnownFeatureNames())}},
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	v2 := sample()
	v2.Version, v2.CompatibleFeatures, v2.AutoclearFeatures, v2.IncompatibleFeatures, v2.CompressionType, v2.Unknown = 2, 0, 0, 0, 0, nil
	for _, h := range []*Header{sample(), v2} {
		p, err := h.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseHeader(append(p, make([]byte, 1<<16-len(p))...))
		if err != nil || !reflect.DeepEqual(got, h) {
			t.Errorf("version %d: %+v, %v; want %+v", h.Version, got, err, h)
		}
		if got.BackingFormat() != "raw" || len(got.FeatureNames()) != len(KnownFeatureNames()) {
			t.Errorf("extensions are lost: %q, %v", got.BackingFormat(), got.FeatureNames())
		}
		again, err := got.Encode()
		if err != nil || !bytes.Equal(p, again) {
			t.Errorf("the bytes change: %v", err)
		}
	}
}

func TestHeaderRefused(t *testing.T) {
	for name, change := range map[string]func(h *Header){
		"cluster bits":      func(h *Header) { h.ClusterBits = 22 },
		"small L1":          func(h *Header) { h.L1Size = 19 },
		"huge L1":           func(h *Header) { h.L1Size = MaxL1Bytes/8 + 1 },
		"unaligned L1":      func(h *Header) { h.L1TableOffset = 0x30200 },
		"wild L1":           func(h *Header) { h.L1TableOffset = 1 << 60 },
		"no refcounts":      func(h *Header) { h.RefcountTableOffset = 0 },
		"refcount table":    func(h *Header) { h.RefcountTableClusters = 129 },
		"refcount order":    func(h *Header) { h.RefcountOrder = 7 },
		"size":              func(h *Header) { h.Size = 1 << 63 },
		"crypt":             func(h *Header) { h.CryptMethod = 3 },
		"compression":       func(h *Header) { h.CompressionType = 2 },
		"compression bit":   func(h *Header) { h.IncompatibleFeatures = 0 },
		"snapshots":         func(h *Header) { h.NbSnapshots = MaxSnapshots + 1 },
		"snapshots offset":  func(h *Header) { h.SnapshotsOffset = 5 },
		"long backing name": func(h *Header) { h.BackingFile = string(make([]byte, 1024)) },
		"small clusters":    func(h *Header) { h.ClusterBits, h.IncompatibleFeatures = 13, IncompatCompression|IncompatExtendedL2 },
		"header length":     func(h *Header) { h.Unknown = []byte("odd") },
	} {
		h := sample()
		change(h)
		p, err := h.Encode()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, err = ParseHeader(append(p, make([]byte, 1<<16-len(p))...))
		var c *block.CorruptError
		if !errors.As(err, &c) {
			t.Errorf("%s: %v, want a CorruptError", name, err)
		}
	}
}

func TestCompressedEntry(t *testing.T) {
	for _, bits := range []uint32{9, 12, 16, 21} {
		for _, off := range []int64{0x10000, 0x10001, 0x101ff, 0x10200} {
			for _, n := range []int64{1, 2, 511, 1<<bits - 1} {
				e, ok := CompressedEntry(off, n, bits)
				if sectors := (off%SectorSize + n + SectorSize - 1) / SectorSize; sectors > 1<<(bits-8) {
					if ok {
						t.Errorf("%d bytes at %#x fit into %d sectors", n, off, 1<<(bits-8))
					}
					continue
				}
				o, max := CompressedRange(e, bits)
				if !ok || e&Compressed == 0 || o != off || max < n || max >= n+SectorSize || (off+max)%SectorSize != 0 {
					t.Errorf("bits %d: %d bytes at %#x become %d at %#x", bits, n, off, max, o)
				}
			}
		}
	}
	if _, ok := CompressedEntry(1<<56, 1, 16); ok {
		t.Error("an offset of 57 bits fits")
	}
}

func TestRefcounts(t *testing.T) {
	for order := range uint32(MaxRefcountOrder + 1) {
		p := make([]byte, 512)
		n := int64(len(p)) * 8 >> order
		for i := range n {
			SetRefcount(p, i, order, uint64(i)*0x9e3779b97f4a7c15&MaxRefcount(order))
		}
		SetRefcount(p, 3, order, 0)
		SetRefcount(p, 5, order, MaxRefcount(order))
		for i := range n {
			want := uint64(i) * 0x9e3779b97f4a7c15 & MaxRefcount(order)
			switch i {
			case 3:
				want = 0
			case 5:
				want = MaxRefcount(order)
			}
			if got := Refcount(p, i, order); got != want {
				t.Fatalf("order %d: count %d is %d, want %d", order, i, got, want)
			}
		}
	}
	// Counts of less than a byte begin at its lowest bits.
	if p := []byte{0x01, 0}; Refcount(p, 0, 0) != 1 || Refcount(p, 7, 0) != 0 {
		t.Error("the order of bits is wrong")
	}
}

func TestSnapshotRoundTrip(t *testing.T) {
	h := sample()
	for _, s := range []Snapshot{
		{L1TableOffset: 0x70000, L1Size: 20, ID: "1", Name: "first", DateSec: 1, DateNsec: 2, VMClockNsec: 3, VMStateSize: 4, DiskSize: 10 << 30, Icount: NoIcount},
		{L1TableOffset: 0x70000, L1Size: 20, ID: "17", Name: "", VMStateSize: 1 << 40, DiskSize: 1 << 30, Icount: 7, HasDiskSize: true, Unknown: []byte("more")},
	} {
		p := s.Append(nil)
		for n := range len(p) - 7 {
			if _, _, need, err := ParseSnapshot(p[:n], 0, h); need <= n && err == nil && n < snapshotLen {
				t.Fatalf("%d of %d bytes are enough", n, len(p))
			}
		}
		got, n, need, err := ParseSnapshot(p, 0, h)
		if err != nil || need != 0 || n != len(p) || n%8 != 0 || !reflect.DeepEqual(got, s) {
			t.Errorf("%+v, %d, %d, %v; want %+v, %d", got, n, need, err, s, len(p))
		}
	}
}

func TestReadSnapshots(t *testing.T) {
	h := sample()
	h.SnapshotsOffset, h.NbSnapshots = 0x1000, 3000
	d := block.NewMemory(0x1000)
	var want []Snapshot
	var p []byte
	for i := range int(h.NbSnapshots) {
		s := Snapshot{L1TableOffset: 0x70000, L1Size: 20, ID: fmt.Sprint(i), Name: strings.Repeat("n", i%100), Icount: NoIcount, HasDiskSize: true}
		want, p = append(want, s), s.Append(p)
	}
	p = p[:len(p)-1] // of its padding
	if err := d.Resize(t.Context(), 0x1000+int64(len(p))); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(t.Context(), p, 0x1000, 0); err != nil {
		t.Fatal(err)
	}
	got, n, err := ReadSnapshots(t.Context(), d, h)
	if err != nil || n != int64(len(p)+1) || !reflect.DeepEqual(got, want) {
		t.Fatalf("%d snapshots in %d bytes, %v", len(got), n, err)
	}
	h.NbSnapshots++
	if _, _, err := ReadSnapshots(t.Context(), d, h); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("one more than there is: %v", err)
	}
}

func TestBitmapDirectoryRoundTrip(t *testing.T) {
	h := sample()
	want := []BitmapEntry{
		{BitmapTableOffset: 0x90000, BitmapTableSize: 1, Flags: BitmapAuto, Type: BitmapDirtyTracking, GranularityBits: 16, Name: "b0", ExtraData: []byte{}},
		{Flags: BitmapInUse, Type: BitmapDirtyTracking, GranularityBits: 9, Name: "longer", ExtraData: []byte("xyz")},
	}
	var p []byte
	for _, e := range want {
		p = e.Append(p)
	}
	got, err := ParseBitmapDirectory(p, 0, h)
	if err != nil || len(got) != 2 || !reflect.DeepEqual(got[1], want[1]) || got[0].Name != "b0" {
		t.Fatalf("%+v, %v", got, err)
	}
	x := &BitmapsExtension{2, uint64(len(p)), 0x80000}
	h.SetExtension(ExtBitmaps, x.Encode())
	if y, err := h.Bitmaps(); err != nil || !reflect.DeepEqual(x, y) {
		t.Errorf("%+v, %v", y, err)
	}
	h.AutoclearFeatures = 0
	if y, err := h.Bitmaps(); err != nil || y != nil {
		t.Errorf("bitmaps of an image that was written without them: %+v, %v", y, err)
	}
}

func FuzzParseHeader(f *testing.F) {
	p, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := ParseHeader(p)
		if err != nil {
			return
		}
		q, err := h.Encode()
		if err != nil {
			return // what was in the way of the extensions does not fit any more
		}
		again, err := ParseHeader(append(q, make([]byte, max(0, h.ClusterSize()-int64(len(q))))...))
		if err != nil || !reflect.DeepEqual(h, again) {
			t.Fatalf("%+v becomes %+v, %v", h, again, err)
		}
		h.UnknownFeatures()
		if x, err := h.Bitmaps(); err == nil && x != nil {
			if !bytes.Equal(x.Encode()[8:], h.Extensions[0].Data[8:]) && h.Extensions[0].Type == ExtBitmaps {
				t.Fatal("the bitmaps extension changes")
			}
		}
	})
}

func FuzzDirectories(f *testing.F) {
	s := Snapshot{L1TableOffset: 0x70000, L1Size: 20, ID: "1", Name: "first", HasDiskSize: true}
	e := BitmapEntry{BitmapTableOffset: 0x90000, BitmapTableSize: 1, Type: BitmapDirtyTracking, GranularityBits: 16, Name: "b0"}
	f.Add(s.Append(nil), e.Append(nil))
	f.Fuzz(func(t *testing.T, p, q []byte) {
		h := sample()
		for len(p) > 0 {
			s, n, need, err := ParseSnapshot(p, 0, h)
			if err != nil || need != 0 {
				break
			}
			if again, _, need, err := ParseSnapshot(s.Append(nil), 0, h); err != nil || need != 0 || again.Name != s.Name || again.DiskSize != s.DiskSize {
				t.Fatalf("%+v becomes %+v, %d, %v", s, again, need, err)
			}
			p = p[min(n, len(p)):]
		}
		list, err := ParseBitmapDirectory(q, 0, h)
		if err != nil {
			return
		}
		var b []byte
		for i := range list {
			b = list[i].Append(b)
		}
		if again, err := ParseBitmapDirectory(b, 0, h); err != nil || !reflect.DeepEqual(again, list) {
			t.Fatalf("%+v becomes %+v, %v", list, again, err)
		}
	})
}
