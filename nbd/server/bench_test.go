package server_test

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

// BenchmarkRequests keeps depth requests in flight over a Unix socket, to a device in memory. The client's part of the time is in it.
func BenchmarkRequests(b *testing.B) {
	const size = 16 << 20
	d := block.NewMemory(size)
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i)
	}
	check(b, d.Write(context.Background(), content, 0, 0))
	for _, bb := range []struct {
		cmd      wire.Command
		n, depth int
	}{
		{wire.CmdRead, 4 << 10, 1}, {wire.CmdRead, 4 << 10, 32}, {wire.CmdRead, 256 << 10, 4},
		{wire.CmdWrite, 4 << 10, 1}, {wire.CmdWrite, 4 << 10, 32}, {wire.CmdWrite, 256 << 10, 4},
	} {
		b.Run(fmt.Sprintf("%v/%dk/%d", bb.cmd, bb.n>>10, bb.depth), func(b *testing.B) {
			_, dial := serve(b, server.Config{Open: fixed(d)})
			p := dial().enter("simple", "")
			check(b, p.SetDeadline(noDeadline))
			head := p.reqBytes(wire.Request{Type: bb.cmd, Offset: uint64(bb.n), Length: uint64(bb.n)})
			reply := make([]byte, wire.SimpleReplySize)
			if bb.cmd == wire.CmdRead {
				reply = make([]byte, wire.SimpleReplySize+bb.n)
			} else {
				head = append(head, content[:bb.n]...)
			}
			b.SetBytes(int64(bb.n))
			b.ReportAllocs()
			b.ResetTimer()
			slots := make(chan struct{}, bb.depth)
			go func() {
				for range b.N {
					slots <- struct{}{}
					if _, err := p.Write(head); err != nil {
						b.Error(err)
						return
					}
				}
			}()
			for range b.N {
				if _, err := io.ReadFull(p, reply); err != nil {
					b.Fatal(err)
				}
				<-slots
			}
		})
	}
}
