package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

// TestHandOver takes a connection in transmission, and reads from it as the kernel does.
func TestHandOver(t *testing.T) {
	dev := block.NewMemory(1 << 20)
	want := bytes.Repeat([]byte("kernel"), 100)
	if err := dev.Write(t.Context(), want, 4096, 0); err != nil {
		t.Fatal(err)
	}
	s := server.New(server.Config{Open: func(context.Context, server.Client) (*server.Export, error) {
		return &server.Export{Device: dev, MultiConn: true}, nil
	}})
	descriptors := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := descriptors()
	ours, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.ServeConn(context.Background(), ours) }()
	c, err := client.New(t.Context(), theirs, client.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var f *os.File
	take := func(conn net.Conn) (err error) { f, err = Take(conn); return err }
	if err := c.Hijack(take); err == nil {
		t.Error("taken in negotiation")
	}
	info, err := c.Go(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if info.Size != 1<<20 || info.Flags&wire.CanMultiConn == 0 {
		t.Errorf("the export is %+v", info)
	}
	if err := c.Hijack(take); err != nil {
		t.Fatal(err)
	}
	if err := c.Err(); err == nil {
		t.Error("the connection lives on beside who has taken it")
	}

	be := binary.BigEndian
	ask := func(command wire.Command, off uint64, n uint32) {
		t.Helper()
		r := be.AppendUint32(nil, wire.RequestMagic)
		r = be.AppendUint16(r, 0)
		r = be.AppendUint16(r, uint16(command))
		r = be.AppendUint64(r, 77)
		r = be.AppendUint64(r, off)
		if _, err := f.Write(be.AppendUint32(r, n)); err != nil {
			t.Fatal(err)
		}
	}
	ask(wire.CmdRead, 4096, uint32(len(want)))
	got := make([]byte, 16+len(want))
	if _, err := io.ReadFull(f, got); err != nil {
		t.Fatal(err)
	}
	if be.Uint32(got) != wire.SimpleReplyMagic || be.Uint32(got[4:]) != 0 || be.Uint64(got[8:]) != 77 || !bytes.Equal(got[16:], want) {
		t.Errorf("the reply begins with % x", got[:32])
	}
	ask(wire.CmdDisc, 0, 0)
	if err := <-served; err != nil {
		t.Errorf("the server says %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if after := descriptors(); after > before {
		t.Errorf("%d descriptors are open, %d before", after, before)
	}
}
