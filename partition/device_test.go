package partition

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// memory is a device of a fixed size in memory. It holds only what is not zero, so that large disks cost nothing, and counts what is read.
type memory struct {
	block.ReadOnly
	size  int64
	pages map[int64][]byte // of pageSize bytes, by number
	read  int64            // bytes
	fail  error            // what Read returns in [failFrom, size)

	failFrom int64
}

const pageSize = 4096

func newMemory(size int64) *memory { return &memory{size: size, pages: map[int64][]byte{}} }

// memoryOf returns a device that holds b.
func memoryOf(b []byte) *memory {
	m := newMemory(int64(len(b)))
	m.put(b, 0)
	return m
}

func (m *memory) put(p []byte, off int64) {
	for len(p) > 0 {
		page, at := off/pageSize, off%pageSize
		n := min(int64(len(p)), pageSize-at)
		if m.pages[page] == nil {
			m.pages[page] = make([]byte, pageSize)
		}
		copy(m.pages[page][at:], p[:n])
		p, off = p[n:], off+n
	}
}

// flip inverts the byte at off.
func (m *memory) flip(off int64) {
	b := m.bytes(off, 1)
	m.put([]byte{^b[0]}, off)
}

func (m *memory) bytes(off, n int64) []byte {
	p := make([]byte, n)
	for done := int64(0); done < n; {
		page, at := (off+done)/pageSize, (off+done)%pageSize
		k := min(n-done, pageSize-at)
		if b := m.pages[page]; b != nil {
			copy(p[done:done+k], b[at:])
		}
		done += k
	}
	return p
}

func (m *memory) Info() block.Info {
	return block.Info{Name: "memory", MinBlock: 1, PreferredBlock: 1, Caps: block.Caps{Write: true}}
}
func (m *memory) Size() int64 { return m.size }

func (m *memory) Read(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := block.CheckRange(off, int64(len(p)), m.size); err != nil {
		return err
	}
	if m.fail != nil && off+int64(len(p)) > m.failFrom {
		return m.fail
	}
	m.read += int64(len(p))
	copy(p, m.bytes(off, int64(len(p))))
	return nil
}

func (m *memory) Write(_ context.Context, p []byte, off int64, _ block.Flags) error {
	if err := block.CheckRange(off, int64(len(p)), m.size); err != nil {
		return err
	}
	m.put(p, off)
	return nil
}

func (m *memory) Extents(_ context.Context, _ block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	return append(buf, block.Extent{Off: off, Len: n, Flags: block.ExtData}), nil
}
func (m *memory) Prefetch(context.Context, int64, int64) error { return nil }
func (m *memory) Close() error                                 { return nil }

// file writes the content to a sparse file, for other programs.
func (m *memory) file(t testing.TB) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "*.img")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(m.size); err != nil {
		t.Fatal(err)
	}
	for page, b := range m.pages {
		n := min(pageSize, m.size-page*pageSize)
		if _, err := f.WriteAt(b[:n], page*pageSize); err != nil {
			t.Fatal(err)
		}
	}
	return f.Name()
}

// disk is a file as a device that can only be read.
type disk struct {
	block.ReadOnly
	f    *os.File
	size int64
	read int64 // bytes
}

func openDisk(t testing.TB, path string) *disk {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return &disk{f: f, size: info.Size()}
}

func (d *disk) Info() block.Info { return block.Info{Name: d.f.Name(), MinBlock: 1, PreferredBlock: 1} }
func (d *disk) Size() int64      { return d.size }
func (d *disk) Read(_ context.Context, p []byte, off int64) error {
	if err := block.CheckRange(off, int64(len(p)), d.size); err != nil {
		return err
	}
	d.read += int64(len(p))
	_, err := d.f.ReadAt(p, off)
	return err
}
func (d *disk) Extents(_ context.Context, _ block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	return append(buf, block.Extent{Off: off, Len: n, Flags: block.ExtData}), nil
}
func (d *disk) Prefetch(context.Context, int64, int64) error { return nil }
func (d *disk) Close() error                                 { return nil }

// mustRead reads a table that has to be there.
func mustRead(t testing.TB, d block.Device) *Table {
	t.Helper()
	table, err := Read(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// wantProblems compares Problems with one substring for each.
func wantProblems(t testing.TB, table *Table, want ...string) {
	t.Helper()
	ok := len(table.Problems) == len(want)
	for _, w := range want {
		ok = ok && slices.ContainsFunc(table.Problems, func(p string) bool { return strings.Contains(p, w) })
	}
	if !ok {
		t.Errorf("problems:\n%q\nwant\n%q", table.Problems, want)
	}
}
