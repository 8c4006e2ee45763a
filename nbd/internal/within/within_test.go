package within

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

func TestDo(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	read := func() error {
		_, err := a.Read(make([]byte, 1))
		return err
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, errors.New("too slow"))
	defer cancel()
	if err := Do(ctx, a, read); !errors.Is(err, context.Cause(ctx)) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read that waits: %v", err)
	}
	if err := Do(ctx, a, func() error { t.Error("called"); return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a context that has ended: %v", err)
	}
	go b.Write([]byte("x"))
	if err := Do(t.Context(), a, read); err != nil {
		t.Errorf("after a context that ended: %v", err)
	}
	wrong := errors.New("wrong")
	if err := Do(t.Context(), a, func() error { return wrong }); err != wrong {
		t.Errorf("an error of the function: %v", err)
	}
	// The context ends while the function succeeds: what it did counts, and no deadline is left.
	ctx, end := context.WithCancel(t.Context())
	if err := Do(ctx, a, func() error { end(); return nil }); err != nil {
		t.Errorf("success at the end of the context: %v", err)
	}
	go b.Write([]byte("x"))
	if err := read(); err != nil {
		t.Errorf("a deadline is left: %v", err)
	}
}
