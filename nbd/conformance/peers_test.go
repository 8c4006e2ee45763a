package conformance_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/nbd/conformance"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/secure/securetest"
)

var update = flag.Bool("update", false, "write what the servers of Debian 12 do to testdata, and the table of it to docs")

// A peer is a server whose deviations are known. They are those of the version that Debian 12 has.
type peer struct {
	program, version string
	setups           []setup
}

// A setup is one way to start a server. The image is 64 MiB large.
type setup struct {
	name   string
	export string
	only   []string // patterns of the checks for which this setup is there; none is all
	hangs  []string // checks that it does not answer, and for which it is not waited for long
	tls    bool
	start  func(t *testing.T, s site) []string // the arguments
}

// A site is where a server is started.
type site struct{ dir, socket, image, certificates string }

// Patterns of checks that depend on whether an export can be written, and of what it is made.
var (
	changes = []string{"flags", "write", "zero", "trim"}
	blocks  = []string{"info", "read", "status", "cache", "write", "zero", "trim"}
)

var known = []peer{
	{"nbdkit", "nbdkit 1.32.5", []setup{
		{name: "file", start: nbdkit("file", "IMAGE")},
		{name: "read-only", only: changes, start: nbdkit("-r", "file", "IMAGE")},
		{name: "folder", export: "disk.raw", only: []string{"option", "info", "meta"}, start: nbdkit("file", "dir=DIR")},
		{name: "blocks", only: blocks, start: nbdkit("--filter=blocksize-policy", "memory", "64M", "blocksize-minimum=4096", "blocksize-preferred=4096",
			"blocksize-maximum=1M", "blocksize-error-policy=error")},
		{name: "tls", tls: true, only: []string{"tls", "write"}, start: nbdkit("--tls=on", "--tls-certificates=CERTIFICATES", "memory", "64M"),
			hangs: []string{"write/past-end", "write/overflow", "write/failed-payload", "write/unknown-flag", "write/foreign-flag"}},
		{name: "tls-required", tls: true, only: []string{"tls"}, start: nbdkit("--tls=require", "--tls-certificates=CERTIFICATES", "memory", "64M")},
	}},
	{"qemu-nbd", "qemu-nbd 7.2", []setup{
		{name: "raw", export: "disk", start: qemuNBD("-f", "raw", "-x", "disk", "-D", "a disk", "IMAGE")},
		{name: "read-only", export: "disk", only: changes, start: qemuNBD("-r", "-f", "raw", "-x", "disk", "IMAGE")},
		{name: "qcow2", start: func(t *testing.T, s site) []string {
			q := s.image + ".qcow2"
			peers.Run(t, "qemu-img", "convert", "-O", "qcow2", s.image, q)
			peers.Run(t, "qemu-img", "bitmap", "--add", q, "monday")
			return qemuNBD("-A", "-B", "monday", "-f", "qcow2", q)(t, s)
		}},
		{name: "tls-required", tls: true, only: []string{"tls"}, start: qemuNBD("-f", "raw", "--tls-creds", "t",
			"--object", "tls-creds-x509,id=t,endpoint=server,verify-peer=no,dir=CERTIFICATES", "IMAGE")},
	}},
	{"nbd-server", "nbd-server 3.24", []setup{
		{name: "file", export: "disk", start: nbdServer("flush = true", "fua = true", "trim = true"),
			hangs: []string{"info/wrong-lengths", "info/name-too-long"}},
		{name: "read-only", export: "disk", only: changes, start: nbdServer("readonly = true")},
		{name: "plain", export: "disk", only: changes, start: nbdServer()},
	}},
}

// with puts the names of a site into arguments.
func (s site) with(args []string) []string {
	names := strings.NewReplacer("IMAGE", s.image, "DIR", s.dir, "CERTIFICATES", s.certificates)
	var all []string
	for _, a := range args {
		all = append(all, names.Replace(a))
	}
	return all
}

func nbdkit(args ...string) func(*testing.T, site) []string {
	return func(_ *testing.T, s site) []string { return s.with(append([]string{"-f", "-U", s.socket}, args...)) }
}

func qemuNBD(args ...string) func(*testing.T, site) []string {
	return func(_ *testing.T, s site) []string {
		return s.with(append([]string{"-t", "-e", "8", "-k", s.socket}, args...))
	}
}

// nbdServer returns the arguments of nbd-server for an export with some options.
func nbdServer(options ...string) func(*testing.T, site) []string {
	return func(t *testing.T, s site) []string {
		config := filepath.Join(s.dir, "config")
		text := fmt.Sprintf("[generic]\nunixsock = %s\nlistenaddr = 127.0.0.1\nport = 1\nallowlist = true\n[disk]\nexportname = %s\n%s\n", s.socket, s.image, strings.Join(options, "\n"))
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{"-C", config, "-p", filepath.Join(s.dir, "pid")}
	}
}

