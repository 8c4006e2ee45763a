package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/server"
)

// cutter stands between clients and a server, and cuts connections.
type cutter struct {
	net.Listener
	target string
	mu     sync.Mutex
	up     []int64 // bytes that the next connections may send; then there is no limit
	down   []int64 // bytes that they may get
	conns  []net.Conn
	wait   sync.WaitGroup
	count  int // connections
}

func newCutter(t testing.TB, target string) *cutter {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "cut"))
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l, target: target}
	c.wait.Go(c.accept)
	t.Cleanup(func() {
		l.Close()
		c.cut()
		c.wait.Wait()
	})
	return c
}

func (c *cutter) uri() string { return unixURI(c.Addr().String()) }

func (c *cutter) accept() {
	for {
		in, err := c.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		target := c.target
		c.mu.Unlock()
		out, err := net.Dial("unix", target)
		if err != nil {
			in.Close()
			continue
		}
		c.mu.Lock()
		c.count++
		c.conns = append(c.conns, in, out)
		up, down := take(&c.up), take(&c.down)
		c.mu.Unlock()
		pipe := func(to, from net.Conn, n int64) {
			io.CopyN(struct{ io.Writer }{to}, from, n) // without splice, for which package net keeps pipes
			to.Close()
			from.Close()
		}
		c.wait.Go(func() { pipe(out, in, up) })
		c.wait.Go(func() { pipe(in, out, down) })
	}
}

func take(limits *[]int64) int64 {
	if len(*limits) == 0 {
		return 1 << 62
	}
	n := (*limits)[0]
	*limits = (*limits)[1:]
	return n
}

// limit sets what the next connection may carry.
func (c *cutter) limit(up, down []int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up, c.down = up, down
}

// cut cuts all connections.
func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

// TestReconnect cuts the connection after every number of bytes in each direction: everything is done all the same, and Flush tells the truth.
func TestReconnect(t *testing.T) {
	leaks(t)
	ctx := t.Context()
	step := int64(5)
	if os.Getenv("IMGTOOL_SOAK") != "" {
		step = 1
	}
	cuts, dials, unflushed := 0, 0, 0
	for _, upward := range []bool{true, false} {
		for n := int64(0); ; n += step {
			mem := block.NewMemory(1 << 16)
			c := newCutter(t, serve(t, server.Config{}, mem))
			limit := []int64{n}
			if upward {
				c.limit(limit, nil)
			} else {
				c.limit(nil, limit)
			}
			d, err := nbd.Dial(ctx, c.uri(), nbd.Options{Connections: 1})
			if err != nil {
				dials++
				c.Close()
				continue
			}
			d.SetPause(time.Millisecond)
			if err := exercise(ctx, d); errors.Is(err, nbd.ErrUnflushed) {
				unflushed++
				if err := d.Flush(ctx); err != nil {
					t.Fatalf("cut after %d bytes: the flush after the one that failed: %v", n, err)
				}
			} else if err != nil {
				t.Fatalf("cut after %d bytes: %v", n, err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 300)
			if err := mem.Read(ctx, got, 1000); err != nil || !bytes.Equal(got, content()) {
				t.Fatalf("cut after %d bytes: the server has %x, %v", n, got, err)
			}
			if c.Close(); c.count == 1 {
				break // more than all that there is to carry
			}
			cuts++
		}
	}
	t.Logf("%d cuts in transmission, %d before; %d flushes told of them", cuts, dials, unflushed)
	if cuts == 0 || dials == 0 || unflushed == 0 || unflushed > cuts/2 {
		t.Error("that cannot be")
	}
}

func content() []byte { return append(bytes.Repeat([]byte{0x5a}, 200), make([]byte, 100)...) }

// exercise makes each request once. Its last step is a flush.
func exercise(ctx context.Context, d block.Device) error {
	p := make([]byte, 300)
	extents, err := d.Extents(ctx, block.Map{}, 0, d.Size(), nil)
	if err == nil && len(extents) == 0 {
		err = errors.New("no extents")
	}
	return errors.Join(err, d.Read(ctx, p, 0), d.Write(ctx, bytes.Repeat([]byte{0x5a}, 300), 1000, 0), d.Prefetch(ctx, 0, 100), d.Discard(ctx, 5000, 100),
		d.Zero(ctx, 1200, 100, 0), d.Read(ctx, p, 1000), check(p), d.Flush(ctx))
}

func check(p []byte) error {
	if bytes.Equal(p, content()) {
		return nil
	}
	return errors.New("other bytes than were written")
}

// TestUnflushed: a flush after all connections were lost fails once if something was written before, and only then.
func TestUnflushed(t *testing.T) {
	leaks(t)
	ctx := t.Context()
	c := newCutter(t, serve(t, server.Config{}, block.NewMemory(1<<16)))
	d := dial(t, c.uri(), nbd.Options{Connections: 1})
	d.SetPause(time.Millisecond)
	flush := func(when string, want error) {
		t.Helper()
		if err := d.Flush(ctx); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("flush %s: %v, want %v", when, err, want)
		}
	}
	write := func(f block.Flags) {
		t.Helper()
		if err := d.Write(ctx, []byte("abc"), 0, f); err != nil {
			t.Error(err)
		}
	}
	flush("of nothing", nil)
	write(0)
	flush("on the connection of the write", nil)
	c.cut()
	flush("after a connection that held nothing", nil)
	write(0)
	c.cut()
	flush("after a connection that held a write", nbd.ErrUnflushed)
	flush("after that was told", nil)
	write(0)
	flush("of a write after the connection was made again", nil)
	write(block.FUA)
	c.cut()
	flush("after a connection that held a write with FUA", nil)
	if err := d.Zero(ctx, 0, 10, 0); err != nil {
		t.Error(err)
	}
	c.cut()
	if err := d.Read(ctx, make([]byte, 3), 0); err != nil {
		t.Error(err)
	}
	write(0)
	flush("of a write after the connection that held a zero", nbd.ErrUnflushed)
}

