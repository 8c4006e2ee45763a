package nbd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/client"
)

// Start starts a server as a child process, hands it a listening socket as systemd does (LISTEN_FDS), and connects to its default export, or to
// the export named. The server is ended with this process, and by Close of the device. It inherits standard error, to which its standard output goes as
// well; its standard input is empty. Only Unix systems have it; elsewhere it returns an error that is errors.ErrUnsupported.
func Start(ctx context.Context, argv []string, export string, o Options) (*Device, error) {
	d, err := StartDialer(argv)
	if err != nil {
		return nil, err
	}
	d.uri.Export = export
	dev, err := open(ctx, d, o)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return dev, nil
}

// StartDialer starts a server as Start does, for who speaks the protocol himself. Close of the dialer ends the server.
func StartDialer(argv []string) (*Dialer, error) {
	if len(argv) == 0 {
		return nil, errors.New("nbd: no program to start")
	}
	s, err := startServer(argv)
	if err != nil {
		return nil, err
	}
	return &Dialer{uri: URI{Network: "unix", Address: s.socket}, child: s, name: "[ " + strings.Join(argv, " ") + " ]"}, nil
}

// Close ends the server that StartDialer has started. A server that a URI names it leaves alone.
func (d *Dialer) Close() error {
	if d.child == nil {
		return nil
	}
	return d.child.stop()
}

// dying is how long a server may take to end whose connection broke before it greeted.
const dying = time.Second

// connChild is Conn for a server that was started: its end ends the attempt.
func (d *Dialer) connChild(ctx context.Context, c client.Config) (*client.Conn, error) {
	attempt, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-d.child.ended:
			cancel()
		case <-attempt.Done():
		}
	}()
	n, err := d.connect(attempt, c)
	if err == nil {
		d.child.greeted.Store(true)
	}
	if err == nil || ctx.Err() != nil {
		return n, err
	}
	select {
	case <-d.child.ended:
		err := fmt.Errorf("%w: %s", errServerGone, d.child.status())
		if d.child.greeted.Load() {
			return nil, err
		}
		return nil, block.WithHint(err, "the server has to take its socket from LISTEN_FDS, as systemd's services do")
	case <-time.After(dying):
		return nil, err
	}
}
