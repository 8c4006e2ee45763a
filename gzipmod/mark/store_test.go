package mark

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var ctx = context.Background()

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.gz")
	check(t, os.WriteFile(path, nil, 0o666))
	m := File(path)
	marked := func(m Store, want string) {
		t.Helper()
		there, err := Exists(ctx, m)
		check(t, err)
		p, err := m.Load(ctx)
		check(t, err)
		if string(p) != want || there != (p != nil) {
			t.Errorf("the mark is %q, there %v; want %q", p, there, want)
		}
	}
	marked(m, "")
	check(t, m.Clear(ctx))
	check(t, m.Save(ctx, []byte("one")))
	check(t, m.Append(ctx, []byte("two")))
	marked(m, "onetwo")
	if err := File(path).Save(ctx, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second mark: %v", err)
	}
	marked(m, "onetwo")

	// The same image under another name.
	link := filepath.Join(t.TempDir(), "link.gz")
	if err := os.Symlink(path, link); err == nil {
		marked(File(link), "onetwo")
	}
	check(t, File(path).Clear(ctx))
	check(t, m.Clear(ctx))
	marked(m, "")
	// A mark that leads elsewhere is not written through.
	victim := filepath.Join(dir, "victim")
	if err := os.Symlink(victim, path+Suffix); err == nil {
		if _, err := Exists(ctx, m); err == nil {
			t.Error("a symbolic link is a mark")
		}
		if err := m.Save(ctx, []byte("x")); err == nil {
			t.Error("a mark was saved through a symbolic link")
		}
		if _, err := os.Lstat(victim); err == nil {
			t.Error("a file was made elsewhere")
		}
	}
	marked(File(filepath.Join(dir, strings.Repeat("n", 250))), "")
}
