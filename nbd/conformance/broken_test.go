package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/conformance"
	"github.com/imgtool/imgtool/nbd/server"
)

// wrong is a disk that does something wrong where a function is set.
type wrong struct {
	disk
	info    func(block.Info) block.Info
	read    func(p []byte, off int64) error
	write   func(p []byte, off int64) (skip bool)
	zero    func(off, n int64) (wrongOff, wrongN int64, err error)
	discard func(off, n int64) (wrongOff, wrongN int64)
	extents func([]block.Extent) []block.Extent
}

func (w wrong) Info() block.Info {
	if w.info != nil {
		return w.info(w.disk.Info())
	}
	return w.disk.Info()
}

func (w wrong) Read(ctx context.Context, p []byte, off int64) error {
	if err := w.disk.Read(ctx, p, off); err != nil || w.read == nil {
		return err
	}
	return w.read(p, off)
}

func (w wrong) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if w.write != nil && w.write(p, off) {
		return nil
	}
	return w.disk.Write(ctx, p, off, f)
}

func (w wrong) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	if w.zero != nil {
		var err error
		if off, n, err = w.zero(off, n); err != nil {
			return err
		}
	}
	return w.disk.Zero(ctx, off, n, f)
}

func (w wrong) Discard(ctx context.Context, off, n int64) error {
	if w.discard != nil {
		off, n = w.discard(off, n)
	}
	return w.disk.Discard(ctx, off, n)
}

func (w wrong) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	e, err := w.disk.Extents(ctx, m, off, n, buf)
	if err == nil && w.extents != nil {
		e = w.extents(e)
	}
	return e, err
}

// failed runs checks and returns those that did not pass and were not skipped.
func failed(t *testing.T, target conformance.Target, patterns ...string) []string {
	t.Helper()
	checks, err := conformance.Select(patterns, conformance.Quality)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	err = conformance.Run(t.Context(), target, checks, func(r conformance.Result) {
		if r.Outcome != conformance.Pass && r.Outcome != conformance.Skip {
			ids = append(ids, r.ID)
		}
	})
	if err != nil && !errors.Is(err, conformance.ErrStopped) {
		t.Logf("%v", err) // the content cannot be restored on such disks
	}
	return ids
}

// TestBroken makes sure that checks of what a server does with its data can fail.
func TestBroken(t *testing.T) {
	var reads, writes atomic.Int64
	for _, x := range []struct {
		name string
		w    wrong
		want []string // that fail
	}{
		{"reads change", wrong{read: func(p []byte, off int64) error { p[0] = byte(reads.Add(1)); return nil }}, []string{"read/same", "write/read-back"}},
		{"zeroes are data", wrong{extents: func(e []block.Extent) []block.Extent {
			for i := range e {
				e[i].Flags = block.ExtZero
			}
			return e
		}}, []string{"status/zeroes", "write/not-zero"}},
		{"writes are lost", wrong{write: func([]byte, int64) bool { return writes.Add(1)%2 == 0 }}, []string{"write/read-back", "write/concurrent"}},
		{"zeroes reach too far", wrong{zero: func(off, n int64) (int64, int64, error) { return off, n + 512, nil }}, []string{"zero/read-back", "zero/bytes", "zero/no-hole"}},
		{"zeroes are lost", wrong{zero: func(off, n int64) (int64, int64, error) { return off, 0, nil }}, []string{"zero/read-back", "zero/fast", "zero/no-hole", "zero/fua"}},
		{"trims are generous", wrong{discard: func(off, n int64) (int64, int64) {
			from := off &^ 4095
			return from, (off+n+4095)&^4095 - from
		}}, []string{"trim/bytes", "trim/in-range"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			x.w.disk = newDisk(t, 1)
			target := listen(t, server.Config{Open: opens(server.Export{Device: x.w})})
			target.Timeout = 5 * time.Second
			if got := failed(t, target, x.want...); len(got) != len(x.want) {
				t.Errorf("%q fail, want %q", got, x.want)
			}
		})
	}
}

// TestManyDisks makes sure that a server which says that connections share an export, and does not share it, is found.
func TestManyDisks(t *testing.T) {
	target := listen(t, server.Config{Open: func(context.Context, server.Client) (*server.Export, error) {
		return &server.Export{Device: newDisk(t, 1), MultiConn: true}, nil
	}})
	got := failed(t, target, "connection")
	if want := []string{"connection/written-elsewhere", "connection/flushed-elsewhere"}; !slices.Equal(got, want) {
		t.Errorf("%q fail, want %q", got, want)
	}
}

