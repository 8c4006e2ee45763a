package nbd_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/server"
)

// A device is served on a Unix socket, and used through an NBD URI as if it were here.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.MkdirTemp("", "nbd-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}

	// All connections get the same device, so that a flush on one of them covers what came through every other one.
	disk := block.NewMemory(1 << 20)
	s := server.New(server.Config{
		Open: func(_ context.Context, c server.Client) (*server.Export, error) {
			if c.Export != "disk" {
				return nil, server.ErrUnknownExport
			}
			return &server.Export{Device: disk, Description: "a megabyte", MultiConn: true}, nil
		},
	})
	go s.Serve(ctx, l)

	d, err := nbd.Dial(ctx, "nbd+unix:///disk?socket="+socket, nbd.Options{})
	if err != nil {
		log.Fatal(err)
	}
	if err := d.Write(ctx, []byte("hello"), 4096, block.FUA); err != nil {
		log.Fatal(err)
	}
	fmt.Println(d.Size(), d.Export().Description)
	for e, err := range block.Walk(ctx, d, block.Map{}, 0, d.Size()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Off, e.Len, "zero:", e.Flags&block.ExtZero != 0)
	}
	if err := d.Close(); err != nil {
		log.Fatal(err)
	}
	if err := s.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}

	// Output:
	// 1048576 a megabyte
	// 0 4096 zero: true
	// 4096 4096 zero: false
	// 8192 1040384 zero: true
}