// TestServerGone: a server that is not there any more fails calls after the retries, and one that comes back does not.
func TestServerGone(t *testing.T) {
	leaks(t)
	ctx := t.Context()
	socket := serve(t, server.Config{}, block.NewMemory(1<<16))
	c := newCutter(t, socket)
	d := dial(t, c.uri(), nbd.Options{Retries: 2})
	d.SetPause(time.Millisecond)
	path := c.Addr().String()
	c.Close()
	c.cut()
	p := make([]byte, 3)
	if err := d.Read(ctx, p, 0); err == nil {
		t.Error("a read without a server works")
	}
	late, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	d.SetPause(time.Hour)
	if err := d.Read(late, p, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a read that waits for a server: %v", err)
	}
	d.SetPause(time.Millisecond)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	again := &cutter{Listener: l, target: socket}
	again.wait.Go(again.accept)
	defer again.wait.Wait()
	defer again.cut()
	defer l.Close()
	if err := d.Read(ctx, p, 0); err != nil {
		t.Errorf("a read after the server came back: %v", err)
	}
	never := dial(t, unixURI(path), nbd.Options{Retries: -1})
	again.cut()
	if err := never.Read(ctx, p, 0); err == nil {
		t.Error("without retries, a lost connection is made again")
	}
}

// TestChanged: an export that has another size after a connection was lost is not taken for the same.
func TestChanged(t *testing.T) {
	leaks(t)
	c := newCutter(t, serve(t, server.Config{}, block.NewMemory(1<<16)))
	d := dial(t, c.uri(), nbd.Options{})
	d.SetPause(time.Millisecond)
	other := serve(t, server.Config{}, block.NewMemory(1<<17))
	c.mu.Lock()
	c.target = other
	c.mu.Unlock()
	c.cut()
	for range 2 {
		if err := d.Read(t.Context(), make([]byte, 3), 0); err == nil || !strings.Contains(err.Error(), "changed") {
			t.Errorf("the error is %v", err)
		}
	}
}