// TestUnstable makes sure that a server is found which tells something else each time.
func TestUnstable(t *testing.T) {
	var opened atomic.Int64
	target := listen(t, server.Config{Open: func(context.Context, server.Client) (*server.Export, error) {
		return &server.Export{Device: block.NewMemory(1<<20 + 512*opened.Add(1)), ReadOnly: true}, nil
	}})
	target.Destructive = false
	got := failed(t, target, "option", "connection")
	for _, id := range []string{"connection/same-export", "option/export-name"} {
		if !slices.Contains(got, id) {
			t.Errorf("%s passes; %q fail", id, got)
		}
	}
}

// TestRestored makes sure that destructive checks leave the export as it was, also where they are interrupted.
func TestRestored(t *testing.T) {
	for name, stopAt := range map[string]string{"to the end": "", "interrupted": "write/read-back"} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, 1)
			before := content(t, d)
			target := listen(t, server.Config{Open: opens(server.Export{Device: d})})
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			checks, err := conformance.Select([]string{"write", "zero", "trim"}, conformance.Quality)
			if err != nil {
				t.Fatal(err)
			}
			if stopAt != "" {
				checks = light(checks)
			}
			err = conformance.Run(ctx, target, checks, func(r conformance.Result) {
				if r.ID == stopAt {
					stop()
				}
			})
			if (err != nil) != (stopAt != "") {
				t.Errorf("Run: %v", err)
			}
			if !slices.Equal(before, content(t, d)) {
				t.Error("the content is another one")
			}
		})
	}
}

func content(t *testing.T, d block.Device) []byte {
	b := make([]byte, d.Size())
	if err := d.Read(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestNoServer makes sure that what is no server ends the run soon, and that nothing of it is left.
func TestNoServer(t *testing.T) {
	before := runtime.NumGoroutine()
	for name, x := range map[string]struct {
		serve func(net.Conn)
		words string // of the error; none where checks fail instead
	}{
		"silent":       {func(c net.Conn) { c.Read(make([]byte, 1)) }, "does not answer"},
		"hangs up":     {func(net.Conn) {}, "closes the connection"},
		"babbles":      {func(c net.Conn) { c.Write(bytes.Repeat([]byte("SSH-2.0-"), 1000)) }, ""},
		"echoes":       {func(c net.Conn) { io.Copy(c, c) }, "does not answer"},
		"only greets":  {func(c net.Conn) { c.Write([]byte("NBDMAGICIHAVEOPT\x00\x03")); io.Copy(io.Discard, c) }, ""},
		"greets twice": {func(c net.Conn) { c.Write([]byte("NBDMAGICIHAVEOPT\x00\x03NBDMAGICIHAVEOPT\x00\x03")) }, ""},
	} {
		target := conformance.Target{Timeout: 100 * time.Millisecond, Dial: func(context.Context) (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				x.serve(there)
				there.Close()
			}()
			return here, nil
		}}
		checks, err := conformance.Select([]string{"handshake", "option", "info"}, conformance.Must)
		if err != nil {
			t.Fatal(err)
		}
		fails := 0
		err = conformance.Run(t.Context(), target, checks, func(r conformance.Result) {
			if r.Outcome == conformance.Fail {
				fails++
			}
		})
		if x.words != "" && (err == nil || !strings.Contains(err.Error(), x.words)) || x.words == "" && (err != nil || fails < 3) {
			t.Errorf("%s: %v, and %d checks fail", name, err, fails)
		}
	}
	settle(t, before)
}

// TestSelect has what patterns mean.
func TestSelect(t *testing.T) {
	for _, x := range []struct {
		patterns []string
		level    conformance.Level
		want     []string
	}{
		{[]string{"flush"}, conformance.Quality, []string{"flush/flush", "flush/fields", "flush/unknown-flag"}},
		{[]string{"flush"}, conformance.Should, []string{"flush/flush", "flush/unknown-flag"}},
		{[]string{"flush"}, conformance.Must, []string{"flush/flush"}},
		{[]string{"meta/set-f*", "flush/flush"}, conformance.Quality, []string{"meta/set-failed-clears", "flush/flush"}},
	} {
		checks, err := conformance.Select(x.patterns, x.level)
		var got []string
		for _, c := range checks {
			got = append(got, c.ID)
		}
		if err != nil || !slices.Equal(got, x.want) {
			t.Errorf("%q, %v: %q, %v", x.patterns, x.level, got, err)
		}
	}
	for _, pattern := range []string{"flus", "flush/nothing", "["} {
		if _, err := conformance.Select([]string{pattern}, conformance.Quality); err == nil {
			t.Errorf("%q is accepted", pattern)
		}
	}
}

// TestChecks makes sure that the table of checks is in order.
func TestChecks(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range conformance.Checks() {
		if seen[c.ID] {
			t.Errorf("%s is there twice", c.ID)
		}
		seen[c.ID] = true
		if c.Rule == "" || c.Section == "" {
			t.Errorf("%s says nothing", c.ID)
		}
	}
}
