package qcow

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/internal/peers"
)

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// memory returns a device that holds p.
func memory(t testing.TB, p []byte) block.Device {
	t.Helper()
	d := block.NewMemory(int64(len(p)))
	ok(t, d.Write(t.Context(), p, 0, 0))
	return d
}

// content returns n bytes: noise, what can be compressed, and holes.
func content(n int) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(3, uint64(n)))
	for i := 0; i < n; i += 8 << 10 {
		q := p[i:min(n, i+8<<10)]
		switch r.IntN(4) {
		case 0:
			for k := range q {
				q[k] = byte(r.Uint32())
			}
		case 1:
			for k := range q {
				q[k] = byte(k / 100)
			}
		}
	}
	return p
}

// made is an image that qemu-img made, and what it holds.
type made struct {
	name           string
	image, content []byte
	base           []byte // what the backing file holds; nil where there is none
}

func (m made) options() formats.OpenOptions {
	return formats.OpenOptions{Refer: func(ctx context.Context, ref formats.Ref, write bool) (block.Device, error) {
		if ref.Name != "base.raw" || write {
			return nil, errors.New("who asks for that?")
		}
		d := block.NewMemory(int64(len(m.base)))
		return d, d.Write(ctx, m.base, 0, 0)
	}}
}

func (m made) open(t *testing.T) block.Device {
	d, err := open(t.Context(), memory(t, m.image), m.options())
	ok(t, err)
	return d
}

// images returns images of every kind that qemu-img makes.
func images(t *testing.T) []made {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	read := func(name string) []byte {
		p, err := os.ReadFile(path(name))
		ok(t, err)
		return p
	}
	want := content(1 << 20)
	base := content(700 << 10)
	ok(t, os.WriteFile(path("want.raw"), want, 0o600))
	ok(t, os.WriteFile(path("base.raw"), base, 0o600))
	peers.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow", path("want.raw"), path("plain"))
	peers.Run(t, "qemu-img", "create", "-q", "-f", "qcow", "-b", "base.raw", "-F", "raw", path("over"), "1M")
	peers.Run(t, "qemu-io", "-f", "qcow", "-c", "write -P 7 100k 33k", "-c", "write -P 9 900k 4k", path("over"))
	over := append(bytes.Clone(base), make([]byte, len(want)-len(base))...)
	copy(over[100<<10:], bytes.Repeat([]byte{7}, 33<<10))
	copy(over[900<<10:], bytes.Repeat([]byte{9}, 4<<10))
	// qemu-img 7.2 ends with an error and no message although the output is right.
	_ = peers.Command(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow", path("want.raw"), path("packed")).Run()
	return []made{
		{"plain", read("plain"), want, nil},
		{"packed", read("packed"), want, nil},
		{"over", read("over"), over, base},
	}
}

func TestQemuImages(t *testing.T) {
	peers.Need(t, "qemu-img")
	for _, m := range images(t) {
		t.Run(m.name, func(t *testing.T) {
			blocktest.Run(t, blocktest.Config{New: m.open, Size: int64(len(m.content)), Content: bytes.NewReader(m.content), ReadOnly: true})
			_, err := open(t.Context(), memory(t, m.image), formats.OpenOptions{Write: true, Refer: m.options().Refer})
			if !errors.Is(err, block.ErrReadOnly) {
				t.Errorf("opened for writing: %v", err)
			}
			_, err = open(t.Context(), memory(t, m.image), formats.OpenOptions{})
			if errors.Is(err, block.ErrDenied) != (m.base != nil) {
				t.Errorf("opened without references: %v", err)
			}
		})
	}
}

// image returns an image of two clusters that was made by hand: data in the first, nothing in the second.
func image(change func(h *header)) []byte {
	h := header{Magic: magic, Version: 1, Size: 8192, ClusterBits: 12, L2Bits: 9, L1TableOffset: 48}
	change(&h)
	p, _ := binary.Append(nil, binary.BigEndian, &h)
	p = binary.BigEndian.AppendUint64(p, 4096)
	p = append(p, make([]byte, 4096-len(p))...)
	p = binary.BigEndian.AppendUint64(p, 8192)
	p = append(p, make([]byte, 8192-len(p))...)
	return append(p, "the first cluster"...)
}

func TestTail(t *testing.T) {
	d, err := open(t.Context(), memory(t, image(func(*header) {})), formats.OpenOptions{})
	ok(t, err)
	want := make([]byte, 8192)
	copy(want, "the first cluster")
	got := make([]byte, 8192)
	if err := d.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the tail of the last cluster is not zero: %v", err)
	}
	ok(t, d.Close())
}

