package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/internal/peers"
)

// damaged returns an image with data in its first clusters, changed in places.
func damaged(t *testing.T, options string, change func(m *block.Memory, h *ondisk.Header)) *block.Memory {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	create(t, path, options, "1M")
	qemuIO(t, path, "write -P 1 0 192k")
	m := memoryOf(t, path)
	h, err := ondisk.ReadHeader(ctx, m)
	ok(t, err)
	change(m, h)
	return m
}

func get64(t *testing.T, m *block.Memory, off uint64) uint64 {
	t.Helper()
	var p [8]byte
	ok(t, m.Read(ctx, p[:], int64(off)))
	return binary.BigEndian.Uint64(p[:])
}

func put64(t *testing.T, m *block.Memory, off, v uint64) {
	t.Helper()
	ok(t, m.Write(ctx, binary.BigEndian.AppendUint64(nil, v), int64(off), 0))
}

// l2Of returns where the first L2 table lies.
func l2Of(t *testing.T, m *block.Memory, h *ondisk.Header) uint64 {
	return get64(t, m, h.L1TableOffset) & ondisk.OffsetMask
}

// TestCorrupt reads images with tables that cannot be.
func TestCorrupt(t *testing.T) {
	for name, change := range map[string]func(m *block.Memory, h *ondisk.Header){
		"L1 reserved": func(m *block.Memory, h *ondisk.Header) {
			put64(t, m, h.L1TableOffset, get64(t, m, h.L1TableOffset)|1<<60)
		},
		"L1 unaligned": func(m *block.Memory, h *ondisk.Header) {
			put64(t, m, h.L1TableOffset, get64(t, m, h.L1TableOffset)+512)
		},
		"L2 behind the end": func(m *block.Memory, h *ondisk.Header) { put64(t, m, h.L1TableOffset, 1<<40|ondisk.Copied) },
		"L2 reserved":       func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h), 1<<57|ondisk.Copied) },
		"unaligned":         func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h), 0x50200|ondisk.Copied) },
		"behind the end":    func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h), 1<<40|ondisk.Copied) },
		"packed, behind":    func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h), ondisk.Compressed|1<<40) },
		"packed, in place": func(m *block.Memory, h *ondisk.Header) {
			put64(t, m, l2Of(t, m, h), ondisk.Compressed|ondisk.Copied|0x50000)
		},
		"packed, no deflate": func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h), ondisk.Compressed|0x50000) },
	} {
		m := damaged(t, "", change)
		d, err := Open(ctx, m, formats.OpenOptions{})
		ok(t, err)
		var corrupt *block.CorruptError
		if err := d.Read(ctx, make([]byte, 1<<20), 0); !errors.As(err, &corrupt) {
			t.Errorf("%s: %v", name, err)
		}
		ok(t, d.Close())
	}
	for name, change := range map[string]func(m *block.Memory, h *ondisk.Header){
		"both":            func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h)+8, 1<<32|1) },
		"without a place": func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h), 0) },
		"zero flag":       func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h), get64(t, m, l2Of(t, m, h))|1) },
		"packed":          func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h), ondisk.Compressed|0x50000) },
	} {
		m := damaged(t, "extended_l2=on", change)
		d, err := Open(ctx, m, formats.OpenOptions{})
		ok(t, err)
		var corrupt *block.CorruptError
		if err := d.Read(ctx, make([]byte, 1<<20), 0); !errors.As(err, &corrupt) {
			t.Errorf("subclusters, %s: %v", name, err)
		}
		ok(t, d.Close())
	}
}

// TestTail reads an image that ends inside its last cluster.
func TestTail(t *testing.T) {
	m := damaged(t, "", func(m *block.Memory, h *ondisk.Header) { ok(t, m.Resize(ctx, m.Size()-1000)) })
	d, err := Open(ctx, m, formats.OpenOptions{})
	ok(t, err)
	p := make([]byte, 192<<10)
	ok(t, d.Read(ctx, p, 0))
	same(t, p, append(bytes.Repeat([]byte{1}, 192<<10-1000), make([]byte, 1000)...))
	ok(t, d.Close())
}

