package chain

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/formats/all"
)

// TestSequential reads a foreign gzip file as a stream where that is enough, and at any offset where it is not.
func TestSequential(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk.raw.gz")
	if err := os.WriteFile(path, b.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	o := Options{Registry: all.Drivers(), Sequential: true}
	for text, stream := range map[string]bool{path: true, path + "::gz": true, path + "::gz::window,offset=4k,size=8k": false} {
		img, err := Open(t.Context(), text, o)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got := img.Stream != nil; got != stream {
			t.Errorf("%s: stream %v, want %v", text, got, stream)
		}
		if err := img.Close(); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}
