package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// names returns what is in a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	ok(t, err)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func begun(t *testing.T, path string, o CreateOptions) *Pending {
	t.Helper()
	p, err := Create(path, o)
	ok(t, err)
	t.Cleanup(func() { p.Abort() })
	return p
}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	ok(t, err)
	return string(text)
}

func TestCommit(t *testing.T) {
	for _, sync := range []bool{false, true} {
		dir := t.TempDir()
		path := filepath.Join(dir, "new.img")
		p := begun(t, path, CreateOptions{Size: 5})
		if got := names(t, dir); len(got) != 1 || !strings.HasPrefix(got[0], ".new.img.imgtool-") {
			t.Fatalf("while pending the folder holds %v", got)
		}
		ok(t, p.Device().Write(t.Context(), []byte("abc"), 0, 0))
		ok(t, p.Commit(sync))
		if got := content(t, path); got != "abc\x00\x00" {
			t.Fatalf("content %q", got)
		}
		if got := names(t, dir); len(got) != 1 {
			t.Fatalf("left behind: %v", got)
		}
		want(t, p.Commit(sync), os.ErrClosed)
		ok(t, p.Abort())
		want(t, p.Device().Flush(t.Context()), os.ErrClosed)
		if content(t, path) == "" {
			t.Fatal("Abort after Commit removed the file")
		}
	}
}

func TestCommitReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.img")
	ok(t, os.WriteFile(path, []byte("old"), 0o640))
	ok(t, os.Chmod(path, 0o640))
	reader := open(t, path, Options{}) // may go on reading the old file
	p := begun(t, path, CreateOptions{})
	ok(t, p.Device().Write(t.Context(), []byte("new"), 0, 0))
	if got := content(t, path); got != "old" {
		t.Fatalf("before Commit: %q", got)
	}
	if runtime.GOOS == "windows" {
		ok(t, reader.Close()) // does not rename over open files
	}
	ok(t, p.Device().Close()) // as a driver does that owns what it writes to
	ok(t, p.Commit(true))
	if got := content(t, path); got != "new" {
		t.Fatalf("after Commit: %q", got)
	}
	info, err := os.Stat(path)
	ok(t, err)
	if runtime.GOOS != "windows" && info.Mode() != 0o640 {
		t.Fatalf("mode %v", info.Mode())
	}
}

func TestAbort(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.img")
	ok(t, os.WriteFile(path, []byte("old"), 0o644))
	p := begun(t, path, CreateOptions{Size: 1 << 20})
	ok(t, p.Abort())
	ok(t, p.Abort())
	want(t, p.Commit(false), os.ErrClosed)
	if got := names(t, dir); len(got) != 1 || content(t, path) != "old" {
		t.Fatalf("left behind: %v", got)
	}
}

func TestCommitFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.img")
	p := begun(t, path, CreateOptions{})
	ok(t, os.Mkdir(path, 0o755)) // in the way of the rename
	if err := p.Commit(false); err == nil {
		t.Fatal("renamed over a folder")
	}
	ok(t, p.Abort())
	if got := names(t, dir); len(got) != 1 {
		t.Fatalf("left behind: %v", got)
	}
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	var outside *block.RangeError
	if _, err := Create(filepath.Join(dir, "x"), CreateOptions{Size: -1}); !errors.As(err, &outside) {
		t.Errorf("a negative size: %v", err)
	}
	_, err := Create(dir, CreateOptions{})
	want(t, err, fs.ErrExist)
	_, err = Create(filepath.Join(dir, "no", "x"), CreateOptions{})
	want(t, err, fs.ErrNotExist)
	_, err = Create("", CreateOptions{})
	want(t, err, fs.ErrInvalid)
	if got := names(t, dir); len(got) != 0 {
		t.Fatalf("left behind: %v", got)
	}
}

func TestCreateLongName(t *testing.T) {
	dir := t.TempDir()
	name := strings.Repeat("é", 125)
	p := begun(t, filepath.Join(dir, name), CreateOptions{})
	ok(t, p.Commit(false))
	if got := names(t, dir); len(got) != 1 || got[0] != name {
		t.Fatalf("%v", got)
	}
}