func TestRefused(t *testing.T) {
	var corrupt *block.CorruptError
	for name, c := range map[string]struct {
		p    []byte
		want any
	}{
		"size 0":       {image(func(h *header) { h.Size = 0 }), &corrupt},
		"huge size":    {image(func(h *header) { h.Size = 1 << 62 }), &corrupt},
		"cluster bits": {image(func(h *header) { h.ClusterBits = 8 }), &corrupt},
		"l2 bits":      {image(func(h *header) { h.L2Bits = 27 }), &corrupt},
		"crypt":        {image(func(h *header) { h.CryptMethod = 2 }), &corrupt},
		"L1":           {image(func(h *header) { h.L1TableOffset = 1 << 40 }), &corrupt},
		"wild L1":      {image(func(h *header) { h.L1TableOffset = 1<<64 - 8 }), &corrupt},
		"name":         {image(func(h *header) { h.BackingFileOffset, h.BackingFileSize = 48, 1<<32-1 }), &corrupt},
		"name outside": {image(func(h *header) { h.BackingFileOffset, h.BackingFileSize = 1<<63, 10 }), &corrupt},
		"truncated":    {image(func(*header) {})[:40], &corrupt},
		"no L2":        {image(func(*header) {})[:5000], &corrupt},
		"no data":      {image(func(*header) {})[:8192], &corrupt},
	} {
		d, err := open(t.Context(), memory(t, c.p), formats.OpenOptions{})
		if err == nil {
			err = d.Read(t.Context(), make([]byte, 4096), 0)
			ok(t, d.Close())
		}
		if !errors.As(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	encrypted := image(func(h *header) { h.CryptMethod = cryptAES })
	if _, err := open(t.Context(), memory(t, encrypted), formats.OpenOptions{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("encrypted: %v", err)
	}
	d, err := open(t.Context(), memory(t, encrypted), formats.OpenOptions{Lazy: true})
	ok(t, err)
	if x, err := d.(formats.Describer).Describe(t.Context()); err != nil || !x.Encrypted {
		t.Errorf("an encrypted image is described as %+v, %v", x, err)
	}
	if err := d.Read(t.Context(), make([]byte, 1), 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("an encrypted image is read: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(image(func(*header) {}))
	f.Add(image(func(h *header) { h.BackingFileOffset, h.BackingFileSize = 8192, 9 }))
	f.Fuzz(func(t *testing.T, p []byte) {
		d, err := open(t.Context(), memory(t, p), formats.OpenOptions{Lazy: true, Memory: 1 << 20})
		if err != nil {
			return
		}
		defer d.Close()
		buf := make([]byte, 64<<10)
		n := min(int64(len(buf)), d.Size())
		for _, off := range []int64{0, d.Size() - n} {
			_ = d.Read(t.Context(), buf[:n], off)
			ext, err := d.Extents(t.Context(), block.Map{}, off, d.Size()-off, nil)
			if err == nil && (len(ext) == 0 || ext[0].Off != off || ext[len(ext)-1].End() > d.Size()) {
				t.Fatalf("extents of [%d, %d): %+v", off, d.Size(), ext)
			}
		}
	})
}
