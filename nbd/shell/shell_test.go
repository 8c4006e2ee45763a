package shell_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/secure/securetest"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/shell"
	"github.com/imgtool/imgtool/nbd/wire"
)

// ours starts this module's server and returns a URI for it.
func ours(t *testing.T) string { return serve(t, nil) }

func serve(t *testing.T, tls *secure.Server) string {
	t.Helper()
	d := block.NewMemory(1 << 20)
	s := server.New(server.Config{
		TLS: tls,
		Open: func(context.Context, server.Client) (*server.Export, error) {
			return &server.Export{Device: d, Depth: true}, nil
		},
		List: func(context.Context, server.Client) ([]server.Listing, error) {
			return []server.Listing{{Name: "disk", Description: "a disk"}}, nil
		},
	})
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s.Shutdown(ctx)
		<-served
	})
	return "nbd+unix:///disk?socket=" + socket
}

// nbdkit starts that server and returns a URI for it.
func nbdkit(t *testing.T) string { return kit(t, "memory", "1M") }

func kit(t *testing.T, args ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	cmd := peers.Command(t, "nbdkit", append([]string{"-f", "-U", socket}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
	})
	for range 1000 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return "nbd+unix:///?socket=" + socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nbdkit does not listen")
	return ""
}

var servers = []struct {
	name  string
	start func(*testing.T) string
}{{"imgtool", ours}, {"nbdkit", nbdkit}}

// TestScripts runs the scripts of testdata against both servers.
func TestScripts(t *testing.T) {
	for _, server := range servers {
		t.Run(server.name, func(t *testing.T) {
			uri := server.start(t)
			before := runtime.NumGoroutine()
			for _, name := range []string{"transmission.star", "negotiation.star"} {
				script, err := os.ReadFile(filepath.Join("testdata", name))
				if err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				s := shell.New(&out, true)
				s.Handle().AddContext(wire.BaseAllocation)
				if err := s.Connect(t.Context(), uri); err != nil {
					t.Fatal(err)
				}
				if err := s.Run(t.Context(), "setup", fmt.Appendf(nil, "URI = %q", uri)); err != nil {
					t.Fatal(err)
				}
				if err := s.Run(t.Context(), name, script); err != nil {
					t.Errorf("%v\n%s", err, &out)
				}
				s.Close()
			}
			settle(t, before)
		})
	}
}

// TestOurScripts runs the scripts that need what nbdkit has not.
func TestOurScripts(t *testing.T) {
	authority := securetest.New(t)
	certificates, err := secure.NewServer(secure.ServerConfig{Certificates: authority.Dir})
	if err != nil {
		t.Fatal(err)
	}
	for name, setup := range map[string]string{
		"extended.star": `h.set_request_extended_headers(False); h.set_request_structured_replies(False); h.set_opt_mode(True); h.connect_uri(URI)`,
		"tls.star":      ``,
	} {
		script, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		s := shell.New(io.Discard, true)
		setup = fmt.Sprintf("URI, CERTIFICATES = %q, %q\n", serve(t, certificates), authority.Dir) + setup
		if err := s.Run(t.Context(), "setup", []byte(setup)); err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context(), name, script); err != nil {
			t.Error(err)
		}
		s.Close()
	}
}

// settle fails the test where goroutines are left behind.
func settle(t *testing.T, before int) {
	t.Helper()
	for range 200 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines are left, %d before", runtime.NumGoroutine(), before)
}

// TestBesideNbdsh evaluates the same expressions in nbdsh, which prints what this shell prints.
func TestBesideNbdsh(t *testing.T) {
	peers.Need(t, "nbdsh")
	const script = `
def show(*values): print(*[str(v) for v in values])
show(h.get_size(), h.get_protocol(), h.get_structured_replies_negotiated())
show(h.is_read_only(), h.can_flush(), h.can_fua(), h.can_trim(), h.can_zero(), h.can_fast_zero(), h.can_df(), h.can_multi_conn(), h.can_cache(), h.is_rotational())
show(h.can_meta_context("base:allocation"), h.can_meta_context("x:y"))
show(h.get_export_name(), h.get_opt_mode(), h.get_nr_meta_contexts(), h.get_meta_context(0))
show([h.get_block_size(i) for i in range(3)])
h.pwrite(b"0123456789" * 100, 300)
show(list(h.pread(20, 295).elems()) if hasattr(b"", "elems") else list(h.pread(20, 295)))
h.zero(100, 350)
show([h.pread(1024, 0)[i:i+1] == b"\0" for i in [299, 300, 349, 350, 449, 450]])
h.trim(4096, 8192)
h.flush()
h.block_status(1 << 20, 0, lambda context, offset, extents, error: show(context, offset, extents))
h.block_status(65536, 4096, lambda context, offset, extents, error: show(context, offset, extents), nbd.CMD_FLAG_REQ_ONE)
h.pread_structured(1000, 500, lambda data, offset, kind, error: show(len(data), offset, kind == nbd.READ_DATA))
`
	for _, server := range servers {
		t.Run(server.name, func(t *testing.T) {
			uri := server.start(t)
			cmd := peers.Command(t, "nbdsh", "--base-allocation", "-u", uri, "-c", script)
			cmd.Env = append(cmd.Env, "PATH=/usr/bin:/bin") // where its Python is
			cmd.Stderr = os.Stderr
			want, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			s := shell.New(&got, true)
			defer s.Close()
			s.Handle().AddContext(wire.BaseAllocation)
			if err := s.Connect(t.Context(), uri); err != nil {
				t.Fatal(err)
			}
			if err := s.Run(t.Context(), "script", []byte(script)); err != nil {
				t.Fatal(err)
			}
			if text := strings.ReplaceAll(string(want), "'", `"`); got.String() != text {
				t.Errorf("prints\n%s\nnbdsh prints\n%s", &got, text)
			}
		})
	}
}

