package chain

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats/all"
)

// TestCowConformance runs the conformance suite over throw-away writes.
func TestCowConformance(t *testing.T) {
	path := write(t, "x.raw", string(make([]byte, 100_001)))
	blocktest.Run(t, blocktest.Config{
		Size: 100_001,
		New: func(t *testing.T) block.Device {
			img, err := Open(t.Context(), path+"::raw::cow", Options{Registry: all.Drivers(), Write: true})
			if err != nil {
				t.Fatal(err)
			}
			return img.Device
		},
	})
}

// TestCow writes over images that may not be written, and finds them unchanged and nothing left behind.
func TestCow(t *testing.T) {
	path := write(t, "x.img", "WRAPDISKpayload")
	if err := os.Chmod(path, 0o444); err != nil {
		t.Fatal(err)
	}
	temp := t.TempDir()
	for _, text := range []string{path + "::cow,dir=" + temp, path + "::raw::cow,dir=" + temp + "::wrap", "pattern:16::cow"} {
		img, err := Open(t.Context(), text, Options{Registry: registry(), Write: true})
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if err := img.Device.Write(t.Context(), []byte("new"), 2, block.FUA); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		p := make([]byte, 3)
		if err := img.Device.Read(t.Context(), p, 2); err != nil || string(p) != "new" {
			t.Errorf("%s: %q, %v", text, p, err)
		}
		if err := errors.Join(img.Device.Flush(t.Context()), img.Close()); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if !slices.Contains(img.Layers, LayerInfo{"cow", Given}) {
			t.Errorf("%s: layers %v", text, img.Layers)
		}
	}
	if p, err := os.ReadFile(path); string(p) != "WRAPDISKpayload" {
		t.Errorf("%q, %v", p, err)
	}
	if names, _ := os.ReadDir(temp); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}

// TestCowReading opens for reading: there is nothing to throw away, and no file is made for it.
func TestCowReading(t *testing.T) {
	img, err := Open(t.Context(), write(t, "x.img", "payload")+"::raw::cow,dir=/missing", Options{Registry: all.Drivers()})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if img.Device.Info().Caps.Write {
		t.Error("it can be written")
	}
}

func TestCowErrors(t *testing.T) {
	_, err := Open(t.Context(), "pattern:1M::cow,dir="+filepath.Join(t.TempDir(), "missing"), Options{Registry: all.Drivers(), Write: true})
	if !errors.Is(err, fs.ErrNotExist) || hint(err) == "" {
		t.Errorf("no folder: %v", err)
	}
	for _, text := range []string{"pattern:1M::cow=x", "pattern:1M::cow,size=1"} {
		if _, err := Open(t.Context(), text, Options{Registry: all.Drivers()}); !errors.As(err, new(*UsageError)) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestOpenIn opens files of a folder, and nothing outside it.
func TestOpenIn(t *testing.T) {
	outside := write(t, "outside", "payload")
	dir := t.TempDir()
	for name, content := range map[string]string{"x.img": "WRAPDISKpayload", ":: -": "WRAPDISKpayload"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o666); err != nil {
			t.Skip(err) // a name that this system does not have
		}
	}
	for to, name := range map[string]string{"x.img": "inside", outside: "absolute", "../" + filepath.Base(filepath.Dir(outside)): "up"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Skip(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o777); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, want := range map[string]bool{
		"x.img": true, ":: -": true, "inside": true, "absolute": false, "up": false, "folder": false, "missing": false, "../" + filepath.Base(dir) + "/x.img": false,
	} {
		for _, writable := range []bool{false, true} {
			img, err := OpenIn(t.Context(), root, name, Options{Registry: registry(), Write: writable})
			if err != nil {
				if want || !errors.As(err, new(*Error)) {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			if !want || img.Format() != "disk" || img.Path != filepath.Join(dir, name) || img.Device.Size() != int64(len("payload")) {
				t.Errorf("%s: %s, %s, %d", name, img.Format(), img.Path, img.Device.Size())
			}
			if err := img.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
