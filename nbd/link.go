package nbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

const (
	busyLoad       = 16               // load that keeps one connection busy
	loadBytes      = 32 << 10         // bytes of a call that are as much load as the call itself
	attemptTimeout = 20 * time.Second // for one attempt to connect again
	firstPause     = 500 * time.Millisecond
	longestPause   = 10 * time.Second
	parting        = 100 * time.Millisecond // for a connection that is half made when the device is closed
	refusedPauses  = 20                     // first pauses until a server that refused one more connection is asked again
)

// link is one of the connections of an export: a *client.Conn, or none while it is lost or not yet made. export.mu guards it.
type link struct {
	conn  *client.Conn
	birth int64 // counts up over all connections
	load  int   // of its calls
}

// loadOf returns the load of a call for n bytes. Calls for few bytes share a connection, because they then share its wake-ups and its system calls as
// well; what costs with many bytes is to copy them, which connections do beside each other.
func loadOf(n int64) int { return 1 + int(min(n, 1<<20)/loadBytes) }

// links keeps the connections of an export.
type links struct {
	dial    func(ctx context.Context) (*client.Conn, error)
	retries int
	pause   time.Duration // before the second attempt
	log     *slog.Logger

	ctx     context.Context // ends when Close begins: no call waits for a connection any more
	cancel  context.CancelFunc
	spare   context.Context // for connections that no call waits for; ends when Close has waited for those that are half made
	drop    context.CancelFunc
	parting time.Duration  // how long that is at most
	work    sync.WaitGroup // connections being made in the background
	making  chan struct{}  // holds a token: who has it makes a connection that calls wait for

	births   atomic.Int64 // connections made
	failures atomic.Int64 // attempts of calls that failed
	failure  error        // the last one's; who has the token of making reads and writes it

	mu     sync.Mutex
	all    []*link
	limit  int // links at most
	adding bool
	again  time.Time // when the server is asked for one more, after it has refused
}

// take returns the connection for a call, and makes one where there is none. The caller gives the link back.
func (s *links) take(ctx context.Context, load int) (*link, error) {
	if l := s.choose(load); l != nil {
		return l, nil
	}
	failures := s.failures.Load()
	select {
	case s.making <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.making }()
	if l := s.choose(load); l != nil {
		return l, nil // somebody else has made it meanwhile
	}
	if s.failures.Load() != failures {
		return nil, s.failure // somebody else has tried meanwhile
	}
	attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)() // Close does not wait for a server that says nothing
	l, err := s.add(attempt, load)
	switch {
	case err == nil || ctx.Err() != nil:
		return l, err
	case s.ctx.Err() != nil:
		err = fmt.Errorf("%w: %w", os.ErrClosed, err)
	case attempt.Err() != nil:
		err = fmt.Errorf("no answer within %v: %w", attemptTimeout, err)
	}
	s.failure = err
	s.failures.Add(1)
	return nil, err
}

// choose returns a connection with that load more on it: the first that is not yet busy. Where all are busy it is the least busy one, and another one is
// begun to be made.
func (s *links) choose(load int) *link {
	s.mu.Lock()
	defer s.mu.Unlock()
	var best *link
	for _, l := range s.all {
		if best == nil || best.load >= busyLoad && l.load < best.load {
			best = l
		}
	}
	if best == nil {
		return nil
	}
	if best.load >= busyLoad && len(s.all) < s.limit && !s.adding && s.ctx.Err() == nil && !time.Now().Before(s.again) {
		s.adding = true
		s.work.Go(s.addInBackground)
	}
	best.load += load
	return best
}

// takeOldest is take for the oldest connection.
func (s *links) takeOldest(ctx context.Context, load int) (*link, error) {
	s.mu.Lock()
	if len(s.all) > 0 {
		defer s.mu.Unlock()
		l := slices.MinFunc(s.all, func(a, b *link) int { return cmp.Compare(a.birth, b.birth) })
		l.load += load
		return l, nil
	}
	s.mu.Unlock()
	return s.take(ctx, load)
}

// give ends a call of that load on a link.
func (s *links) give(l *link, load int) {
	s.mu.Lock()
	l.load -= load
	s.mu.Unlock()
}

