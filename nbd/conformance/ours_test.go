package conformance_test

import (
	"context"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/conformance"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/secure/securetest"
	"github.com/imgtool/imgtool/nbd/server"
)

// listen serves c until the test ends, and returns a target for it.
func listen(t *testing.T, c server.Config) conformance.Target {
	t.Helper()
	s := server.New(c)
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	stop := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return s.Shutdown(ctx)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		<-served
	})
	return conformance.Target{Export: "disk", Destructive: true, Stop: stop, Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
}

// disk is a device of 64 MiB with data and holes, that can prefetch and has a bitmap.
type disk struct {
	*block.Memory
	minBlock int64
}

func newDisk(t *testing.T, minBlock int64) disk {
	d := block.NewMemory(64 << 20)
	for off := int64(1 << 20); off < 60<<20; off += 7 << 20 {
		if err := d.Write(t.Context(), []byte("some data in the midst of nothing"), off, 0); err != nil {
			t.Fatal(err)
		}
	}
	return disk{d, minBlock}
}

func (d disk) Info() block.Info {
	info := d.Memory.Info()
	info.MinBlock, info.Caps.Prefetch = d.minBlock, true
	return info
}

func (d disk) Extents(ctx context.Context, _ block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	return d.Memory.Extents(ctx, block.Map{}, off, n, buf)
}

// opens returns a Config.Open that knows one export.
func opens(e server.Export) func(context.Context, server.Client) (*server.Export, error) {
	return func(_ context.Context, c server.Client) (*server.Export, error) {
		if c.Export != "disk" && c.Export != "" {
			return nil, server.ErrUnknownExport
		}
		own := e
		return &own, nil
	}
}

func lists(context.Context, server.Client) ([]server.Listing, error) {
	return []server.Listing{{Name: "disk", Description: "a disk"}}, nil
}

// never lists the checks that have nothing to try at this server, whatever its configuration.
var never = []string{
	// It offers all there are.
	"handshake/unoffered-client-flag", "write/fua-unoffered", "zero/fua-unoffered", "trim/fua-unoffered", "zero/unoffered", "zero/fast-unoffered",
	"trim/unoffered", "status-payload/unoffered",
	// On this disk it is fast.
	"zero/fast-unchanged",
	// It takes 32 MiB.
	"write/oversize",
}

// TestOurs makes sure that the server of this module keeps every rule, quality included, and that every check has been tried.
func TestOurs(t *testing.T) {
	authority := securetest.New(t)
	certificates, err := secure.NewServer(secure.ServerConfig{Certificates: authority.Dir})
	if err != nil {
		t.Fatal(err)
	}
	client, err := secure.NewClient(secure.ClientConfig{Certificates: authority.Dir})
	if err != nil {
		t.Fatal(err)
	}
	upgrade := func(ctx context.Context, conn net.Conn) (net.Conn, error) {
		c, _, err := client.Upgrade(ctx, conn, "localhost")
		return c, err
	}
	whole := opens(server.Export{Device: newDisk(t, 1), Description: "a disk", Depth: true, Bitmaps: []string{"monday"}, MultiConn: true})
	tried := map[string]bool{}
	for _, id := range never {
		tried[id] = true
	}
	for _, x := range []struct {
		name    string
		config  server.Config
		only    []string // patterns of checks; none is all
		upgrade func(context.Context, net.Conn) (net.Conn, error)
		allowed map[string]bool // what this configuration does worse on purpose
	}{
		{"writable", server.Config{Open: whole, List: lists}, nil, nil, nil},
		{"blocks", server.Config{Open: opens(server.Export{Device: newDisk(t, 4096)}), List: lists}, nil, nil, nil},
		{"read-only", server.Config{Open: opens(server.Export{Device: newDisk(t, 1), ReadOnly: true}), List: lists}, nil, nil, nil},
		{"tls", server.Config{Open: whole, TLS: certificates, List: lists}, []string{"tls", "write"}, upgrade, nil},
		{"tls-plain", server.Config{Open: whole, TLS: certificates}, []string{"handshake", "tls"}, nil, nil},
		{"tls-required", server.Config{Open: whole, TLS: certificates, TLSRequired: true}, []string{"handshake", "option", "info", "tls"}, upgrade, nil},
		{"older", server.Config{Open: whole, NoExtendedHeaders: true}, nil, nil, map[string]bool{"extended/offered": true}},
		{"oldest", server.Config{Open: whole, NoStructuredReplies: true, NoExtendedHeaders: true}, nil, nil, map[string]bool{"extended/offered": true, "option/structured-reply": true}},
		{"empty", server.Config{Open: opens(server.Export{Device: block.NewMemory(0)})}, nil, nil, nil},
		{"tiny", server.Config{Open: opens(server.Export{Device: block.NewMemory(1000)})}, nil, nil, nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			target := listen(t, x.config)
			target.Upgrade = x.upgrade
			before := runtime.NumGoroutine()
			checks, err := conformance.Select(x.only, conformance.Quality)
			if err != nil {
				t.Fatal(err)
			}
			if x.only != nil {
				checks = light(checks)
			}
			err = conformance.Run(t.Context(), target, checks, func(r conformance.Result) {
				switch {
				case r.Outcome == conformance.Pass:
					tried[r.ID] = true
				case r.Outcome != conformance.Skip && !x.allowed[r.ID]:
					t.Errorf("%s %s: %s", r.Outcome, r.ID, r.Detail)
				}
			})
			if err != nil {
				t.Error(err)
			}
			settle(t, before)
		})
	}
	for _, c := range conformance.Checks() {
		if !tried[c.ID] {
			t.Errorf("%s was never tried", c.ID)
		}
	}
}

// light leaves out the checks of tens of megabytes, which take most of the time.
func light(checks []*conformance.Check) []*conformance.Check {
	return slices.DeleteFunc(checks, func(c *conformance.Check) bool { return slices.Contains(c.Needs(), "40 MiB") })
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
