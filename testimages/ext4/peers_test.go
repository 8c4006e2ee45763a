package ext4

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/source/file"
)

// newFile makes a device of size bytes in a file.
func newFile(t *testing.T, size int64) (string, block.Device) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ext4")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := file.Open(t.Context(), path, file.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := d.Resize(t.Context(), size); err != nil {
		t.Fatal(err)
	}
	return path, d
}

// TestClean lets e2fsck look at file systems of sizes around the borders of block groups.
func TestClean(t *testing.T) {
	peers.Need(t, "e2fsck")
	files := assortment()
	for _, c := range []struct {
		size    int64
		scatter uint64
		files   []File
	}{
		{8 * mib, 0, nil},
		{8*mib + 4095, 0, files[:9]},
		{127 * mib, 1, files},
		{128 * mib, 0, files},
		{128*mib + BlockSize, 2, files},
		{132*mib - BlockSize, 2, files},
		{132 * mib, 3, files},
		{256 * mib, 0, nil}, // the last group is whole
		{700 * mib, 4, files},
		{10 * gib, 5, files},
		{1024 * gib, 6, files}, // the metadata fills groups of its own
	} {
		path, d := newFile(t, c.size)
		if _, err := Format(t.Context(), d, options(c.scatter), c.files); err != nil {
			t.Fatal(err)
		}
		out, err := peers.Command(t, "e2fsck", "-fn", path).CombinedOutput()
		if err != nil {
			t.Errorf("e2fsck -fn of %d bytes, scatter %d: %v\n%s", c.size, c.scatter, err, out)
		}
	}
}

// TestManyExtents: files in so many pieces that their extents need blocks of their own; their content need not be there.
func TestManyExtents(t *testing.T) {
	peers.Need(t, "e2fsck")
	var files []File
	for i := range 150 {
		files = append(files, File{Path: fmt.Sprintf("%d", i), Mode: 0o644, Size: 60*mib + int64(i)})
	}
	path, d := newFile(t, 30*gib)
	places, err := Format(t.Context(), d, options(3), files)
	if err != nil {
		t.Fatal(err)
	}
	most := 0
	for _, p := range places {
		most = max(most, len(p))
	}
	if most <= extentsLeaf {
		t.Errorf("no file has more than %d extents, so that one block holds them: the test needs larger files", most)
	}
	peers.Run(t, "e2fsck", "-fn", path)
}

// TestReadBack lets debugfs read what was written.
func TestReadBack(t *testing.T) {
	peers.Need(t, "debugfs")
	files := append(assortment(), File{Path: "large/file", Mode: 0o640, Size: 12*mib + 345})
	path, d := newFile(t, 150*mib)
	places, err := Format(t.Context(), d, options(7), files)
	if err != nil {
		t.Fatal(err)
	}
	content := func(i int) []byte {
		b := make([]byte, files[i].Size)
		for k := range b {
			b[k] = byte(k>>12 ^ k ^ i)
		}
		return b
	}
	for i, p := range places {
		b := content(i)
		for _, e := range p {
			if err := d.Write(t.Context(), b[:e.Len], e.Off, 0); err != nil {
				t.Fatal(err)
			}
			b = b[e.Len:]
		}
	}
	dir := t.TempDir()
	peers.Run(t, "debugfs", "-R", "rdump / "+dir, path)
	for i, f := range files {
		name := filepath.Join(dir, filepath.FromSlash(f.Path))
		if f.Link != "" {
			if got, err := os.Readlink(name); err != nil || got != f.Link {
				t.Errorf("%s points to %q (error %v), expected %q", f.Path, got, err, f.Link)
			}
			continue
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, content(i)) {
			t.Errorf("%s came out with other bytes (error %v)", f.Path, err)
		}
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != fs.FileMode(f.Mode&0o777) || info.ModTime().Unix() != int64(options(0).Time) {
			t.Errorf("%s came out with mode %v and time %v", f.Path, info.Mode(), info.ModTime())
		}
	}
}
