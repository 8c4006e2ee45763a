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
	// A connection without deadlines, such as a pair of pipes that block, can only be waited for.
	if err := conn.SetDeadline(time.Time{}); err != nil && !errors.Is(err, os.ErrNoDeadline) {
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
	conn.SetDeadline(time.Time{})
	if cause := context.Cause(ctx); cause != nil && err != nil {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}
