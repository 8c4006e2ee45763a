package chain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
)

// pointer is a format that only shows another file: "POINTER name format".
func pointer() formats.Driver {
	const magic = "POINTER "
	return formats.Driver{
		Name: "pointer",
		Probe: func(h formats.Head) formats.Score {
			return map[bool]formats.Score{true: formats.Likely}[h.HasPrefix(magic)]
		},
		Open: func(ctx context.Context, dev block.Device, o formats.OpenOptions) (block.Device, error) {
			p := make([]byte, dev.Size())
			if err := dev.Read(ctx, p, 0); err != nil {
				return nil, err
			}
			name, format, _ := strings.Cut(strings.TrimPrefix(string(p), magic), " ")
			d, err := o.Refer.Open(ctx, formats.Ref{Kind: "backing file", Name: name, Format: format, From: o.Name}, o.Write)
			if err != nil {
				return nil, errors.Join(err)
			}
			return d, dev.Close()
		},
	}
}

func TestReferences(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	base := write("sub/base.raw", "POINTER looks like one")
	write("sub/next", "POINTER base.raw raw")
	write("loop/a", "POINTER b")
	write("loop/b", "POINTER c pointer")
	write("loop/c", "POINTER a")
	for i := range maxDepth + 2 {
		write(fmt.Sprintf("deep/%d", i), fmt.Sprintf("POINTER %d", i+1))
	}
	o := Options{Registry: formats.Registry{pointer(), raw.Driver()}, Gate: formats.DirGate}
	trusting := o
	trusting.Gate = formats.AllowAll
	for _, c := range []struct {
		name, content string
		o             Options
		want          error // nil: it shows base
	}{
		{"plain", "POINTER sub/base.raw raw", o, nil},
		{"two", "POINTER sub/next", o, nil}, // its own reference is relative to its own folder
		{"named", "POINTER sub/next pointer", o, nil},
		{"inner", "POINTER sub/base.raw", o, fs.ErrNotExist}, // sniffed, it is a pointer itself
		{"absolute", "POINTER " + base + " raw", o, block.ErrDenied},
		{"trusted", "POINTER " + base + " raw", trusting, nil},
		{"url", "POINTER file:" + base + " raw", trusting, nil},
		{"json", `POINTER json:{"file.filename":"sub/base.raw"}`, trusting, errors.ErrUnsupported},
		{"up", "POINTER ../x", o, block.ErrDenied},
		{"unknown", "POINTER sub/base.raw vdi", o, errors.ErrUnsupported},
		{"nothing", "POINTER sub/absent raw", o, fs.ErrNotExist},
		{"circle", "POINTER loop/a", o, block.ErrDenied},
		{"far", "POINTER deep/0", o, block.ErrDenied},
		{"nul", "POINTER sub/base.raw\x00x", trusting, block.ErrDenied},
	} {
		img, err := Open(t.Context(), write(c.name, c.content), c.o)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if err != nil {
			if !strings.HasPrefix(err.Error(), filepath.Join(dir, c.name)+": ") {
				t.Errorf("%s: the image is not named: %v", c.name, err)
			}
			if n := strings.Count(err.Error(), dir); n > 3 {
				t.Errorf("%s: %d names of files: %v", c.name, n, err)
			}
			continue
		}
		p := make([]byte, img.Device.Size())
		if err := img.Device.Read(t.Context(), p, 0); err != nil || string(p) != "POINTER looks like one" {
			t.Errorf("%s: it shows %q, %v", c.name, p, err)
		}
		if err := img.Close(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestAlone opens images whose backing file is missing, or not allowed, as if it were empty.
func TestAlone(t *testing.T) {
	for _, name := range []string{"absent", "/etc/passwd", "nbd://host/x"} {
		path := write(t, "top", "POINTER "+name)
		img, err := OpenFile(t.Context(), path, Options{Registry: formats.Registry{pointer(), raw.Driver()}, Alone: true})
		if err != nil {
			t.Fatal(err)
		}
		if n := img.Device.Size(); n != 0 {
			t.Errorf("%s: %d bytes", name, n)
		}
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestPathThroughLink: what .. leads to depends on the file system, which has links.
func TestPathThroughLink(t *testing.T) {
	for _, c := range []struct{ from, name, want string }{
		{"sub/over", "../base", "sub/../base"}, {"over", "base", "base"}, {"/x/over", "base", "/x/base"}, {"x", "nbd://h/y", "nbd://h/y"}, {"x", "nbd:h:1:exportname=y", "nbd://h:1/y"}, {"x/y", "[ sh ]", "x/[ sh ]"},
		{"sub/over", "/y/base", "/y/base"}, {"sub/over", "file:base", "sub/base"},
	} {
		if got, err := Path(formats.Ref{Kind: "backing file", Name: c.name, From: c.from}); got != c.want || err != nil {
			t.Errorf("%s of %s: %q, %v", c.name, c.from, got, err)
		}
	}
}

// TestLoop opens images that refer to themselves: the error says by way of how many, and names a file once.
func TestLoop(t *testing.T) {
	dir := t.TempDir()
	for name, to := range map[string]string{"self": "self", "a": "b pointer", "b": "a", "x": "a", "c": "d", "d": "e", "e": "c"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("POINTER "+to), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Registry: formats.Registry{pointer(), raw.Driver()}, Gate: formats.DirGate}
	for name, want := range map[string]string{
		"self": "self: the image refers to itself",
		"a":    "a: the image refers to itself, by way of 1 other",
		"c":    "c: the image refers to itself, by way of 2 others",
		"x":    "x: DIR/a: the image refers to itself, by way of 1 other",
	} {
		for _, noLock := range []bool{true, false} {
			o.NoLock, o.Write = noLock, !noLock // its own lock does not keep it from being found
			_, err := OpenFile(t.Context(), filepath.Join(dir, name), o)
			want := filepath.Join(dir, strings.Replace(want, "DIR", dir, 1))
			if !errors.Is(err, ErrLoop) || !errors.Is(err, block.ErrDenied) || err.Error() != want {
				t.Errorf("%s: %v, want %s", name, err, want)
			}
		}
	}
}
