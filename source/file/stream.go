package file

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// Stream is an open file whose bytes go one way only: a FIFO, or what behaves like one.
type Stream struct {
	*os.File
	ctx  context.Context
	stop func() bool // ends the wait for ctx
}

// OpenStream opens what Open returns ErrNotSeekable for: to be read, or to be written where write is set. It waits for the other end of a FIFO
// until ctx is done, which then ends Read and Write too, except where the operating system cannot interrupt them. Errors do not name path.
func OpenStream(ctx context.Context, path string, write bool) (*Stream, error) {
	flag, other := os.O_RDONLY, os.O_WRONLY
	if write {
		flag, other = other, flag
	}
	type result struct {
		f   *os.File
		err error
	}
	opened := make(chan result, 1)
	go func() {
		f, err := os.OpenFile(path, flag, 0)
		opened <- result{f, err}
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			return nil, bare(r.err)
		}
		s := &Stream{File: r.f, ctx: ctx}
		s.stop = context.AfterFunc(ctx, func() { _ = r.f.SetDeadline(time.Now()) }) // fails where nothing can be interrupted
		return s, nil
	case <-ctx.Done():
	}
	go func() {
		if r := <-opened; r.err == nil {
			_ = r.f.Close() // nothing was done with it
		}
	}()
	// Whoever waits for the other end is not left behind: it gets one, for a moment.
	if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		if f, err := os.OpenFile(path, other|syscall.O_NONBLOCK, 0); err == nil {
			_ = f.Close() // nothing was done with it
		}
	}
	return nil, ctx.Err()
}

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) {
	n, err := s.File.Read(p)
	return n, s.interrupted(err)
}

// Write implements io.Writer.
func (s *Stream) Write(p []byte) (int, error) {
	n, err := s.File.Write(p)
	return n, s.interrupted(err)
}

// interrupted returns the error of the context where it has ended a call.
func (s *Stream) interrupted(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	return err
}

// Close closes the file.
func (s *Stream) Close() error {
	s.stop()
	return bare(s.File.Close())
}
