// Package segment holds the idea of an output file as a sequence of segments, and the engine that writes one.
//
// A format that is written from front to back (a compressed image, a compact virtual disk) does not write: it plans. Its plan yields
// segments in the order of the file: bytes it knows, runs of zeros, and functions that make bytes. [Write] runs the functions on many
// workers, puts what they make in order, and writes it to any io.Writer; where the output is a file that can be written at any place,
// zeros become holes and late patches (an index in a header, filled in when all is known) are applied. The bytes never depend on the
// number of workers.
package segment

import (
	"context"
	"iter"
)

// Segment is a piece of the output. Exactly one of Bytes, Zeros, Fill and Late is set.
type Segment struct {
	// Bytes are written as they are. They must not change before the plan is written.
	Bytes []byte
	// Zeros is a number of zero bytes.
	Zeros int64
	// Fill appends the segment's bytes to buf and returns it. Workers call it in any order, before or while earlier segments are written.
	Fill func(ctx context.Context, buf []byte) ([]byte, error)
	// Late returns the segment's bytes when everything before it has been placed: a checksum, a directory.
	Late func() ([]byte, error)

	// Placed, where set, is told where the segment came to lie, in bytes from the start of the output. Calls come in order, from one goroutine.
	Placed func(off, n int64)
	// Work is what the segment counts for in progress: usually the bytes of the source that it covers.
	Work int64
}

// Patch is a range of the output to write again when the rest is there.
type Patch struct {
	Off   int64
	Bytes []byte
}

// Plan is a whole output.
type Plan struct {
	// Segments yields the output in order. It stops at the first error.
	Segments iter.Seq2[Segment, error]
	// Patches, where set, is called once when every segment has been placed. An output that cannot seek leaves them out, so that
	// a plan must make a valid file without them.
	Patches func() ([]Patch, error)
	// Work is the sum of the segments' Work.
	Work int64
	// Buffer is the most memory in bytes that a segment needs from when it is filled until it is written; 0 where it is little.
	Buffer int64
}
