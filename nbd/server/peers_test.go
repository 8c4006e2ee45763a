package server_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
	"github.com/imgtool/imgtool/source/file"
)

// served starts a server with d behind "" and "disk", and returns the URI of the default export.
func served(t *testing.T, d block.Device) string {
	t.Helper()
	_, dial := serve(t, server.Config{
		Open: func(_ context.Context, c server.Client) (*server.Export, error) {
			if c.Export != "" && c.Export != "disk" {
				return nil, server.ErrUnknownExport
			}
			return &server.Export{Device: d, Name: "disk", Description: "a test disk", MultiConn: true, Depth: true}, nil
		},
		List: list("disk"),
	})
	return "nbd+unix:///?socket=" + dial().RemoteAddr().String()
}

// patchy returns a device with data here and there, and its content.
func patchy(t *testing.T, size int64) (*block.Memory, []byte) {
	t.Helper()
	d, content := block.NewMemory(size), make([]byte, size)
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		n := rnd.Int64N(200<<10) + 1
		off := rnd.Int64N(size - n)
		p := bytes.Repeat([]byte{byte(rnd.IntN(255)) + 1}, int(n))
		copy(content[off:], p)
		check(t, d.Write(context.Background(), p, off, 0))
	}
	return d, content
}

func TestNbdinfo(t *testing.T) {
	d, _ := patchy(t, 16<<20)
	uri := served(t, d)
	out := string(peers.Run(t, "nbdinfo", "--json", uri))
	for _, want := range []string{
		`"structured": true`, `"export-size": 16777216`, `"description": "a test disk"`, `"qemu:allocation-depth"`, `"base:allocation"`, `"can_df": true`,
		`"can_fast_zero": true`, `"can_multi_conn": true`, `"block_size_minimum": 1`, `"block_size_maximum": 33554432`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("nbdinfo --json lacks %s:\n%s", want, out)
		}
	}
	if out := string(peers.Run(t, "nbdinfo", "--list", uri)); !strings.Contains(out, `export="disk"`) || !strings.Contains(out, "about disk") {
		t.Errorf("nbdinfo --list:\n%s", out)
	}
	if err := peers.Command(t, "nbdinfo", strings.Replace(uri, "///?", "///other?", 1)).Run(); err == nil {
		t.Error("nbdinfo of an export that is not there succeeds")
	}
	ours := ""
	for off := int64(0); off < 16<<20; {
		e, err := d.Extents(context.Background(), block.Map{}, off, 16<<20-off, nil)
		check(t, err)
		for _, e := range e {
			kind := "0  data"
			if e.Flags&block.ExtZero != 0 {
				kind = "3  hole,zero"
			}
			ours += fmt.Sprintf("%10d  %10d    %s\n", e.Off, e.Len, kind)
		}
		off = e[len(e)-1].End()
	}
	if theirs := string(peers.Run(t, "nbdinfo", "--map", uri)); theirs != ours {
		t.Errorf("nbdinfo --map:\n%swant\n%s", theirs, ours)
	}
}

// TestCopies copies with other programs, there and back, over memory and over a file.
func TestCopies(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	for _, kind := range []string{"memory", "file"} {
		t.Run(kind, func(t *testing.T) {
			d, content := patchy(t, size)
			var dev block.Device = d
			dir := t.TempDir()
			if kind == "file" {
				name := filepath.Join(dir, "disk")
				check(t, os.WriteFile(name, content, 0o600))
				f, err := file.Open(context.Background(), name, file.Options{Write: true})
				check(t, err)
				t.Cleanup(func() { check(t, f.Close()) })
				dev = f
			}
			uri := served(t, dev)
			same := func(what string) {
				t.Helper()
				got := make([]byte, size)
				check(t, dev.Read(context.Background(), got, 0))
				if !bytes.Equal(got, content) {
					t.Errorf("%s: the content is another", what)
				}
			}
			for i, command := range [][]string{
				{"nbdcopy", uri, "OUT"}, {"nbdcopy", "OUT", uri}, {"nbdcopy", "--synchronous", "--request-size=4096", uri, "OUT"},
				{"nbdcopy", "--request-size=33554432", uri, "OUT"}, {"nbdcopy", uri, uri},
				{"qemu-img", "convert", "-f", "raw", "-O", "raw", uri, "OUT"}, {"qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "OUT", uri},
				{"qemu-img", "compare", "-f", "raw", "-F", "raw", uri, "OUT"},
			} {
				out := filepath.Join(dir, "out")
				for j := range command {
					command[j] = strings.ReplaceAll(command[j], "OUT", out)
				}
				peers.Run(t, command[0], command[1:]...)
				if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d: %v: the copy is wrong (%v)", i, command, err)
				}
				same(fmt.Sprint(command))
			}
		})
	}
}

func TestQemu(t *testing.T) {
	t.Parallel()
	d, _ := patchy(t, 8<<20)
	uri := served(t, d)
	out := string(peers.Run(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 3M", "-c", "read -P 0x5a 1M 3M", "-c", "write -f -P 0x77 0 512",
		"-c", "write -z 2M 1M", "-c", "read -P 0 2M 1M", "-c", "write -zu 3M 64k", "-c", "discard 5M 1M", "-c", "flush", "-c", "read -P 0x77 0 512",
		"-c", "aio_write -P 9 6M 1M", "-c", "aio_read -P 0x5a 1M 1M", "-c", "aio_flush", "-c", "read -P 9 6M 1M", uri))
	if strings.Contains(out, "fail") || strings.Count(out, "ops") < 9 {
		t.Errorf("qemu-io:\n%s", out)
	}
	if out := string(peers.Run(t, "qemu-img", "map", "--output=json", "-f", "raw", uri)); !strings.Contains(out, `"start": 3145728, "length": 65536, "depth": 0, "present": true, "zero": true`) {
		t.Errorf("qemu-img map:\n%s", out)
	}
}

