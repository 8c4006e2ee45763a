package main

import (
	"context"
	"fmt"
	"io"

	"github.com/imgtool/imgtool/block"
)

// sizedStream is a stream that has the size which the user says: zeros follow where it ends before, and more bytes are an error.
type sizedStream struct {
	block.Stream
	name string
	size int64 // bytes
	off  int64 // of the next run
}

// withSize gives the source the size that --size says, which is for a source that has none of its own.
func (v *conversion) withSize(s *origin) error {
	if v.size < 0 {
		return nil
	}
	var n int64
	known := true
	if s.device != nil {
		n = s.device.Size()
	} else {
		n, known = s.stream.Size()
	}
	if known {
		return usagef("--size is for a source that does not say how long it is, and %s has %d bytes; resize makes an image longer or shorter", s.name(), n)
	}
	s.stream = &sizedStream{Stream: s.stream, name: s.name(), size: int64(v.size)}
	return nil
}

// Size implements block.Stream.
func (s *sizedStream) Size() (int64, bool) { return s.size, true }

// Next implements block.Stream.
func (s *sizedStream) Next(ctx context.Context) (block.Run, error) {
	r, err := s.Stream.Next(ctx)
	if rest := s.size - s.off; err == io.EOF && rest > 0 {
		r, err = block.Run{Len: rest, Zero: true}, nil
	}
	if err == nil && r.Len > s.size-s.off {
		return block.Run{}, nameFile(s.name, fmt.Errorf("it has more than the %d bytes that --size says", s.size))
	}
	s.off += r.Len
	return r, err
}