// add makes a connection and returns it with that load on it.
func (s *links) add(ctx context.Context, load int) (*link, error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(conn, load), nil
}

// put adds a connection with that load on it, with mu held.
func (s *links) put(conn *client.Conn, load int) *link {
	l := &link{conn: conn, birth: s.births.Add(1), load: load}
	s.all = append(s.all, l)
	return l
}

// addInBackground adds a connection beside those that there are. A server that gives no more, or not now, is left alone for a while.
func (s *links) addInBackground() {
	ctx, cancel := context.WithTimeout(s.spare, attemptTimeout)
	defer cancel()
	conn, err := s.dial(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adding = false
	switch {
	case err != nil:
		s.again = time.Now().Add(refusedPauses * s.pause)
		if s.ctx.Err() == nil {
			s.log.Info("the server gives no other connection", "connections", len(s.all), "error", err)
		}
	case len(s.all) < s.limit:
		s.put(conn, 0)
	default: // calls have made connections meanwhile, in place of lost ones
		s.work.Go(func() { conn.Disconnect(s.spare) })
	}
}

// sweep forgets the connections that are dead.
func (s *links) sweep() {
	s.mu.Lock()
	var dead []*link
	s.all = slices.DeleteFunc(s.all, func(l *link) bool {
		gone := l.conn.Err() != nil
		if gone {
			dead = append(dead, l)
		}
		return gone
	})
	s.mu.Unlock()
	for _, l := range dead {
		s.log.Warn("connection lost", "error", l.conn.Err())
		l.conn.Close()
	}
}

// do makes a request of that load on the connection that choose gives, and again on another one where it is lost.
func (s *links) do(ctx context.Context, load int, choose func(context.Context, int) (*link, error), request func(*link) error) error {
	pause := time.Duration(0)
	for attempt := 0; ; attempt++ {
		l, err := choose(ctx, load)
		if err == nil {
			err = request(l)
			s.give(l, load)
			s.leave(l, err)
		}
		if err == nil || !lost(err) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		s.sweep()
		if attempt >= s.retries {
			return err
		}
		if pause > 0 {
			s.log.Info("connecting again", "attempt", attempt+1, "after", pause, "error", err)
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if s.ctx.Err() != nil {
			return fmt.Errorf("%w: %w", os.ErrClosed, err)
		}
		pause = min(max(2*pause, s.pause), longestPause)
	}
}

// leave disconnects from a server that is shutting down, as it has asked for.
func (s *links) leave(l *link, err error) {
	if !errors.Is(err, wire.ESHUTDOWN) {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, time.Second)
	defer cancel()
	l.conn.Disconnect(ctx)
}

// lost reports whether another connection may do better: the connection broke or could not be made, and not because the server is one that cannot be
// spoken with.
func lost(err error) bool {
	var protocol *client.ProtocolError
	var refused *client.OptionError
	switch {
	case errors.As(err, &protocol):
		return false
	case errors.As(err, &refused):
		return refused.Reply == wire.RepErrShutdown
	case errors.Is(err, errChanged), errors.Is(err, errServerGone), errors.Is(err, context.Canceled):
		return false
	case errors.Is(err, client.ErrDisconnected), errors.Is(err, wire.ESHUTDOWN), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.DeadlineExceeded):
		return true
	}
	var network net.Error
	return errors.As(err, &network)
}

// close disconnects from the server. A connection that is half made has a while to come about: a server complains of one that is given up.
func (s *links) close() {
	s.cancel()
	soon := time.AfterFunc(s.parting, s.drop)
	s.work.Wait()
	soon.Stop()
	s.drop()
	s.mu.Lock()
	all := s.all
	s.all = nil
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, l := range all {
		l.conn.Disconnect(ctx)
	}
}

var (
	// errChanged: the export is another one than before the connection was lost.
	errChanged = errors.New("nbd: the export has changed since the connection was lost")
	// errServerGone: the server that Start has started has ended.
	errServerGone = block.ErrorOf(client.ErrDisconnected, "nbd: the server has ended")
)
