package peers

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// outcome records how a helper ended a test.
type outcome struct {
	testing.TB
	failed, skipped bool
	message         string
}

func (o *outcome) Helper() {}

func (o *outcome) Fatal(args ...any)              { o.end(&o.failed, args[0].(string)) }
func (o *outcome) Fatalf(format string, _ ...any) { o.end(&o.failed, format) }
func (o *outcome) Skip(args ...any)               { o.end(&o.skipped, args[0].(string)) }
func (o *outcome) Skipf(format string, _ ...any)  { o.end(&o.skipped, format) }
func (o *outcome) end(how *bool, message string)  { *how, o.message = true, message; runtime.Goexit() }

// watch calls f as a test would be called, and says how it ended.
func watch(t *testing.T, f func(testing.TB)) *outcome {
	o := &outcome{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(o)
	}()
	<-done
	return o
}

// emptyPath leaves nothing to find but what stands in the administrator's folders.
func emptyPath(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if !Missing("qemu-img") {
		t.Fatal("qemu-img was found outside PATH")
	}
}

func TestNeedSkipsWithThePackage(t *testing.T) {
	emptyPath(t)
	t.Setenv("IMGTOOL_PEERS", "")
	o := watch(t, func(t testing.TB) { Need(t, "qemu-img") })
	if !o.skipped || o.failed {
		t.Errorf("skipped %v, failed %v; want a skip", o.skipped, o.failed)
	}
	if !strings.Contains(o.message, "apt-get install qemu-utils") {
		t.Errorf("message %q does not name the package", o.message)
	}
}

func TestNeedFailsWhereRequired(t *testing.T) {
	emptyPath(t)
	t.Setenv("IMGTOOL_PEERS", "require")
	if o := watch(t, func(t testing.TB) { Need(t, "qemu-img") }); !o.failed || o.skipped {
		t.Errorf("skipped %v, failed %v; want a failure", o.skipped, o.failed)
	}
}

func TestNeedRefusesUnknownPrograms(t *testing.T) {
	if o := watch(t, func(t testing.TB) { Need(t, "no-such-program") }); !o.failed || o.skipped {
		t.Errorf("skipped %v, failed %v; want a failure", o.skipped, o.failed)
	}
}

func TestNeedAndRunFindAProgram(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // a script is not a program there
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "qemu-img")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$LC_ALL $*\"\nexit 0$CODE\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	if got := Need(t, "qemu-img"); got != script {
		t.Errorf("Need gave %s, want %s", got, script)
	}
	if got := string(Run(t, "qemu-img", "info", "x")); got != "C info x\n" {
		t.Errorf("Run gave %q", got)
	}
	t.Setenv("CODE", "3")
	if o := watch(t, func(t testing.TB) { Run(t, "qemu-img") }); !o.failed {
		t.Error("Run let exit code 3 pass")
	}
}

func TestFolders(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("IMGTOOL_IMAGES", dir)
	if got := Images(t); got != dir {
		t.Errorf("Images gave %s, want %s", got, dir)
	}
	t.Setenv("IMGTOOL_IMAGES", "")
	if o := watch(t, func(t testing.TB) { Images(t) }); !o.skipped {
		t.Error("Images did not skip where IMGTOOL_IMAGES is not set")
	}
	t.Setenv("IMGTOOL_IMAGES", filepath.Join(dir, "absent"))
	if o := watch(t, func(t testing.TB) { Images(t) }); !o.failed {
		t.Error("Images did not fail for a folder that does not exist")
	}
}

func TestCorpus(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("IMGTOOL_CORPUS", dir)
	write := func(name string, p []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var packed bytes.Buffer
	image := append(make([]byte, 200<<10), "the end"...)
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(image); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	write("a.img.gz", packed.Bytes())
	write("b.img", image)
	write("manifest.json", []byte(`[{"file": "a.img.gz", "note": "x"}, {"file": "b.img"}]`))
	var rows []struct{ File string }
	c := OpenCorpus(t, &rows)
	for _, r := range rows {
		path := c.Unwrap(t, r.File)
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, image) || filepath.Ext(path) != ".img" {
			t.Errorf("%s: %d bytes in %s, %v", r.File, len(got), path, err)
		}
	}
	if len(rows) != 2 {
		t.Errorf("rows %v", rows)
	}
	t.Setenv("IMGTOOL_CORPUS", "")
	if o := watch(t, func(t testing.TB) { OpenCorpus(t, &rows) }); !o.skipped {
		t.Error("OpenCorpus did not skip where IMGTOOL_CORPUS is not set")
	}
}

func TestPackages(t *testing.T) {
	all := Packages(func(string) bool { return true })
	if !slices.IsSorted(all) || len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Errorf("packages are not sorted, or repeat: %v", all)
	}
	if got := Packages(func(p string) bool { return p == "nbdinfo" || p == "nbdcopy" }); !slices.Equal(got, []string{"libnbd-bin"}) {
		t.Errorf("nbdinfo and nbdcopy come from %v", got)
	}
	for program := range soak {
		if packages[program] == "" {
			t.Errorf("%s is in soak, but not in the table", program)
		}
	}
}
