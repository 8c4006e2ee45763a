package nbd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/imgtool/imgtool/block"
)

// Start starts a server as a child process, hands it a listening socket as systemd does (LISTEN_FDS), and connects to its default export, or to
// the export named. The server is ended with this process, and by Close of the device. It inherits standard error, to which its standard output goes as
// well; its standard input is empty. Only Unix systems have it; elsewhere it returns an error that is errors.ErrUnsupported.
func Start(ctx context.Context, argv []string, export string, o Options) (*Device, error) {
	if len(argv) == 0 {
		return nil, errors.New("nbd: no program to start")
	}
	s, err := startServer(argv)
	if err != nil {
		return nil, err
	}
	// A server that ends without having answered leaves a connection that nobody will accept: its end ends the attempt.
	attempt, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.ended:
			cancel(errServerGone)
		case <-stop:
		}
	}()
	d := &Dialer{uri: URI{Network: "unix", Address: s.socket, Export: export}, child: s}
	dev, err := open(attempt, d, o)
	if err == nil {
		dev.export.name = "[ " + strings.Join(argv, " ") + " ]"
		return dev, nil
	}
	if ctx.Err() == nil && s.gone() {
		err = block.WithHint(fmt.Errorf("nbd: %s ended before it answered: %s", argv[0], s.status()),
			"the server has to take its socket from LISTEN_FDS, as systemd's services do")
	}
	s.stop()
	return nil, err
}