// TestSeveralConnections opens more where the server lets it, and survives the loss of each.
func TestSeveralConnections(t *testing.T) {
	leaks(t)
	ctx := t.Context()
	slow := slowly{block.Filter{Device: block.NewMemory(1 << 20)}}
	c := newCutter(t, serve(t, server.Config{}, slow))
	d := dial(t, c.uri(), nbd.Options{Connections: 3})
	d.SetPause(time.Millisecond)
	if got := d.Connections(); got != 1 {
		t.Errorf("%d connections to begin with", got)
	}
	stop := make(chan struct{})
	var wait sync.WaitGroup
	most := 0
	for g := range int64(64) {
		wait.Go(func() {
			for i := int64(0); ; i++ {
				p := bytes.Repeat([]byte{byte(g + i)}, 1000)
				q := make([]byte, len(p))
				off := g * 10000
				if err := errors.Join(d.Write(ctx, p, off, 0), d.Read(ctx, q, off)); err != nil || !bytes.Equal(p, q) {
					t.Errorf("round %d of goroutine %d: %v, or other bytes", i, g, err)
					return
				}
				if g == 0 {
					most = max(most, d.Connections())
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range 5 {
		time.Sleep(50 * time.Millisecond)
		c.cut()
	}
	last := 0
	for i := 0; i < 1000 && last < 3; i++ {
		time.Sleep(10 * time.Millisecond)
		last = d.Connections()
	}
	close(stop)
	wait.Wait()
	if last != 3 || most > 3 {
		t.Errorf("%d connections in the end, %d at most, want 3", last, most)
	}
}

// slowly is a device that takes its time to read.
type slowly struct{ block.Filter }

func (s slowly) Read(ctx context.Context, p []byte, off int64) error {
	time.Sleep(time.Millisecond)
	return s.Device.Read(ctx, p, off)
}

// TestOneConnectionOnly: a server that lets nobody else in is used over the connection that there is.
func TestOneConnectionOnly(t *testing.T) {
	leaks(t)
	slow := slowly{block.Filter{Device: block.NewMemory(1 << 20)}}
	c := newCutter(t, serve(t, server.Config{}, slow))
	c.limit([]int64{1 << 40, 0, 0, 0}, nil)
	d := dial(t, c.uri(), nbd.Options{})
	var wait sync.WaitGroup
	for range 40 {
		wait.Go(func() {
			for range 20 {
				if err := d.Read(t.Context(), make([]byte, 10), 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count != 2 {
		t.Errorf("%d connections were tried, want the one that works and one more", c.count)
	}
}

// TestShutdown: a server that shuts down is left, and the next one at the same place is used.
func TestShutdown(t *testing.T) {
	leaks(t)
	ctx := t.Context()
	mem := block.NewMemory(1 << 16)
	socket := filepath.Join(t.TempDir(), "s")
	run := func() (*server.Server, chan error) {
		os.Remove(socket)
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		s := server.New(server.Config{Open: func(context.Context, server.Client) (*server.Export, error) {
			return &server.Export{Device: mem, MultiConn: true}, nil
		}})
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx, l) }()
		return s, done
	}
	s, done := run()
	d := dial(t, unixURI(socket), nbd.Options{Retries: 20})
	d.SetPause(10 * time.Millisecond)
	var wait sync.WaitGroup
	stop := make(chan struct{})
	for g := range int64(4) {
		wait.Go(func() {
			p := []byte{byte(g)}
			for i := int64(0); ; i++ {
				if err := errors.Join(d.Write(ctx, p, g, block.FUA), d.Read(ctx, p, g)); err != nil || p[0] != byte(g) {
					t.Errorf("round %d: %v, or other bytes", i, err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range 3 {
		time.Sleep(20 * time.Millisecond)
		ended, cancel := context.WithTimeout(ctx, 5*time.Second)
		if err := s.Shutdown(ended); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		cancel()
		<-done
		s, done = run()
	}
	time.Sleep(20 * time.Millisecond)
	close(stop)
	wait.Wait()
	d.Close()
	s.Shutdown(ctx)
	<-done
}

// TestEncryptionWanted: the error says what to do.
func TestEncryptionWanted(t *testing.T) {
	leaks(t)
	right, _ := pskFile(t)
	tls, err := secure.NewServer(secure.ServerConfig{PSKFile: right})
	if err != nil {
		t.Fatal(err)
	}
	_, err = nbd.Dial(t.Context(), unixURI(serve(t, server.Config{TLS: tls, TLSRequired: true}, block.NewMemory(512))), nbd.Options{})
	var hint *block.Hint
	if !errors.As(err, &hint) || !strings.Contains(hint.Text, "nbds") {
		t.Errorf("the error is %v", err)
	}
}

// TestUnflushedAfterFailure: a flush that fails for want of a server leaves what it did not flush to the next one.
func TestUnflushedAfterFailure(t *testing.T) {
	leaks(t)
	ctx := t.Context()
	socket := serve(t, server.Config{}, block.NewMemory(1<<16))
	c := newCutter(t, socket)
	path := c.Addr().String()
	d := dial(t, c.uri(), nbd.Options{Retries: 1})
	d.SetPause(time.Millisecond)
	if err := d.Write(ctx, []byte("abc"), 0, 0); err != nil {
		t.Fatal(err)
	}
	c.Close()
	c.cut()
	if err := d.Flush(ctx); err == nil || errors.Is(err, nbd.ErrUnflushed) {
		t.Errorf("a flush without a server: %v", err)
	}
	if err := os.Rename(socket, path); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(ctx, []byte("abc"), 0, 0); err != nil {
		t.Fatal(err)
	}
	for _, want := range []error{nbd.ErrUnflushed, nil} {
		if err := d.Flush(ctx); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("a flush with a server again: %v, want %v", err, want)
		}
	}
}

// TestCloseWithoutServer: Close does not wait until a call has found out that the server does not come back, or never answers.
func TestCloseWithoutServer(t *testing.T) {
	leaks(t)
	silent, err := net.Listen("unix", filepath.Join(t.TempDir(), "silent"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for name, leave := range map[string]func(c *cutter){
		"gone":   func(c *cutter) { c.Close() },
		"silent": func(c *cutter) { c.mu.Lock(); c.target = silent.Addr().String(); c.mu.Unlock() },
	} {
		c := newCutter(t, serve(t, server.Config{}, block.NewMemory(1<<16)))
		d := dial(t, c.uri(), nbd.Options{})
		d.SetPause(time.Hour)
		leave(c)
		c.cut()
		done := make(chan error)
		go func() { done <- d.Read(t.Context(), make([]byte, 3), 0) }()
		time.Sleep(30 * time.Millisecond)
		if err := d.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := <-done; !errors.Is(err, os.ErrClosed) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: the read: %v", name, err)
		}
	}
}
