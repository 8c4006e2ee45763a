package chain

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
	"github.com/imgtool/imgtool/internal/peers"
)

// TestNullTarget runs the conformance suite over a target that keeps nothing.
func TestNullTarget(t *testing.T) {
	blocktest.Run(t, blocktest.Config{
		Size: 100_001, Forgets: true,
		New: func(t *testing.T) block.Device {
			d := &sink{Device: block.NewNull(0)}
			if err := d.Resize(t.Context(), 100_001); err != nil {
				t.Fatal(err)
			}
			return d
		},
	})
	for _, c := range []struct {
		text  string
		fixed bool
	}{{"null:", false}, {"null:1M", true}, {"NULL:", false}} {
		tg, err := Create(t.Context(), c.text, CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if tg.InPlace != c.fixed || tg.Device.Info().Caps.Resize == c.fixed {
			t.Errorf("%s: in place %v, %+v", c.text, tg.InPlace, tg.Device.Info())
		}
		if _, err := tg.Reopen(t.Context(), Options{Registry: formats.Registry{raw.Driver()}, Format: raw.Name}); (err == nil) != c.fixed {
			t.Errorf("%s: %v", c.text, err)
		}
		if err := tg.Commit(t.Context()); err != nil {
			t.Errorf("%s: %v", c.text, err)
		}
	}
}

// TestProgramAsImage opens, and writes to, servers that are started for it.
func TestProgramAsImage(t *testing.T) {
	peers.Need(t, "nbdkit")
	ctx := t.Context()
	path := write(t, "a disk", "DISK"+strings.Repeat("0123456789", 1000))
	text := Program([]string{"nbdkit", "file", path})
	img, err := Open(ctx, text, Options{Registry: registry()})
	if err != nil {
		t.Fatal(err)
	}
	if img.Format() != "disk" || img.Path != "" || SameFile(img, path) || img.Device.Info().InFlight == 0 {
		t.Errorf("%s, path %q, %+v", img.Format(), img.Path, img.Device.Info())
	}
	if err := img.Device.Write(ctx, []byte("x"), 0, 0); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("write: %v", err)
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	tg, err := Create(ctx, text, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !tg.InPlace || IsFile(text) {
		t.Error("it is taken for a new file")
	}
	if err := errors.Join(tg.Device.Write(ctx, []byte("new"), 3, 0), tg.Commit(ctx)); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); got != "DISnew23"+strings.Repeat("4567890123", 1000)[:len(got)-8] {
		t.Errorf("it holds %.20q...", got)
	}
	if _, err := Create(ctx, Program([]string{"nbdkit", "-r", "file", path}), CreateOptions{}); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("read-only: %v", err)
	}
}

// TestExportReferences: an image may refer to an export where the gate lets it, which then may not name local files; it starts no programs.
func TestExportReferences(t *testing.T) {
	peers.Need(t, "nbdkit")
	base := write(t, "base", "the base")
	socket := filepath.Join(filepath.Dir(base), "socket")
	cmd := peers.Command(t, "nbdkit", "-f", "-U", socket, "-r", "file", base)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // by a signal
	}()
	for range 1000 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	uri := "nbd+unix:///?socket=" + socket
	secret, script := write(t, "secret", "a:00"), write(t, "script", "#!/bin/sh\n>$0.ran\n")
	if err := os.Chmod(script, 0o700); err != nil {
		t.Fatal(err)
	}
	o := Options{Registry: formats.Registry{pointer(), raw.Driver()}, Gate: formats.DirGate}
	trusting := o
	trusting.Gate = formats.AllowAll
	for _, c := range []struct {
		ref  string
		o    Options
		want error // nil: it shows base
	}{
		{uri, o, block.ErrDenied},
		{uri, trusting, nil},
		{"nbd:unix:" + socket + ":exportname=", o, block.ErrDenied},
		{"nbd:unix:" + socket + ":exportname=", trusting, nil},
		{"nbds+unix:///?socket=" + socket + "&tls-psk-file=" + secret, trusting, block.ErrDenied},
		{"[" + script + "]", trusting, fs.ErrNotExist},
	} {
		img, err := Open(t.Context(), write(t, "top", "POINTER "+c.ref), c.o)
		switch {
		case !errors.Is(err, c.want):
			t.Errorf("%s: %v, want %v", c.ref, err, c.want)
		case err == nil:
			p := make([]byte, img.Device.Size())
			if err := img.Device.Read(t.Context(), p, 0); err != nil || !bytes.Equal(p, []byte("the base")) {
				t.Errorf("%s: it shows %q, %v", c.ref, p, err)
			}
			if err := img.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := os.Stat(script + ".ran"); err == nil {
		t.Error("an image has started a program")
	}
}
