package testimages

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/source/file"
)

// newFile makes a disk in a file.
func newFile(t *testing.T, o DiskOptions) (string, *Manifest) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := file.Open(t.Context(), path, file.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	m, err := Disk(t.Context(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return path, m
}

// cut copies one partition into a file of its own.
func cut(t *testing.T, disk string, p Partition) string {
	t.Helper()
	b := make([]byte, p.Size)
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(b, p.Off); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), p.Name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// compare checks that the regular files below dir are those of a partition.
func compare(t *testing.T, dir string, m *Manifest, part int) {
	t.Helper()
	want := map[string]File{}
	for _, f := range m.Files {
		if f.Partition == m.Partitions[part].Number {
			want[f.Path] = f
		}
	}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		f, ok := want[rel]
		if got := sha256.Sum256(b); !ok || hex.EncodeToString(got[:]) != f.SHA256 {
			t.Errorf("%s came out with %d bytes that are not those of the manifest (which knows it: %v)", rel, len(b), ok)
		}
		delete(want, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for path := range want {
		t.Errorf("%s did not come out", path)
	}
}

func TestDiskTablePeers(t *testing.T) {
	peers.Need(t, "sfdisk")
	path, _ := newFile(t, small(11))
	peers.Run(t, "sfdisk", "--verify", path)
}

func TestDiskFATPeers(t *testing.T) {
	peers.Need(t, "fsck.fat")
	peers.Need(t, "mcopy")
	path, m := newFile(t, small(12))
	esp := cut(t, path, m.Partitions[espPart])
	peers.Run(t, "fsck.fat", "-n", esp)
	dir := t.TempDir()
	peers.Run(t, "mcopy", "-s", "-i", esp, "::EFI", dir)
	compare(t, dir, m, espPart)
}

func TestDiskExt4Peers(t *testing.T) {
	peers.Need(t, "e2fsck")
	peers.Need(t, "debugfs")
	path, m := newFile(t, small(13))
	for _, part := range []int{bootPart, rootPart} {
		device := fmt.Sprintf("%s?offset=%d", path, m.Partitions[part].Off)
		peers.Run(t, "e2fsck", "-fn", device)
		dir := t.TempDir()
		peers.Run(t, "debugfs", "-R", "rdump / "+dir, device)
		compare(t, dir, m, part)
	}
}