// TestUnsafeWrites refuses to write where that would do damage, and reads all the same.
func TestUnsafeWrites(t *testing.T) {
	refcounts := func(m *block.Memory, h *ondisk.Header) uint64 { return get64(t, m, h.RefcountTableOffset) }
	for name, change := range map[string]func(m *block.Memory, h *ondisk.Header){
		"data is not counted": func(m *block.Memory, h *ondisk.Header) {
			cluster := get64(t, m, l2Of(t, m, h)) & ondisk.OffsetMask >> 16
			ok(t, m.Write(ctx, []byte{0, 0}, int64(refcounts(m, h)+2*cluster), 0))
		},
		"data is counted twice": func(m *block.Memory, h *ondisk.Header) {
			cluster := get64(t, m, l2Of(t, m, h)) & ondisk.OffsetMask >> 16
			ok(t, m.Write(ctx, []byte{0, 2}, int64(refcounts(m, h)+2*cluster), 0))
		},
		"data in the header":   func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h), ondisk.Copied) },
		"data in the L1 table": func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h), ondisk.Copied|h.L1TableOffset) },
		"data in the refcount table": func(m *block.Memory, h *ondisk.Header) {
			put64(t, m, l2Of(t, m, h), ondisk.Copied|h.RefcountTableOffset)
		},
		"data in the refcounts": func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h), ondisk.Copied|refcounts(m, h)) },
		"data elsewhere is not counted, and something is free": func(m *block.Memory, h *ondisk.Header) {
			cluster := get64(t, m, l2Of(t, m, h)+16) & ondisk.OffsetMask >> 16
			ok(t, m.Write(ctx, []byte{0, 0}, int64(refcounts(m, h)+2*cluster), 0))
		},
		"packed data in the header": func(m *block.Memory, h *ondisk.Header) { put64(t, m, l2Of(t, m, h), ondisk.Compressed|100) },
		"L2 is not counted": func(m *block.Memory, h *ondisk.Header) {
			ok(t, m.Write(ctx, []byte{0, 0}, int64(refcounts(m, h)+2*(l2Of(t, m, h)>>16)), 0))
			put64(t, m, h.L1TableOffset, l2Of(t, m, h))
		},
	} {
		m := damaged(t, "", change)
		before := m.Clone()
		d, err := Open(ctx, block.NoClose(m), formats.OpenOptions{Write: true})
		ok(t, err)
		ok(t, d.Read(ctx, make([]byte, 4096), 64<<10))
		err = d.Write(ctx, []byte("some bytes"), 1000, 0)
		var corrupt *block.CorruptError
		var hint *block.Hint
		if name == "data in the header" { // an offset of 0 is no place at all
			ok(t, err)
			ok(t, d.Close())
			continue
		}
		if !errors.As(err, &corrupt) || !errors.As(err, &hint) || !strings.Contains(hint.Text, "check") {
			t.Errorf("%s: %v", name, err)
		}
		ok(t, d.Close())
		a, b := make([]byte, before.Size()), make([]byte, before.Size())
		ok(t, before.Read(ctx, a, 0))
		ok(t, m.Read(ctx, b, 0))
		same(t, b, a)
	}
}

// TestFeatures refuses features by their names, and images that are marked.
func TestFeatures(t *testing.T) {
	m := damaged(t, "", func(m *block.Memory, h *ondisk.Header) {
		h.IncompatibleFeatures |= 1 << 40
		h.SetExtension(ondisk.ExtFeatureNames, ondisk.EncodeFeatureNames([]ondisk.FeatureName{{Kind: ondisk.FeatureIncompatible, Bit: 40, Name: "time travel"}}))
		p, err := h.Encode()
		ok(t, err)
		ok(t, m.Write(ctx, p, 0, 0))
	})
	if _, err := Open(ctx, m, formats.OpenOptions{}); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "time travel") {
		t.Errorf("an unknown feature: %v", err)
	}
	m = damaged(t, "", func(m *block.Memory, h *ondisk.Header) { put64(t, m, 72, ondisk.IncompatCorrupt) })
	var corrupt *block.CorruptError
	if _, err := Open(ctx, m, formats.OpenOptions{Write: true}); !errors.As(err, &corrupt) {
		t.Errorf("an image that is marked as corrupt opens for writing: %v", err)
	}
	d, err := Open(ctx, m, formats.OpenOptions{})
	ok(t, err)
	if err := d.Write(ctx, []byte{1}, 0, 0); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("a write to it: %v", err)
	}
	ok(t, d.Close())
}

