package file

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func TestClone(t *testing.T) {
	dir := t.TempDir()
	want := make([]byte, 5<<20+77)
	r := rand.New(rand.NewPCG(1, 1))
	for _, at := range []int{0, 1 << 20, 3<<20 + 5, len(want) - 100} {
		for i := range 100 {
			want[at+i] = byte(r.Uint32())
		}
	}
	path := filepath.Join(dir, "src")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(want); off += 4096 {
		if p := want[off:min(off+4096, len(want))]; !bytes.Equal(p, make([]byte, len(p))) {
			if _, err := f.WriteAt(p, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	src, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	target := filepath.Join(dir, "dst")
	p, err := Create(target, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	how, err := Clone(t.Context(), p.Device(), src)
	if err != nil || how == "" {
		t.Fatalf("%q, %v", how, err)
	}
	if err := p.Commit(false); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(target)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes, %v", how, len(got), err)
	}
}