func TestNbdsh(t *testing.T) {
	d, _ := patchy(t, 8<<20)
	uri := served(t, d)
	t.Setenv("PATH", "/usr/bin:"+os.Getenv("PATH")) // the Python of the distribution has the module
	out := string(peers.Run(t, "nbdsh", "-c", "uri = '"+uri+"'", "-c", `
h.set_opt_mode(True)
h.add_meta_context("base:allocation")
h.connect_uri(uri)
names = []
h.opt_list(lambda name, desc: names.append((name, desc)))
print(names)
h.opt_info()
print(h.get_size(), h.get_block_size(nbd.SIZE_MAXIMUM), h.get_canonical_export_name())
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
print(contexts)
h.set_export_name("other")
try:
    h.opt_info()
except nbd.Error as e:
    print("unknown:", e.errno)
h.set_export_name("")
h.opt_go()
h.set_strict_mode(0)
for f in (lambda: h.pread(512, 8 << 20), lambda: h.pwrite(b"x" * 512, 8 << 20), lambda: h.trim(512, 8 << 20), lambda: h.zero(512, 8 << 20),
          lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE), lambda: h.pread(33 << 20, 0)):
    try:
        f()
        print("ok")
    except nbd.Error as e:
        print(e.errno)
h.pwrite(b"abc", 100, nbd.CMD_FLAG_FUA)
print(bytes(h.pread(3, 100)))
chunks = []
h.pread_structured(3, 100, lambda b, o, s, e: chunks.append((bytes(b), o, s)), nbd.CMD_FLAG_DF)
print(chunks)
extents = []
h.block_status(1 << 20, 0, lambda ctx, o, e, err: extents.append((ctx, o, len(e))), nbd.CMD_FLAG_REQ_ONE)
print(extents)
h.cache(4096, 0)
h.shutdown()
`))
	want := `[('disk', 'about disk')]
8388608 33554432 disk
['base:allocation']
unknown: ENOENT
EINVAL
ENOSPC
EINVAL
ENOSPC
ENOTSUP
EINVAL
b'abc'
[(b'abc', 100, 1)]
[('base:allocation', 0, 2)]
`
	if out != want {
		t.Errorf("nbdsh:\n%swant\n%s", out, want)
	}
}

// TestFio checks what it has written, at several depths at a time.
func TestFio(t *testing.T) {
	t.Parallel()
	peers.Need(t, "fio")
	uri := served(t, block.NewMemory(16<<20))
	for _, args := range [][]string{
		{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--numjobs=1"}, {"--rw=randwrite", "--bsrange=512-300k", "--iodepth=8", "--numjobs=1"},
		{"--rw=write", "--bs=1m", "--iodepth=4", "--numjobs=1"},
	} {
		peers.Run(t, "fio", append(args, "--name=x", "--ioengine=nbd", "--uri="+uri, "--size=16m", "--verify=crc32c", "--do_verify=1", "--thread",
			"--verify_fatal=1", "--verify_state_save=0")...)
	}
}

func TestNbdClient(t *testing.T) {
	s := server.New(server.Config{Open: fixed(block.NewMemory(0)), List: list("one", "two")})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), l) }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	out := string(peers.Run(t, "nbd-client", "-l", "127.0.0.1", port))
	if !strings.Contains(out, "one") || !strings.Contains(out, "two") {
		t.Errorf("nbd-client -l:\n%s", out)
	}
	check(t, s.Shutdown(context.Background()))
	check(t, <-done)
}

// TestTruncatedFile: a file that became shorter is an error or the end of the connection, never other bytes.
func TestTruncatedFile(t *testing.T) {
	const size = 4 << 20
	name := filepath.Join(t.TempDir(), "disk")
	check(t, os.WriteFile(name, bytes.Repeat([]byte("x"), size), 0o600))
	f, err := file.Open(context.Background(), name, file.Options{NoLock: true})
	check(t, err)
	defer f.Close()
	_, dial := serve(t, server.Config{Open: fixed(f)})
	reads := []wire.Request{{Type: wire.CmdRead, Length: size}, {Type: wire.CmdRead, Offset: size/2 - 100<<10, Length: 200 << 10}}
	for _, mode := range modes {
		p := dial().enter(mode, "")
		for _, r := range reads {
			if a := p.do(r); a.errno != 0 || len(a.data) != int(r.Length) || bytes.Trim(a.data, "x") != nil {
				t.Fatalf("%s: before: %v, %d bytes", mode, a.errno, len(a.data))
			}
		}
	}
	check(t, os.Truncate(name, size/2+1000))
	for _, mode := range modes {
		p := dial().enter(mode, "")
		for _, r := range reads {
			if a := p.do(r); a.errno == 0 || bytes.Trim(a.data, "x") != nil {
				t.Errorf("%s: %v, %d bytes", mode, a.errno, len(a.data))
			}
			p.alive()
		}
	}
}
