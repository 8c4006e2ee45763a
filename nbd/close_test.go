package nbd

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	serving "github.com/imgtool/imgtool/nbd/server"
)

// slow is a device whose reads wait.
type slow struct {
	block.Device
	start chan struct{}
}

func (d slow) Read(ctx context.Context, p []byte, off int64) error {
	<-d.start
	return d.Device.Read(ctx, p, off)
}

// TestCloseHalfMade: a connection that is half made when the device is closed comes about, and ends as it should, so that the server has nothing to
// complain of.
func TestCloseHalfMade(t *testing.T) {
	disk := slow{block.NewMemory(1 << 20), make(chan struct{})}
	var opened atomic.Int32
	begun, goOn := make(chan struct{}), make(chan struct{})
	s := serving.New(serving.Config{Open: func(context.Context, serving.Client) (*serving.Export, error) {
		if opened.Add(1) == 2 {
			close(begun)
			<-goOn
		}
		return &serving.Export{Device: disk, MultiConn: true}, nil
	}})
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(t.Context(), l)
	d, err := Dial(t.Context(), "nbd+unix:///?socket="+socket, Options{Connections: 2})
	if err != nil {
		t.Fatal(err)
	}
	d.export.links.parting = time.Hour

	var reads sync.WaitGroup
	for range 64 {
		reads.Go(func() {
			if err := d.Read(t.Context(), make([]byte, 64<<10), 0); err != nil {
				t.Error(err)
			}
		})
	}
	<-begun
	close(disk.start)
	reads.Wait()
	closed := make(chan error)
	go func() { closed <- d.Close() }()
	<-d.export.links.ctx.Done()
	close(goOn)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if st := s.Stats(); st.Connections != 2 || st.Refused != 0 {
		t.Errorf("of %d connections %d never came to transmission", st.Connections, st.Refused)
	}
}
