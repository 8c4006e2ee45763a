package chain

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
)

var _ formats.Store = (*Target)(nil)

// files returns the names in a folder, in order.
func files(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func read(t *testing.T, path string) string {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// target opens a target and gives it the content through the raw format.
func target(t *testing.T, path, data string, o CreateOptions) *Target {
	t.Helper()
	ctx := context.Background()
	tg, err := Create(ctx, path, o)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := raw.Driver().Create(ctx, tg, formats.CreateOptions{Size: int64(len(data))})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(dev.Write(ctx, []byte(data), 0, 0), dev.Close()); err != nil {
		t.Fatal(err)
	}
	return tg
}

func TestCreateFile(t *testing.T) {
	ctx := context.Background()
	for _, sync := range []bool{false, true} {
		dir := t.TempDir()
		path := filepath.Join(dir, "disk.img")
		tg := target(t, path, "hello", CreateOptions{Sync: sync})
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) || tg.InPlace || tg.Name() != "disk.img" {
			t.Errorf("the file has its name before Commit: %v", err)
		}
		if err := tg.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		if got := read(t, path); got != "hello" || files(t, dir) != "disk.img" {
			t.Errorf("content %q, files %s", got, files(t, dir))
		}
		if err := tg.Abort(); err != nil || read(t, path) != "hello" {
			t.Errorf("Abort after Commit: %v", err)
		}
		if err := tg.Commit(ctx); !errors.Is(err, os.ErrClosed) {
			t.Errorf("second Commit: %v", err)
		}

		tg = target(t, path, "other", CreateOptions{Sync: sync})
		if read(t, path) != "hello" {
			t.Error("the old file is touched before Commit")
		}
		if err := errors.Join(tg.Abort(), tg.Abort()); err != nil {
			t.Error(err)
		}
		if got := read(t, path); got != "hello" || files(t, dir) != "disk.img" {
			t.Errorf("after Abort: content %q, files %s", got, files(t, dir))
		}
		if _, err := tg.Create(ctx, "x"); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Create after Abort: %v", err)
		}
	}
}

func TestCreateCancelled(t *testing.T) {
	dir := t.TempDir()
	tg := target(t, filepath.Join(dir, "disk.img"), "hello", CreateOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := tg.Commit(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Commit: %v", err)
	}
	if err := tg.Abort(); err != nil || files(t, dir) != "" {
		t.Errorf("Abort: %v, files %s", err, files(t, dir))
	}
}

func TestCreateSeveralFiles(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.vmdk")
	begin := func() *Target {
		tg := target(t, path, "descriptor", CreateOptions{})
		dev, err := tg.Create(ctx, "disk-flat.vmdk")
		if err != nil {
			t.Fatal(err)
		}
		if err := dev.Write(ctx, []byte("extent"), 0, 0); err != nil {
			t.Fatal(err)
		}
		return tg
	}
	tg := begin()
	for _, name := range []string{"disk-flat.vmdk", "disk.vmdk", ""} {
		if _, err := tg.Create(ctx, name); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a second %q: %v", name, err)
		}
	}
	for _, name := range []string{"../x", "a/b", ".", "..", "/x"} {
		if _, err := tg.Create(ctx, name); err == nil {
			t.Errorf("file %q is made", name)
		}
	}
	if err := tg.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if files(t, dir) != "disk-flat.vmdk disk.vmdk" || read(t, filepath.Join(dir, "disk-flat.vmdk")) != "extent" {
		t.Errorf("files %s", files(t, dir))
	}

	// The image itself is named last. Where that fails, nothing is left of the new image.
	if err := errors.Join(os.Remove(path), os.Remove(filepath.Join(dir, "disk-flat.vmdk"))); err != nil {
		t.Fatal(err)
	}
	tg = begin()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	err := tg.Commit(ctx)
	if err == nil || !strings.HasPrefix(err.Error(), path+": ") {
		t.Errorf("Commit over a folder: %v", err)
	}
	if files(t, dir) != "disk.vmdk" {
		t.Errorf("after a failed Commit: %s", files(t, dir))
	}
}