// TestAutoclear clears features that are not known by writing, and keeps extensions that are not.
func TestAutoclear(t *testing.T) {
	m := damaged(t, "", func(m *block.Memory, h *ondisk.Header) {
		h.AutoclearFeatures = 1 << 50
		h.SetExtension(0x11223344, []byte("something unknown"))
		p, err := h.Encode()
		ok(t, err)
		ok(t, m.Write(ctx, p, 0, 0))
	})
	d, err := Open(ctx, block.NoClose(m), formats.OpenOptions{Write: true})
	ok(t, err)
	features := func() uint64 {
		h, err := ondisk.ReadHeader(ctx, m)
		ok(t, err)
		if data, found := h.Extension(0x11223344); !found || string(data) != "something unknown" {
			t.Errorf("the unknown extension is lost: %q", data)
		}
		return h.AutoclearFeatures
	}
	if features() == 0 {
		t.Error("cleared without a write")
	}
	ok(t, d.Write(ctx, []byte{1}, 0, 0))
	if features() != 0 {
		t.Error("not cleared by a write")
	}
	image, _ := block.As[*Device](d)
	ok(t, d.Resize(ctx, 1<<40))
	ok(t, image.SetBacking(ctx, "other", "raw"))
	features()
	ok(t, d.Close())
}

// TestDirty opens an image whose last writer was killed.
func TestDirty(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	create(t, path, "lazy_refcounts=on", "4M")
	out, _ := peers.Command(t, "qemu-io", "-f", Name, "-c", "write -P 5 100k 1M", "-c", "flush", "-c", "sigraise 9", path).CombinedOutput()
	m := memoryOf(t, path)
	if h, err := ondisk.ReadHeader(ctx, m); err != nil || h.IncompatibleFeatures&ondisk.IncompatDirty == 0 {
		t.Skipf("qemu-io did not leave a dirty image: %v, %s", err, out)
	}
	want := make([]byte, 4<<20)
	copy(want[100<<10:], bytes.Repeat([]byte{5}, 1<<20))
	r := rand.New(rand.NewPCG(1, 9))
	d := openPath(t, path, false)
	same(t, contents(t, d, r), want)
	ok(t, d.Close())
	var said strings.Builder
	d, err := Open(ctx, block.NoClose(m), formats.OpenOptions{Write: true, Log: slog.New(slog.NewTextHandler(&said, nil))})
	ok(t, err)
	if said.Len() == 0 {
		t.Error("nothing was said of the repair")
	}
	copy(want, noise(r, 2<<20))
	ok(t, d.Write(ctx, want[:2<<20], 0, 0))
	same(t, contents(t, d, r), want)
	ok(t, d.Close())
	files{image: m}.verify(t, "repaired and written")
}

// TestLazy opens an image of which neither file can be opened, and asks for what it does not need.
func TestLazy(t *testing.T) {
	k := kindOfImage{options: "data_file=data", dataFile: true, backing: 1 << 20}
	f := k.template(t, 1<<20)
	if _, err := Open(ctx, block.NoClose(f.image), formats.OpenOptions{}); !errors.Is(err, block.ErrDenied) {
		t.Errorf("opened without its files: %v", err)
	}
	d, err := Open(ctx, block.NoClose(f.image), formats.OpenOptions{Lazy: true})
	ok(t, err)
	image, _ := block.As[*Device](d)
	if ref, has := image.Backing(); !has || ref.Name != "backing" || ref.Format != "raw" {
		t.Errorf("%+v", ref)
	}
	if err := d.Read(ctx, make([]byte, 10), 0); !errors.Is(err, block.ErrDenied) {
		t.Errorf("a read: %v", err)
	}
	ok(t, d.Close())
	calls := 0
	d, err = Open(ctx, block.NoClose(f.image), formats.OpenOptions{Lazy: true, Refer: func(ctx context.Context, ref formats.Ref, write bool) (block.Device, error) {
		calls++
		return f.refer(ctx, ref, write)
	}})
	ok(t, err)
	same(t, contents(t, d, rand.New(rand.NewPCG(1, 9))), f.backing)
	if calls != 1 {
		t.Errorf("%d files were opened, want the backing image once", calls)
	}
	ok(t, d.Close())
}
