package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/imgtool/imgtool/nbd/listen"
	"github.com/imgtool/imgtool/nbd/server"
)

// running is a server from its first listener to its end.
type running struct {
	*serving
	server    *server.Server
	life      context.Context // of everything that serves
	listeners []net.Listener
	signals   chan os.Signal // that ask for the end
	ends      chan error     // the first reason to end; nil is a good one
	tasks     sync.WaitGroup // that end with the listeners or with life
	cleanup   []func() error // in the order of making
}

// catchSignals takes signals over: the first one begins the end, a second one hurries it.
func (r *running) catchSignals() {
	r.signals = make(chan os.Signal, 4)
	signal.Notify(r.signals, endingSignals()...)
	r.cleanup = append(r.cleanup, func() error { signal.Stop(r.signals); return nil })
}

// because begins the end. Only the first reason counts.
func (r *running) because(reason error) {
	select {
	case r.ends <- reason:
	default:
	}
}

// serve serves until there is a reason to end, and then lets clients leave.
func (r *running) serve(ctx context.Context) error {
	err := r.begin(ctx)
	if err == nil {
		if r.command != "" {
			err = r.runCommand()
		} else {
			err = r.wait()
		}
	}
	notify("STOPPING=1")
	return errors.Join(err, r.drain())
}

// begin accepts clients and tells whoever waits that the server is ready.
func (r *running) begin(ctx context.Context) error {
	for _, l := range r.listeners {
		r.logger.Info("listening", "uri", r.uri(l, r.exportNames()[0]))
		r.tasks.Go(func() {
			if err := r.server.Serve(r.life, l); err != nil && !errors.Is(err, net.ErrClosed) {
				r.because(err)
			}
		})
	}
	if r.metrics != "" {
		if err := r.serveMetrics(ctx); err != nil {
			return err
		}
	}
	r.cleanup = append(r.cleanup, onStatsSignal(r.printStats))
	if r.exitWithParent {
		r.cleanup = append(r.cleanup, onParentEnd(func() { r.because(nil) }))
	}
	if err := r.writePID(); err != nil {
		return err
	}
	if r.printURI {
		if err := r.printURIs(); err != nil {
			return err
		}
	}
	notify("READY=1\nMAINPID=" + strconv.Itoa(os.Getpid()))
	if r.fork {
		return leaveForeground()
	}
	return nil
}

// wait returns when there is a reason to end: nil for a good one.
func (r *running) wait() error {
	select {
	case <-r.signals:
		return nil
	case err := <-r.ends:
		return err
	}
}

// drain stops listening, lets clients leave for as long as --drain-timeout allows, and cuts the rest off; a signal does so at once.
func (r *running) drain() error {
	ctx, cancel := context.WithTimeout(r.life, r.drainTime)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-r.signals:
			cancel()
		case <-stop:
		}
	}()
	err := r.server.Shutdown(ctx)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		r.logger.Warn("clients that had not left were cut off")
		err = nil
	}
	return err
}

// release gives back what the server has taken besides its exports, the last thing first.
func (r *running) release() {
	if err := listen.CloseAll(r.listeners); err != nil && !errors.Is(err, net.ErrClosed) {
		r.logger.Warn("close", "err", err)
	}
	for i := len(r.cleanup) - 1; i >= 0; i-- {
		if err := r.cleanup[i](); err != nil {
			r.logger.Warn("clean up", "err", err)
		}
	}
	r.tasks.Wait()
}

// serveSingle serves one client on standard input and output.
func (r *running) serveSingle() error {
	c, err := listen.Stdio(r.stdin, r.stdout)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- r.server.ServeConn(r.life, c) }()
	if err := r.writePID(); err != nil {
		return errors.Join(err, r.drain(), <-done)
	}
	notify("READY=1")
	select {
	case err = <-done:
		return err
	case <-r.signals:
	}
	err = r.drain()
	<-done // it was cut off or has left, which drain has told
	return err
}

// last ends the server when no export is in use and no client is there, where that is not about to change, unless all who came have only looked around.
func (r *running) last(used func() int64) {
	const pause = 5 * time.Millisecond
	for r.life.Err() == nil && used() == 0 {
		if s := r.server.Stats(); s.Active == 0 {
			if s.Connections > s.Refused {
				r.because(nil)
			}
			return
		}
		time.Sleep(pause)
	}
}

// writePID writes the number of the process where --pid-file says.
func (r *running) writePID() error {
	remove, err := writePIDFile(r.pidFile)
	r.cleanup = append(r.cleanup, remove)
	return err
}

// writePIDFile writes the number of the process to a file, in one step, and returns what removes the file. It does nothing for "".
func writePIDFile(path string) (remove func() error, err error) {
	nothing := func() error { return nil }
	if path == "" {
		return nothing, nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".pid-*")
	if err != nil {
		if at := (*fs.PathError)(nil); errors.As(err, &at) {
			err = at.Err // the file that is not there is a passing one
		}
		return nothing, nameFile(path, err)
	}
	_, err = f.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return nothing, nameFile(path, errors.Join(err, os.Remove(f.Name())))
	}
	return func() error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}, nil
}

// printURIs tells where the exports are.
func (r *running) printURIs() error {
	var uris []string
	for _, name := range r.exportNames() {
		for _, l := range r.listeners {
			uris = append(uris, r.uri(l, name))
		}
	}
	if r.json {
		if err := r.app.printJSON(map[string]any{"uris": uris}); err != nil {
			return err
		}
		return r.flush()
	}
	for _, u := range uris {
		r.printf("%s", u)
	}
	return r.flush()
}

// exportNames returns the exports that are told of: those of the command line, and the default one where nothing has a name.
func (s *serving) exportNames() []string {
	if len(s.names) == 0 {
		return []string{s.fallback}
	}
	return s.names
}

// notify tells a service manager what becomes of the server (sd_notify(3)), where one has asked for it. That it cannot be told is no reason to
// stop.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.Write([]byte(state))
}