// TestErrors has what is said of scripts that fail, and where.
func TestErrors(t *testing.T) {
	for script, want := range map[string]string{
		"h.pread(1, 0)":               "-c:1:8: the handle is not connected",
		"def f():\n  fail('no')\nf()": "-c:3:2: -c:2:7: fail: no",
		"x = (":                       "-c:1:6: got end of file, want primary expression",
		"y = missing":                 "-c:1:5: undefined: missing",
		"check(1 > 2, 'numbers')":     "-c:1:6: check: numbers",
		"expect([1], [2])":            "-c:1:7: expect: [1], not [2]",
		"h.nothing()":                 "-c:1:2: nbd.handle has no .nothing field or method",
		"h.pread(1)":                  "-c:1:8: pread: missing argument for offset",
		"be16(65536)":                 "-c:1:5: be16: 65536 does not fit 2 bytes",
		"concat(1)":                   "-c:1:7: got int, want bytes",
		"h.set_tls(9)":                "-c:1:10: there is no such value",
		"h.connect_uri('http://x')":   "scheme",
		"h.connect_systemd_socket_activation([])": "no program",
		"catch()": "-c:1:6: catch: a function is missing",
	} {
		var out bytes.Buffer
		s := shell.New(&out, true)
		if err := s.Run(t.Context(), "-c", []byte(script)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", script, err, want)
		}
		s.Close()
	}
}

// TestErrorChunks: errors of the server are told to the function as well, wherever they are.
func TestErrorChunks(t *testing.T) {
	for name, uri := range map[string]string{"imgtool": ours(t), "nbdkit": nbdkit(t)} {
		var out bytes.Buffer
		s := shell.New(&out, true)
		script := fmt.Sprintf("h.connect_uri(%q)\nh.set_strict_mode(0)\ndef f(data, offset, kind, error): print(len(data), offset, kind == nbd.READ_ERROR, error)\n"+
			"h.pread_structured(512, h.get_size(), f)", uri)
		if err := s.Run(t.Context(), "-c", []byte(script)); err == nil || !strings.Contains(err.Error(), "invalid argument") {
			t.Errorf("%s: %v", name, err)
		}
		if got, want := out.String(), "0 -1 True EINVAL\n"; got != want {
			t.Errorf("%s: the function is told %q, want %q", name, got, want)
		}
		s.Close()
	}
}

// TestOldServers: what is asked for with encryption is never had without, and else old servers do.
func TestOldServers(t *testing.T) {
	for _, args := range [][]string{{"-o", "memory", "1M"}, {"--mask-handshake=0", "memory", "1M"}} {
		uri := kit(t, args...)
		s := shell.New(io.Discard, true)
		if err := s.Connect(t.Context(), strings.Replace(uri, "nbd+", "nbds+", 1)); err == nil || !strings.Contains(err.Error(), "fixed newstyle") {
			t.Errorf("nbdkit %s: %v", args[0], err)
		}
		s.Close()
		s = shell.New(io.Discard, true)
		if err := s.Connect(t.Context(), uri); err != nil {
			t.Errorf("nbdkit %s: %v", args[0], err)
		}
		s.Close()
	}
}

// TestInteract types lines.
func TestInteract(t *testing.T) {
	var out bytes.Buffer
	s := shell.New(&out, false)
	lines := strings.Split("1 + 2\nfor i in range(2):\n  print(i)\n\nx = b'a'\nx\nnothing\ncheck(False)\nh\nNone\n", "\n")
	var prompts []string
	err := s.Interact(t.Context(), func(prompt string) (string, error) {
		if len(lines) == 0 {
			return "", io.EOF
		}
		prompts = append(prompts, prompt)
		line := lines[0]
		lines = lines[1:]
		return line, nil
	})
	const want = "3\n0\n1\nb\"a\"\n<stdin>:1:1: undefined: nothing\n<stdin>:1:6: check: the condition does not hold\n<stdin>:1:1: undefined: h\n"
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s, want\n%s", err, &out, want)
	}
	if got := strings.Join(prompts[:4], ""); got != "nbd> nbd> ...> ...> " {
		t.Errorf("the prompts are %q", got)
	}
}

// TestInterrupted makes sure that a script ends with its context, wherever it is.
func TestInterrupted(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, script := range []string{
		"while True: pass", "sleep(1000)", "catch(sleep, 1000)", fmt.Sprintf("nbd.connect('nbd+unix:///?socket=%s')", socket),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		s := shell.New(io.Discard, true)
		if err := s.Run(ctx, "-c", []byte(script)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", script, err)
		}
		s.Close()
		cancel()
	}
}
