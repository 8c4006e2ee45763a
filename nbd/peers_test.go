package nbd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/nbd"
)

// positions is the content of nbdkit's pattern plugin: every eight bytes are their offset.
type positions struct{}

func (positions) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		at := off + int64(i)
		p[i] = byte(at &^ 7 >> (8 * (7 - at&7)))
	}
	return len(p), nil
}

// TestReadOnlyPeers reads what peers of every age export.
func TestReadOnlyPeers(t *testing.T) {
	leaks(t)
	for name, args := range map[string][]string{
		"pattern":              {"pattern"},
		"oldstyle":             {"-r", "-o", "pattern"},
		"newstyle":             {"-r", "--mask-handshake=0", "pattern"},
		"simple replies":       {"-r", "--no-sr", "pattern"},
		"small requests":       {"-r", "--filter=blocksize-policy", "pattern", "blocksize-minimum=512", "blocksize-preferred=512", "blocksize-maximum=1024", "blocksize-error-policy=error"},
		"one client at a time": {"-r", "--filter=limit", "pattern", "limit=1"},
		"late":                 {"-r", "--filter=delay", "pattern", "delay-read=1ms", "delay-extents=1ms"},
	} {
		t.Run(name, func(t *testing.T) {
			size := int64(1 << 16)
			uri := func(t *testing.T) string {
				return nbdkit(t, append(args[:len(args):len(args)], fmt.Sprint("size=", size))...)
			}
			blocktest.Run(t, blocktest.Config{Size: size, Ops: 20, ReadOnly: true, Content: positions{}, New: func(t *testing.T) block.Device {
				return dial(t, uri(t), nbd.Options{ReadOnly: true})
			}})
		})
	}
}

