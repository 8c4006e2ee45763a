package block

import "context"

// Stream is a source of bytes that goes one way only: a pipe, a foreign compressed file, a chunked transfer.
// It is used by one goroutine at a time.
type Stream interface {
	// Size returns the number of bytes that the whole stream holds, where that is known before the end.
	Size() (n int64, known bool)
	// Next returns the next run, and io.EOF after the last one: only then have all checksums been right.
	Next(ctx context.Context) (Run, error)
	// Close releases the stream.
	Close() error
}

// Run is a piece of a Stream.
type Run struct {
	Len  int64  // bytes, at least 1
	Zero bool   // they are all zero and Data is nil
	Data []byte // Len bytes otherwise; valid until the next call of Next
}
