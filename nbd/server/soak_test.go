package server_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

const (
	soakClients = 16       // that come and go at a time
	soakShare   = 1 << 20  // bytes of the export that are one client's own
	soakSlack   = 16 << 20 // bytes of heap that may lie about between two looks at it
)

// TestSoak lets clients come and go, properly and not, with random requests, for a second; with IMGTOOL_SOAK=1 for ten minutes. What a client has
// written it must read, no request may fail, and memory and goroutines must be at the end what they were at the beginning.
func TestSoak(t *testing.T) {
	lasting := time.Second
	if os.Getenv("IMGTOOL_SOAK") != "" {
		lasting = 10 * time.Minute
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	before := runtime.NumGoroutine()
	disk := block.NewMemory(soakClients * soakShare)
	if err := block.WriteZeros(ctx, disk, 0, disk.Size(), 0); err != nil {
		t.Fatal(err)
	}
	s := server.New(server.Config{Open: func(context.Context, server.Client) (*server.Export, error) {
		return &server.Export{Device: disk, MultiConn: true}, nil
	}})
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()

	var ended atomic.Bool
	var visits atomic.Int64
	var all sync.WaitGroup
	for i := range soakClients {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 1))
			model := make([]byte, soakShare)
			for !ended.Load() && !t.Failed() {
				if err := visit(ctx, socket, int64(i)*soakShare, model, random); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
				visits.Add(1)
			}
		})
	}
	time.Sleep(lasting / 4)
	early := heap()
	time.Sleep(lasting * 3 / 4)
	late := heap()
	ended.Store(true)
	all.Wait()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if late > early+soakSlack {
		t.Errorf("the heap grew from %d to %d bytes", early, late)
	}
	for range 100 { // what ends does so a little later
		if runtime.NumGoroutine() <= before {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, at first %d", n, before)
	}
	stats := s.Stats()
	if stats.Active != 0 || stats.InFlight != 0 || stats.Memory != 0 {
		t.Errorf("at the end: %+v", stats)
	}
	t.Logf("%d visits, heap %d to %d bytes", visits.Load(), early, late)
}

// heap returns the size of what is in use, garbage taken away.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// visit connects, works on the part of the export that model holds, and leaves in one of several ways.
func visit(ctx context.Context, socket string, base int64, model []byte, random *rand.Rand) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	if random.IntN(8) == 0 { // gone, or silent for a while, before the handshake ends
		if random.IntN(2) == 0 {
			time.Sleep(time.Millisecond)
		}
		return conn.Close()
	}
	c, err := client.New(ctx, conn, client.Config{})
	if err != nil {
		return err
	}
	defer c.Close()
	switch random.IntN(3) {
	case 1:
		err = c.RequestStructuredReplies(ctx)
	case 2:
		err = c.RequestExtendedHeaders(ctx)
	}
	if err == nil && (c.Structured() || c.Extended()) {
		_, err = c.SetMetaContexts(ctx, "", wire.BaseAllocation)
	}
	if err == nil {
		_, err = c.Go(ctx, "")
	}
	for range random.IntN(40) {
		if err != nil {
			return err
		}
		err = ask(ctx, c, base, model, random)
	}
	switch random.IntN(3) {
	case 0:
		return err // Close alone: the server meets the end of the connection
	case 1: // leaves while a request is on its way
		go c.Read(ctx, make([]byte, soakShare), base, 0)
		runtime.Gosched()
		return err
	}
	return errors.Join(err, c.Disconnect(ctx))
}

// ask makes one random request, and checks what it brings against model.
func ask(ctx context.Context, c *client.Conn, base int64, model []byte, random *rand.Rand) error {
	off := random.Int64N(soakShare)
	n := min(1+random.Int64N(1<<random.IntN(20)), soakShare-off)
	part := model[off : off+n]
	switch random.IntN(8) {
	case 0, 1:
		for i := range part {
			part[i] = byte(random.Uint32())
		}
		return c.Write(ctx, part, base+off, 0)
	case 2:
		clear(part)
		return c.WriteZeroes(ctx, base+off, n, wire.FlagNoHole)
	case 3:
		clear(part)
		return c.WriteZeroes(ctx, base+off, n, 0)
	case 4:
		return c.Flush(ctx, 0)
	case 5:
		if len(c.Contexts()) > 0 {
			return c.BlockStatus(ctx, base+off, n, 0, nil, func(client.MetaContext, []client.Extent) {})
		}
	}
	got := make([]byte, n)
	if err := c.Read(ctx, got, base+off, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, part) {
		return errors.New("what was read is not what was written")
	}
	return nil
}