// TestErrors: an error of a peer comes back as one, and the next request may work.
func TestErrors(t *testing.T) {
	leaks(t)
	ctx := t.Context()
	trigger := filepath.Join(t.TempDir(), "fail")
	uri := nbdkit(t, "--filter=error", "memory", "1M", "error=ENOSPC", "error-rate=100%", "error-file="+trigger)
	d := dial(t, uri, nbd.Options{})
	p := make([]byte, 4096)
	for range 2 {
		if err := errors.Join(d.Read(ctx, p, 0), d.Write(ctx, p, 0, block.FUA), d.Zero(ctx, 0, 4096, 0), d.Flush(ctx)); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(trigger, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for name, err := range map[string]error{
			"read": d.Read(ctx, p, 0), "write": d.Write(ctx, p, 0, 0), "zero": d.Zero(ctx, 0, 4096, 0), "discard": d.Discard(ctx, 0, 4096),
		} {
			if err == nil || !strings.Contains(err.Error(), "no space left") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := d.Extents(ctx, block.Map{}, 0, 4096, nil); err == nil {
			t.Error("extents work")
		}
		os.Remove(trigger)
	}
}

// TestUnknownExport: an export that is not there is refused.
func TestUnknownExport(t *testing.T) {
	leaks(t)
	uri := nbdkit(t, "--filter=exportname", "memory", "1M", "exportname=right", "exportname-strict=true")
	if _, err := nbd.Dial(t.Context(), strings.Replace(uri, ":///", ":///wrong", 1), nbd.Options{}); err == nil {
		t.Error("an export that is not there can be opened")
	}
	dial(t, strings.Replace(uri, ":///", ":///right", 1), nbd.Options{})
}

// kinds returns the flags and the depths of a device's extents in words.
func kinds(t *testing.T, d block.Device, m block.Map) string {
	t.Helper()
	var words []string
	for e, err := range block.Walk(t.Context(), d, m, 0, d.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		word := fmt.Sprintf("%d+%d", e.Off>>10, e.Len>>10)
		for _, f := range []struct {
			flag block.ExtentFlags
			name string
		}{{block.ExtAlloc, "data"}, {block.ExtZero, "zero"}, {block.ExtDirty, "dirty"}} {
			if e.Flags&f.flag != 0 {
				word += " " + f.name
			}
		}
		if e.Depth > 0 {
			word += fmt.Sprint(" depth ", e.Depth)
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

// TestExtentsOfFile finds the holes of a file that nbdkit serves.
func TestExtentsOfFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt(bytes.Repeat([]byte{1}, 64<<10), 128<<10)
	f.Truncate(1 << 20)
	f.Close()
	d := dial(t, nbdkit(t, "file", path), nbd.Options{})
	if got, want := kinds(t, d, block.Map{}), "0+128 zero, 128+64 data, 192+832 zero"; got != want {
		t.Errorf("the extents are %s, want %s", got, want)
	}
}

// TestQemuNBD: a chain of two qcow2 images with a bitmap tells of depths and dirty ranges.
func TestQemuNBD(t *testing.T) {
	leaks(t)
	dir := t.TempDir()
	base, top, socket := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "top.qcow2"), filepath.Join(dir, "s")
	peers.Need(t, "qemu-nbd")
	peers.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", base, "1M")
	peers.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", "-c", "write -P 2 128k 64k", base)
	peers.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
	peers.Run(t, "qemu-img", "bitmap", "--add", top, "b0")
	peers.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 3 64k 128k", top)
	uri := spawn(t, socket, "qemu-nbd", "-t", "-e", "5", "-f", "qcow2", "-k", socket, "-A", "-B", "b0", "--", top)
	d := dial(t, uri, nbd.Options{Bitmaps: []string{"b0", "no such bitmap"}})
	if got, want := kinds(t, d, block.Map{}), "0+64 data depth 1, 64+128 data, 192+832 zero"; got != want {
		t.Errorf("the extents are %s, want %s", got, want)
	}
	if got, want := kinds(t, d, block.Map{Bitmap: "b0"}), "0+64, 64+128 dirty, 192+832"; got != want {
		t.Errorf("the bitmap is %s, want %s", got, want)
	}
	if _, err := d.Extents(t.Context(), block.Map{Bitmap: "no such bitmap"}, 0, 1, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a bitmap that is not there: %v", err)
	}
	var outside *block.RangeError
	if err := d.Read(t.Context(), make([]byte, 10), d.Size()); !errors.As(err, &outside) {
		t.Errorf("a read past the end: %v", err)
	}
}

// inMemory returns a folder of its own, where the system has it in memory: there are servers that ask the disk for durability at every turn.
func inMemory(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "imgtool-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestOtherServers runs the suite of every device over the servers of qemu and of the NBD project.
func TestOtherServers(t *testing.T) {
	leaks(t)
	const size = 1 << 18
	for name, start := range map[string]func(t *testing.T, socket, image string) string{
		"qemu-nbd": func(t *testing.T, socket, image string) string {
			return spawn(t, socket, "qemu-nbd", "-t", "-e", "5", "-f", "raw", "-k", socket, "--discard=unmap", "--", image)
		},
		"qemu-storage-daemon": func(t *testing.T, socket, image string) string {
			uri := spawn(t, socket, "qemu-storage-daemon", "--blockdev", "driver=file,node-name=f,filename="+image, "--nbd-server", "addr.type=unix,addr.path="+socket,
				"--export", "type=nbd,id=e,node-name=f,name=disk,writable=on")
			return strings.Replace(uri, ":///", ":///disk", 1)
		},
		"nbd-server": func(t *testing.T, socket, image string) string {
			conf := filepath.Join(filepath.Dir(socket), "conf")
			text := fmt.Sprintf("[generic]\nunixsock=%s\nallowlist=true\n[disk]\nexportname=%s\nflush=true\nfua=true\ntrim=true\n", socket, image)
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			uri := spawn(t, socket, "nbd-server", "-d", "-C", conf, "-p", filepath.Join(filepath.Dir(socket), "pid"))
			return strings.Replace(uri, ":///", ":///disk", 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			fresh := func(t *testing.T) block.Device {
				dir := t.TempDir()
				if name == "nbd-server" {
					dir = inMemory(t)
				}
				image := filepath.Join(dir, "image")
				if err := os.WriteFile(image, make([]byte, size), 0o600); err != nil {
					t.Fatal(err)
				}
				return dial(t, start(t, filepath.Join(dir, "s"), image), nbd.Options{})
			}
			c := blocktest.Config{Size: size, Ops: 20, New: fresh}
			if name != "nbd-server" {
				blocktest.Run(t, c)
				return
			}
			// It takes long to start and to flush.
			script := make([]byte, 2000)
			rand.NewChaCha8([32]byte{1}).Read(script)
			if err := blocktest.Drive(t.Context(), c, fresh(t), script); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPositions keeps this file's own idea of nbdkit's pattern right.
func TestPositions(t *testing.T) {
	p := make([]byte, 24)
	positions{}.ReadAt(p, 1<<20)
	if got := binary.BigEndian.Uint64(p[8:]); got != 1<<20+8 || !slices.Equal(p[:8], []byte{0, 0, 0, 0, 0, 0x10, 0, 0}) {
		t.Errorf("%x", p)
	}
}
