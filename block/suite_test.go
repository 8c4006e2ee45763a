package block_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
)

// odd is a size that is no multiple of anything.
const odd = 300_007

// filled returns a Memory of size bytes with some data in it.
func filled(t testing.TB, size int64) *block.Memory {
	t.Helper()
	m := block.NewMemory(size)
	for off := int64(5000); off+9000 < size; off += 30_000 {
		if err := m.Write(context.Background(), bytes.Repeat([]byte{byte(off>>8) | 1}, 9000), off, 0); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// must returns d, or fails the test.
func must[D block.Device](t testing.TB) func(D, error) D {
	return func(d D, err error) D {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

// contentOf returns the bytes of d.
func contentOf(t testing.TB, d block.Device) *bytes.Reader {
	t.Helper()
	p := make([]byte, d.Size())
	if err := d.Read(context.Background(), p, 0); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(p)
}

func TestMemory(t *testing.T) {
	blocktest.Run(t, blocktest.Config{
		Size: odd,
		New:  func(*testing.T) block.Device { return block.NewMemory(odd) },
	})
}

func TestMemoryOfManyChunks(t *testing.T) {
	const size = 4<<20 + 1
	blocktest.Run(t, blocktest.Config{
		Size: size, Content: contentOf(t, filled(t, size)), Ops: 60,
		New: func(t *testing.T) block.Device { return filled(t, size) },
	})
}

func TestMemoryClone(t *testing.T) {
	original := filled(t, odd)
	blocktest.Run(t, blocktest.Config{
		Size: odd, Content: contentOf(t, original),
		New: func(*testing.T) block.Device { return original.Clone() },
	})
	if a, b := contentOf(t, original), contentOf(t, filled(t, odd)); !equal(a, b) {
		t.Error("changes of clones reached the original")
	}
}

func equal(a, b *bytes.Reader) bool {
	var p, q bytes.Buffer
	a.WriteTo(&p)
	b.WriteTo(&q)
	return bytes.Equal(p.Bytes(), q.Bytes())
}

func TestNull(t *testing.T) {
	blocktest.Run(t, blocktest.Config{
		Size: odd, Forgets: true,
		New: func(*testing.T) block.Device { return block.NewNull(odd) },
	})
}

func TestPattern(t *testing.T) {
	blocktest.Run(t, blocktest.Config{
		Size: odd, ReadOnly: true, Content: contentOf(t, block.NewPattern(odd)),
		New: func(*testing.T) block.Device { return block.NewPattern(odd) },
	})
}

func TestConcat(t *testing.T) {
	for name, sizes := range map[string][]int64{
		"one": {odd}, "odd": {1, 99_999, 0, 4096, odd - 104_096}, "aligned": {65536, 131072, odd - 196608}, "empty": {0, 0, odd, 0},
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.Run(t, blocktest.Config{
				Size: odd,
				New: func(t *testing.T) block.Device {
					var devs []block.Device
					for _, size := range sizes {
						devs = append(devs, block.NewMemory(size))
					}
					return must[block.Device](t)(block.Concat(devs...))
				},
			})
		})
	}
}

// A member that cannot be written leaves the others writable.
func TestConcatReadOnlyMember(t *testing.T) {
	const part = 100_000
	fresh := func(t *testing.T) block.Device {
		return must[block.Device](t)(block.Concat(block.NewMemory(part), block.NewPattern(part), block.NewMemory(odd-2*part)))
	}
	blocktest.Run(t, blocktest.Config{Size: odd, New: fresh, Content: contentOf(t, fresh(t))})
}

func TestConcatPatterns(t *testing.T) {
	fresh := func(t *testing.T) block.Device {
		return must[block.Device](t)(block.Concat(block.NewPattern(12345), block.NewPattern(odd-12345)))
	}
	blocktest.Run(t, blocktest.Config{Size: odd, ReadOnly: true, New: fresh, Content: contentOf(t, fresh(t))})
}

func TestOverlay(t *testing.T) {
	for name, upper := range map[string]func(t *testing.T) block.Device{
		"memory": func(*testing.T) block.Device { return nil },
		"used":   func(t *testing.T) block.Device { return filled(t, 2*odd) }, // what it holds must not show
		"filter": func(t *testing.T) block.Device { return blocktest.NewXOR(filled(t, odd)) },
	} {
		t.Run(name, func(t *testing.T) {
			lower := block.NewPattern(odd)
			blocktest.Run(t, blocktest.Config{
				Size: odd, Content: contentOf(t, lower),
				New: func(t *testing.T) block.Device {
					return must[*block.Overlay](t)(block.NewOverlay(block.NoClose(lower), upper(t)))
				},
			})
		})
	}
}

// The lower device is never written, even where it could be.
func TestOverlayOverMemory(t *testing.T) {
	lower := filled(t, odd)
	before := contentOf(t, lower)
	recorder := blocktest.NewRecorder(lower)
	blocktest.Run(t, blocktest.Config{
		Size: odd, Content: before,
		New: func(t *testing.T) block.Device {
			return must[*block.Overlay](t)(block.NewOverlay(block.NoClose(recorder), nil))
		},
	})
	if n := len(recorder.Log().Entries()); n != 0 {
		t.Errorf("%d operations reached the lower device of an overlay", n)
	}
}

func TestAlign(t *testing.T) {
	for _, size := range []int64{odd, 4 * 65536} {
		for _, unit := range []int64{2, 512, 65536, 1 << 20} {
			t.Run(fmt.Sprintf("unit=%d,size=%d", unit, size), func(t *testing.T) {
				blocktest.Run(t, blocktest.Config{
					Size: size, Ops: 40,
					New: func(*testing.T) block.Device { return block.Align(newStrict(block.NewMemory(size), unit), unit) },
				})
			})
		}
	}
}

func TestAlignReadOnly(t *testing.T) {
	blocktest.Run(t, blocktest.Config{
		Size: odd, ReadOnly: true, Content: contentOf(t, block.NewPattern(odd)),
		New: func(*testing.T) block.Device { return block.Align(newStrict(block.NewPattern(odd), 512), 0) },
	})
}

func TestWindow(t *testing.T) {
	const before, after = 70_001, 5_000
	size := int64(before + odd + after)
	blocktest.Run(t, blocktest.Config{
		Size: odd, Content: readerOf(t, contentOf(t, filled(t, size)), before, odd),
		New: func(t *testing.T) block.Device {
			lower := filled(t, size)
			outside := func() []byte {
				p := make([]byte, before+after)
				if err := lower.Read(context.Background(), p[:before], 0); err != nil {
					return nil // closed by the test
				}
				if err := lower.Read(context.Background(), p[before:], before+odd); err != nil {
					return nil
				}
				return p
			}
			was := outside()
			recorder := blocktest.NewRecorder(lower)
			t.Cleanup(func() {
				for _, e := range recorder.Log().Entries() {
					if e.Off < before && e.Op != blocktest.OpFlush || e.Off+e.Len > before+odd {
						t.Errorf("a change left the window: %+v", e)
					}
				}
				if is := outside(); is != nil && !bytes.Equal(is, was) {
					t.Error("bytes outside the window changed")
				}
			})
			return must[*block.Window](t)(block.NewWindow(recorder, before, odd))
		},
	})
}

// readerOf returns the n bytes of r from off on.
func readerOf(t testing.TB, r *bytes.Reader, off, n int64) *bytes.Reader {
	t.Helper()
	p := make([]byte, n)
	if _, err := r.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(p)
}

func TestFilter(t *testing.T) {
	blocktest.Run(t, blocktest.Config{
		Size: odd, New: func(*testing.T) block.Device { return block.Filter{Device: block.NewMemory(odd)} },
	})
}

func TestXOR(t *testing.T) {
	plain := blocktest.NewXOR(block.NewMemory(odd))
	blocktest.Run(t, blocktest.Config{
		Size: odd, Content: contentOf(t, plain),
		New: func(*testing.T) block.Device { return blocktest.NewXOR(block.NewMemory(odd)) },
	})
}

func TestProtect(t *testing.T) {
	blocktest.Run(t, blocktest.Config{
		Size: odd, ReadOnly: true, Content: contentOf(t, filled(t, odd)),
		New: func(t *testing.T) block.Device { return block.Protect(filled(t, odd)) },
	})
}

func TestNoClose(t *testing.T) {
	blocktest.Run(t, blocktest.Config{
		Size: odd, StaysOpen: true,
		New: func(*testing.T) block.Device { return block.NoClose(block.NewMemory(odd)) },
	})
}

// Everything at once, opened again from the devices below.
func TestStack(t *testing.T) {
	lowers := map[block.Device][]block.Device{}
	const first = 123_456
	build := func(t *testing.T, a, b block.Device) block.Device {
		strict := newStrict(must[block.Device](t)(block.Concat(block.NoClose(a), block.NoClose(b))), 4096)
		aligned := block.Align(strict, 0)
		d := blocktest.NewXOR(blocktest.NewXOR(must[*block.Window](t)(block.NewWindow(aligned, 1000, odd))))
		lowers[d] = []block.Device{a, b}
		return d
	}
	blocktest.Run(t, blocktest.Config{
		Size: odd,
		New: func(t *testing.T) block.Device {
			return build(t, block.NewMemory(first), block.NewMemory(odd+2000-first))
		},
		Reopen: func(t *testing.T, d block.Device) block.Device {
			below := lowers[d]
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			return build(t, below[0], below[1])
		},
	})
}

// inFile is a device whose bytes lie plain in a file, so that they can be pinned.
type inFile struct {
	block.Device
	file *os.File
}

func newInFile(t *testing.T, size int64) block.Device {
	f, err := os.Create(filepath.Join(t.TempDir(), "pinned"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	d := block.NewPattern(size)
	if _, err := contentOf(t, d).WriteTo(f); err != nil {
		t.Fatal(err)
	}
	return &inFile{Device: d, file: f}
}

func (d *inFile) Pin(_ context.Context, off, n int64) (block.FileRange, func(), bool) {
	return block.FileRange{File: d.file, Off: off, Len: n}, func() {}, true
}

func TestPin(t *testing.T) {
	for name, wrap := range map[string]func(t *testing.T, d block.Device) block.Device{
		"filter":  func(_ *testing.T, d block.Device) block.Device { return block.NoClose(d) },
		"protect": func(_ *testing.T, d block.Device) block.Device { return block.Protect(d) },
		"window": func(t *testing.T, d block.Device) block.Device {
			return must[*block.Window](t)(block.NewWindow(d, 99, odd-99))
		},
		"align": func(_ *testing.T, d block.Device) block.Device { return block.Align(d, 512) },
		"concat": func(t *testing.T, d block.Device) block.Device {
			return must[block.Device](t)(block.Concat(newInFile(t, 777), d, block.NewMemory(50)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			fresh := func(t *testing.T) block.Device { return wrap(t, newInFile(t, odd)) }
			d := fresh(t)
			readOnly := !d.Info().Caps.Write
			blocktest.Run(t, blocktest.Config{
				Size: d.Size(), ReadOnly: readOnly, Pins: true, Content: contentOf(t, d), New: fresh, Ops: 50, StaysOpen: name == "filter",
			})
		})
	}
}
