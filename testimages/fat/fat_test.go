package fat

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/source/file"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func options() Options {
	return Options{Label: "TEST LABEL", Serial: 0x1234abcd, Time: time.Date(2024, 2, 29, 23, 59, 58, 0, time.UTC)}
}

// assortment returns files of many sizes, in deep and in full directories.
func assortment() []File {
	files := []File{
		{Path: "EMPTY"},
		{Path: "ONE.B", Size: 1},
		{Path: "SECTOR.BIN", Size: 512},
		{Path: "EFI/BOOT/BOOTX64.EFI", Size: 1*mib + 1},
		{Path: "EFI/BOOT/GRUB.CFG", Size: 100},
		{Path: "A/B/C/D/E/DEEP-1_2", Size: 4096},
	}
	for i := range 300 {
		files = append(files, File{Path: "FULL/" + string(rune('A'+i%26)) + string(rune('A'+i/26)) + ".TXT", Size: int64(i * 7)})
	}
	return files
}

// content returns the bytes of a file.
func content(i int, size int64) []byte {
	b := make([]byte, size)
	for k := range b {
		b[k] = byte(k>>9 ^ k ^ i)
	}
	return b
}

// newFile makes a file system with its content in a file.
func newFile(t *testing.T, size int64, files []File) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fat")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := file.Open(t.Context(), path, file.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Resize(t.Context(), size); err != nil {
		t.Fatal(err)
	}
	places, err := Format(t.Context(), d, options(), files)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range places {
		if err := d.Write(t.Context(), content(i, p.Len), p.Off, 0); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// TestClean lets fsck.fat look at file systems with clusters of every size.
func TestClean(t *testing.T) {
	peers.Need(t, "fsck.fat")
	for _, size := range []int64{34 * mib, 40*mib + 512, 100 * mib, 200 * mib, 513*mib + 100, 4 * gib, 32 * gib} {
		for _, files := range [][]File{nil, assortment()} {
			path := newFile(t, size, files)
			if out, err := peers.Command(t, "fsck.fat", "-n", path).CombinedOutput(); err != nil {
				t.Errorf("fsck.fat -n of %d bytes with %d files: %v\n%s", size, len(files), err, out)
			}
		}
	}
}

// TestReadBack lets mtools read what was written.
func TestReadBack(t *testing.T) {
	peers.Need(t, "mcopy")
	files := assortment()
	path := newFile(t, 64*mib, files)
	dir := t.TempDir()
	peers.Run(t, "mcopy", "-s", "-i", path, "::*", dir)
	for i, f := range files {
		got, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(f.Path)))
		if err != nil || !bytes.Equal(got, content(i, f.Size)) {
			t.Errorf("%s came out with other bytes (error %v)", f.Path, err)
		}
	}
	listing := string(peers.Run(t, "mdir", "-i", path, "::ONE.B"))
	for _, want := range []string{"TEST LABEL", "1234-ABCD", "2024-02-29  23:59"} {
		if !strings.Contains(listing, want) {
			t.Errorf("mdir prints no %q:\n%s", want, listing)
		}
	}
}

// TestPlaces: every file has its bytes, and no two share a cluster.
func TestPlaces(t *testing.T) {
	files := assortment()
	d := block.NewMemory(64 * mib)
	places, err := Format(t.Context(), d, options(), files)
	if err != nil {
		t.Fatal(err)
	}
	end := int64(0)
	for i, p := range places {
		if p.Len != files[i].Size || block.CheckRange(p.Off, p.Len, d.Size()) != nil {
			t.Errorf("%s of %d bytes lies at %+v", files[i].Path, files[i].Size, p)
		}
		if p.Len == 0 {
			continue
		}
		if p.Off < end || p.Off%sectorSize != 0 {
			t.Errorf("%s starts at byte %d, the file before ends at %d", files[i].Path, p.Off, end)
		}
		end = p.End()
		b := make([]byte, p.Len)
		if err := d.Read(t.Context(), b, p.Off); err != nil || !block.IsZero(b) {
			t.Errorf("there is metadata in %s at byte %d (error %v)", files[i].Path, p.Off, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	good := options()
	for _, c := range []struct {
		what  string
		size  int64
		o     Options
		files []File
	}{
		{"too small", 32 * mib, good, nil},
		{"too large", 33 * gib, good, nil},
		{"long label", 64 * mib, Options{Label: "ELEVEN AND 1", Time: good.Time}, nil},
		{"lower-case label", 64 * mib, Options{Label: "label", Time: good.Time}, nil},
		{"no time", 64 * mib, Options{}, nil},
		{"late time", 64 * mib, Options{Time: time.Date(2108, 1, 1, 0, 0, 0, 0, time.UTC)}, nil},
		{"no name", 64 * mib, good, []File{{Path: ""}}},
		{"absolute", 64 * mib, good, []File{{Path: "/A"}}},
		{"slash at the end", 64 * mib, good, []File{{Path: "A/"}}},
		{"dots", 64 * mib, good, []File{{Path: "A/../B"}}},
		{"lower case", 64 * mib, good, []File{{Path: "a"}}},
		{"long name", 64 * mib, good, []File{{Path: "ABCDEFGHI"}}},
		{"long extension", 64 * mib, good, []File{{Path: "A.HTML"}}},
		{"empty extension", 64 * mib, good, []File{{Path: "A."}}},
		{"two extensions", 64 * mib, good, []File{{Path: "A.B.C"}}},
		{"twice", 64 * mib, good, []File{{Path: "A"}, {Path: "A"}}},
		{"file and directory", 64 * mib, good, []File{{Path: "A"}, {Path: "A/B"}}},
		{"directory and file", 64 * mib, good, []File{{Path: "A/B"}, {Path: "A"}}},
		{"negative", 64 * mib, good, []File{{Path: "A", Size: -1}}},
		{"4 GiB", 8 * gib, good, []File{{Path: "A", Size: 4 * gib}}},
		{"full", 64 * mib, good, []File{{Path: "A", Size: 64 * mib}}},
	} {
		d := block.NewMemory(c.size)
		if _, err := Format(t.Context(), d, c.o, c.files); err == nil {
			t.Errorf("%s: accepted", c.what)
		} else if !strings.HasPrefix(err.Error(), "fat: ") {
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
	if _, err := Format(ctx, block.NewMemory(64*mib), options(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with a canceled context: %v", err)
	}
	if _, err := Format(t.Context(), block.Protect(block.NewMemory(64*mib)), options(), nil); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("on a device that can only be read: %v", err)
	}
}
