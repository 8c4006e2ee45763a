// Package within bounds what is done with a network connection by a context.
package within

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// past is a deadline that has gone by: it ends reads and writes that wait.
var past = time.Unix(1, 0)

// Do calls f, which reads and writes conn, and makes those fail when ctx ends; f's error is then returned together with that of ctx. It replaces
// the deadlines of conn while f runs, and leaves it without any. It never closes conn.
func Do(ctx context.Context, conn net.Conn, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline() // the zero time is none
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		conn.SetDeadline(past)
	})
	err := f()
	if !stop() {
		<-ended // or it could set its deadline after it has been taken away
	}
	if reset := conn.SetDeadline(time.Time{}); err == nil {
		err = reset
	}
	if err == nil {
		return nil
	}
	cause := context.Cause(ctx)
	if cause == nil && errors.Is(err, os.ErrDeadlineExceeded) && !deadline.IsZero() {
		cause = context.DeadlineExceeded // the connection's clock was a little faster
	}
	if cause != nil {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}