func TestCreateInPlace(t *testing.T) {
	ctx := context.Background()
	path := write(t, "disk.img", "0123456789")
	tg := target(t, path, "hello", CreateOptions{InPlace: true})
	if !tg.InPlace {
		t.Error("not in place")
	}
	if _, err := tg.Create(ctx, "x"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a second file: %v", err)
	}
	if err := tg.Device.Resize(ctx, 3); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Resize: %v", err)
	}
	if err := tg.Commit(ctx); err != nil || read(t, path) != "hello56789" {
		t.Errorf("Commit: %v, content %q", err, read(t, path))
	}

	tg, err := Create(ctx, path, CreateOptions{InPlace: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := raw.Driver().Create(ctx, tg, formats.CreateOptions{Size: 11}); err == nil || !strings.Contains(err.Error(), "10 bytes, the image 11") {
		t.Errorf("an image that does not fit: %v", err)
	}
	if err := tg.Abort(); err != nil || read(t, path) != "hello56789" {
		t.Errorf("Abort: %v, content %q", err, read(t, path))
	}
	if _, err := Create(ctx, path+"x", CreateOptions{InPlace: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in place where nothing is: %v", err)
	}
}

func TestCreateStdout(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tg, err := Create(context.Background(), "-", CreateOptions{Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	if tg.Device != nil || tg.Writer == nil {
		t.Fatal("standard output is not a writer")
	}
	if _, err := tg.Create(context.Background(), ""); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Create: %v", err)
	}
	if _, err := io.WriteString(tg.Writer, "hello"); err != nil {
		t.Error(err)
	}
	if err := tg.Commit(context.Background()); err != nil {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error("standard output is closed already:", err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := tg.Writer.Write([]byte("x")); err == nil || !strings.HasPrefix(err.Error(), "standard output: write: ") {
		t.Errorf("write to a closed pipe: %v", err)
	}
}

// TestCreateCharacterDevice writes to a path that goes one way.
func TestCreateCharacterDevice(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // it has no such paths
	}
	tg, err := Create(context.Background(), os.DevNull, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := tg.Writer.Write(bytes.Repeat([]byte("x"), 100)); n != 100 || err != nil {
		t.Errorf("%d bytes written, %v", n, err)
	}
	if err := errors.Join(tg.Commit(context.Background()), tg.Abort()); err != nil {
		t.Error(err)
	}
	if _, err := tg.Writer.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write after Commit: %v", err)
	}
}

func TestCreateErrors(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		text  string
		usage bool
		is    error
		want  string
	}{
		{"", true, nil, "names no image"},
		{"x::qcow2", true, nil, "-O"},
		{"pattern:1M", true, nil, "cannot be a target"},
		{"null:1x", true, nil, "1x"},
		{"https://host/x", true, nil, "cannot be a target"},
		{"ssh://host/x", true, nil, "not a kind of source"},
		{"[ ]", true, nil, "no program"},
		{filepath.Join(dir, "no", "x"), false, fs.ErrNotExist, filepath.Join(dir, "no", "x") + ": "},
		{dir, false, nil, dir + ": "},
	} {
		_, err := Create(context.Background(), c.text, CreateOptions{})
		var u *UsageError
		switch {
		case err == nil:
			t.Errorf("%s can be made", c.text)
		case errors.As(err, &u) != c.usage || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: %v; want %s", c.text, err, c.want)
		}
	}
	if files(t, dir) != "" {
		t.Errorf("left behind: %s", files(t, dir))
	}
}

func TestSameFile(t *testing.T) {
	ctx := context.Background()
	path := write(t, "image", "hello")
	other := write(t, "image", "hello")
	link := filepath.Join(filepath.Dir(path), "link")
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	img, err := Open(ctx, path, Options{Registry: registry()})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if !SameFile(img, link) || SameFile(img, other) || SameFile(img, path+"x") {
		t.Error("files are confused")
	}
	if err := img.Device.Write(ctx, nil, 0, 0); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("write: %v", err)
	}
}
