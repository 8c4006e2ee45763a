package peers

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Corpus is the folder of foreign images that IMGTOOL_CORPUS names.
type Corpus string

// OpenCorpus reads the manifest of the corpus into rows, a pointer to a slice of structs with the fields that the caller wants. It skips the test where
// IMGTOOL_CORPUS is not set.
func OpenCorpus(t testing.TB, rows any) Corpus {
	t.Helper()
	dir := folder(t, "IMGTOOL_CORPUS")
	text, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err == nil {
		err = json.Unmarshal(text, rows)
	}
	if err != nil {
		t.Fatalf("peers: the corpus: %v", err)
	}
	return Corpus(dir)
}

// File returns the path of a file of the corpus as it lies there, wrapped or not.
func (c Corpus) File(name string) string { return filepath.Join(string(c), name) }

// Unwrap puts the image that a file of the corpus holds into a folder of its own, and returns its path. The file's name tells whether it is
// wrapped in gzip or xz; holes of 64 KiB stay holes.
func (c Corpus) Unwrap(t testing.TB, name string) string {
	t.Helper()
	in, err := os.Open(c.File(name))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	base := filepath.Base(name)
	var from io.Reader = in
	switch ending := filepath.Ext(base); ending {
	case ".gz":
		base = strings.TrimSuffix(base, ending)
		if from, err = gzip.NewReader(in); err != nil {
			t.Fatal(err)
		}
	case ".xz":
		base = strings.TrimSuffix(base, ending)
		cmd := Command(t, "xz", "--decompress", "--stdout")
		cmd.Stdin = in
		if from, err = cmd.StdoutPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%s: xz: %v", name, err)
			}
		}()
	}
	path := filepath.Join(t.TempDir(), base)
	if err := writeSparse(path, from); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return path
}

// writeSparse makes a file of what r has, without its blocks of zeros.
func writeSparse(path string, r io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	p, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); ; {
		n, err := io.ReadFull(r, p)
		if !bytes.Equal(p[:n], zeros[:n]) {
			if _, err := f.WriteAt(p[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return errors.Join(f.Truncate(off), f.Close())
		case err != nil:
			return err
		}
	}
}
