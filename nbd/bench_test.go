package nbd_test

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/server"
)

// BenchmarkDevice reads from our own server in this process, so that its cost counts as well.
func BenchmarkDevice(b *testing.B) {
	for _, c := range []struct {
		size               int64
		depth, connections int
	}{{4 << 10, 1, 1}, {4 << 10, 32, 1}, {4 << 10, 32, 4}, {256 << 10, 8, 1}, {256 << 10, 8, 4}} {
		b.Run(fmt.Sprintf("size=%d/depth=%d/connections=%d", c.size, c.depth, c.connections), func(b *testing.B) {
			const total = 64 << 20
			mem := block.NewMemory(total)
			if err := mem.Write(b.Context(), bytes.Repeat([]byte{1}, total), 0, 0); err != nil {
				b.Fatal(err)
			}
			d := dial(b, unixURI(serve(b, server.Config{}, mem)), nbd.Options{Connections: c.connections})
			b.SetBytes(c.size)
			b.ReportAllocs()
			var next atomic.Int64
			var wait sync.WaitGroup
			b.ResetTimer()
			before := cpuTime()
			for range c.depth {
				wait.Go(func() {
					p := make([]byte, c.size)
					for {
						i := next.Add(1)
						if i > int64(b.N) {
							return
						}
						if err := d.Read(b.Context(), p, i*c.size*17%total); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wait.Wait()
			b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}
