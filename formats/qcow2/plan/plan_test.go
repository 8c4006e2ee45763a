package plan

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/segment"
	"github.com/imgtool/imgtool/source/file"
)

// options returns the defaults with values set as a user would.
func options(t testing.TB, values map[string]string) Options {
	t.Helper()
	o, err := formats.ParseOptions(Defaults(), values)
	if err != nil {
		t.Fatal(err)
	}
	return *o
}

// sample returns a disk of n bytes with text, noise, constant bytes, zeros that are known and zeros that are not.
func sample(t testing.TB, seed uint64, n int64) *block.Memory {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 7))
	m := block.NewMemory(n)
	put := func(p []byte, off int64) {
		if err := m.Write(t.Context(), p[:min(int64(len(p)), n-off)], off, 0); err != nil {
			t.Fatal(err)
		}
	}
	for off := int64(0); off < n; {
		p := make([]byte, 1+r.IntN(200<<10))
		switch r.IntN(6) {
		case 0: // a hole
			off += int64(r.IntN(600 << 10))
			continue
		case 1:
			for i := range p {
				p[i] = byte(r.Uint32())
			}
		case 2:
			p = bytes.Repeat([]byte{byte(1 + r.IntN(255))}, len(p))
		case 3: // zeros that are stored
			if err := m.Zero(t.Context(), off, min(int64(len(p)), n-off), block.NoHole); err != nil {
				t.Fatal(err)
			}
			off += int64(len(p))
			continue
		default:
			words := []string{"cluster ", "table ", "entry\n", "refcount ", "\x00\x00\x00\x00"}
			p = p[:0]
			for len(p) < 100<<10 {
				p = append(p, words[r.IntN(len(words))]...)
			}
		}
		put(p, off)
		off += int64(len(p))
	}
	return m
}

// write writes the plan into a new file and returns its name.
func write(t testing.TB, p *segment.Plan, workers int) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.qcow2")
	pending, err := file.Create(name, file.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer pending.Abort()
	if _, err := segment.Write(t.Context(), segment.ToDevice(pending.Device()), p, segment.Options{Workers: workers}); err != nil {
		t.Fatal(err)
	}
	if err := pending.Commit(false); err != nil {
		t.Fatal(err)
	}
	return name
}

func planOf(t testing.TB, src block.Device, o formats.CreateOptions, opts Options) *segment.Plan {
	t.Helper()
	p, err := New(context.Background(), src, o, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// raw writes the device into a raw file and returns its name.
func raw(t testing.TB, d block.Device) string {
	t.Helper()
	p := make([]byte, d.Size())
	if err := d.Read(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestFirst(t *testing.T) {
	src := sample(t, 1, 20<<20+1536)
	want := raw(t, src)
	for _, c := range []struct {
		values   map[string]string
		compress bool
	}{
		{nil, false}, {nil, true}, {map[string]string{"compression_type": "zstd"}, true}, {map[string]string{"cluster_size": "512"}, true},
		{map[string]string{"extended_l2": "on"}, false}, {map[string]string{"refcount_bits": "1"}, true},
		{map[string]string{"preallocation": "metadata"}, false}, {map[string]string{"preallocation": "full"}, false}, {map[string]string{"preallocation": "falloc"}, false},
	} {
		for _, oneWay := range []bool{false, true} {
			t.Logf("%v", c)
			o := formats.CreateOptions{Compress: c.compress, OneWay: oneWay}
			var name string
			if oneWay {
				var b bytes.Buffer
				if _, err := segment.Write(t.Context(), segment.ToWriter(&b), planOf(t, src, o, options(t, c.values)), segment.Options{}); err != nil {
					t.Fatal(err)
				}
				name = filepath.Join(t.TempDir(), "image.qcow2")
				if err := os.WriteFile(name, b.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			} else {
				name = write(t, planOf(t, src, o, options(t, c.values)), 0)
			}
			t.Logf("%s", peers.Run(t, "qemu-img", "check", name))
			peers.Run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", want, name)
		}
	}
}