// start starts a server with a fresh image and returns a target for it, and what ends it.
func start(t *testing.T, p peer, u setup, a *securetest.Authority) (conformance.Target, func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // short: a socket's name may have 100 bytes
	if err != nil {
		t.Fatal(err)
	}
	s := site{dir, filepath.Join(dir, "socket"), filepath.Join(dir, "disk.raw"), a.Dir}
	image(t, s.image)
	cmd := peers.Command(t, p.program, u.start(t, s)...)
	stop := func() {
		cmd.Process.Kill()
		cmd.Wait()
		if b, err := os.ReadFile(filepath.Join(dir, "pid")); err == nil { // of nbd-server, which goes to the background
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
				if daemon, err := os.FindProcess(pid); err == nil {
					daemon.Kill()
				}
			}
		}
		os.RemoveAll(dir)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	target := conformance.Target{Export: u.export, Destructive: true, Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.socket)
	}}
	if u.tls {
		client, err := secure.NewClient(secure.ClientConfig{Certificates: a.Dir})
		if err != nil {
			t.Fatal(err)
		}
		target.Upgrade = func(ctx context.Context, conn net.Conn) (net.Conn, error) {
			c, _, err := client.Upgrade(ctx, conn, "localhost")
			return c, err
		}
	}
	for range 1000 {
		if c, err := net.Dial("unix", s.socket); err == nil {
			c.Read(make([]byte, 1)) // the greeting
			c.Close()
			return target, stop
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	t.Fatalf("%s does not listen", p.program)
	return target, nil
}

// image writes data and holes.
func image(t *testing.T, name string) {
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	for off := int64(1 << 20); off < 60<<20; off += 7 << 20 {
		if _, err := f.WriteAt([]byte(strings.Repeat("some data ", 10000)), off); err != nil {
			t.Fatal(err)
		}
	}
}

// examine tries all checks of a server.
func examine(t *testing.T, p peer, u setup, a *securetest.Authority) []conformance.Result {
	t.Helper()
	checks, err := conformance.Select(u.only, conformance.Quality)
	if err != nil {
		t.Fatal(err)
	}
	if u.only != nil {
		checks = light(checks)
	}
	var quick, slow []*conformance.Check
	for _, c := range checks {
		if slices.Contains(u.hangs, c.ID) {
			slow = append(slow, c)
		} else {
			quick = append(quick, c)
		}
	}
	return append(try(t, p, u, a, quick, 10*time.Second), try(t, p, u, a, slow, 800*time.Millisecond)...)
}

// try tries some checks. Where one ends the server, it is started again for those that follow.
func try(t *testing.T, p peer, u setup, a *securetest.Authority, checks []*conformance.Check, timeout time.Duration) []conformance.Result {
	t.Helper()
	var results []conformance.Result
	for len(checks) > 0 {
		target, stop := start(t, p, u, a)
		target.Timeout = timeout
		done := 0
		err := conformance.Run(t.Context(), target, checks, func(r conformance.Result) {
			results = append(results, r)
			done++
		})
		stop()
		if err != nil && (!errors.Is(err, conformance.ErrStopped) || done == 0) {
			t.Fatalf("%s %s: %v", p.program, u.name, err)
		}
		checks = checks[done:]
	}
	return results
}

// installed reports whether the version of a peer is the one that is known.
func installed(t *testing.T, p peer) bool {
	flag := "--version"
	if p.program == "nbd-server" {
		flag = "-V"
	}
	out, _ := exec.Command(peers.Need(t, p.program), flag).CombinedOutput()
	number := p.version[strings.LastIndex(p.version, " ")+1:]
	if strings.Contains(string(out), number) {
		return true
	}
	t.Logf("%s is another version than %s: %s", p.program, number, strings.SplitN(string(out), "\n", 2)[0])
	return false
}

// folder is the name of the folder that a server is started in.
var folder = regexp.MustCompile(regexp.QuoteMeta(os.TempDir()) + `/nbd[0-9]+`)

// TestPeers makes sure that the suite finds what servers are known to do, and nothing else.
func TestPeers(t *testing.T) {
	authority := securetest.New(t)
	for _, p := range known {
		t.Run(p.program, func(t *testing.T) {
			t.Parallel() // most of the time goes by in waiting for servers
			if !installed(t, p) {
				t.Skipf("the deviations of %s alone are known", p.version)
			}
			var lines []string
			for _, u := range p.setups {
				for _, r := range examine(t, p, u, authority) {
					if r.Outcome != conformance.Pass && r.Outcome != conformance.Skip {
						detail := folder.ReplaceAllString(r.Detail, "DIR")
						lines = append(lines, fmt.Sprintf("%s: %s %s: %s", u.name, r.Outcome, r.ID, detail))
					}
				}
			}
			golden := filepath.Join("testdata", p.program+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			b, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			want := verdicts(strings.Split(strings.TrimSpace(string(b)), "\n"))
			got := verdicts(lines)
			for _, line := range got {
				if !slices.Contains(want, line) {
					t.Errorf("new: %s", line)
				}
			}
			for _, line := range want {
				if !slices.Contains(got, line) {
					t.Errorf("not found any more: %s", line)
				}
			}
		})
	}
}

// racy is the check that some servers fail only where the end of the connection overtakes an answer.
const racy = "command/disc-in-flight"

// verdicts cuts the details, in which numbers vary, off the lines of a golden.
func verdicts(lines []string) []string {
	var short []string
	for _, line := range lines {
		if parts := strings.SplitN(line, ": ", 3); len(parts) == 3 && !strings.HasSuffix(parts[1], racy) {
			short = append(short, parts[0]+": "+parts[1])
		}
	}
	return short
}
