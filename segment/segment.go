// Package segment holds the idea of an output file as a sequence of segments, and the engine that writes one.
//
// A format that is written from front to back (a compressed image, a compact virtual disk) does not write: it plans. Its plan yields
// segments in the order of the file: bytes it knows, runs of zeros, and functions that make bytes. [Write] runs the functions on many
// workers and gives every segment its place in order. To an output that can be written at any place it writes in parallel, leaves zeros out as
// holes, and applies late patches (an index in a header, filled in when all is known); to any io.Writer it writes in order. The bytes
// never depend on the number of workers.
package segment

import (
	"context"
	"iter"
)

// Segment is a piece of the output. At most one of Bytes, Zeros, Fill and Late is set; with none of them it has no bytes.
type Segment struct {
	// Bytes are written as they are. They must not change before the plan is written.
	Bytes []byte
	// Zeros is a number of zero bytes.
	Zeros int64
	// Fill appends the segment's bytes to buf and returns it. Workers call it in any order, before or while earlier segments are written.
	Fill func(ctx context.Context, buf []byte) ([]byte, error)
	// Late returns the segment's bytes when everything before it has been placed: a checksum, a directory. It runs alone.
	Late func() ([]byte, error)

	// Fit, where set beside Fill, is given what Fill has made and where in the output it begins, and returns the segment's bytes: the same, or with
	// padding in them that depends on the place. It may use the room of data. Calls come in order, each when all that is before it has been placed.
	Fit func(off int64, data []byte) ([]byte, error)
	// Solid says that the segment's zeros take space in the output, rather than become holes.
	Solid bool

	// Placed, where set, is told where the segment came to lie, in bytes from the start of the output. Calls come in order, one at a time.
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
	// Patches, where set, is called once when every segment has been placed.
	Patches func() ([]Patch, error)
	// NeedsPatches says that the output is not valid without its patches: it cannot go to a sink that goes one way. Other plans make a valid file
	// without them, and a sink that goes one way leaves them out.
	NeedsPatches bool
	// Work is the sum of the segments' Work.
	Work int64
	// Buffer is the most memory in bytes that a segment needs from when it is filled until it is written; 0 where it is little.
	Buffer int64
}
