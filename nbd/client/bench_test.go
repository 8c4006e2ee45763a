package client_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/nbd/client"
)

// start starts nbdkit and returns its socket.
func start(t testing.TB, args ...string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	cmd := peers.Command(t, "nbdkit", append([]string{"-f", "-U", socket}, args...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 1000 {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nbdkit does not listen")
	return ""
}

// connect makes a connection in transmission, with structured replies where the server has them.
func connect(t testing.TB, socket string) *client.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(t.Context(), conn, client.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.RequestStructuredReplies(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Go(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	return c
}

// benchmark makes requests of size bytes, depth at a time.
func benchmark(b *testing.B, size int64, depth int, request func(c *client.Conn, p []byte, off int64) error) {
	c := connect(b, start(b, "memory", "256M", "allocator=malloc"))
	total := c.Export().Size
	b.SetBytes(size)
	b.ReportAllocs()
	var next atomic.Int64
	var wait sync.WaitGroup
	b.ResetTimer()
	before := cpuTime()
	for range depth {
		wait.Go(func() {
			p := make([]byte, size)
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					return
				}
				if err := request(c, p, i*size*17%total); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

func read(c *client.Conn, p []byte, off int64) error { return c.Read(context.Background(), p, off, 0) }
func write(c *client.Conn, p []byte, off int64) error {
	return c.Write(context.Background(), p, off, 0)
}

func BenchmarkRead4K(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprint("depth=", depth), func(b *testing.B) { benchmark(b, 4<<10, depth, read) })
	}
}

func BenchmarkWrite4K(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprint("depth=", depth), func(b *testing.B) { benchmark(b, 4<<10, depth, write) })
	}
}

func BenchmarkRead256K(b *testing.B)  { benchmark(b, 256<<10, 8, read) }
func BenchmarkWrite256K(b *testing.B) { benchmark(b, 256<<10, 8, write) }
