package chain

import (
	"bytes"
	"context"
	"io"

	"github.com/imgtool/imgtool/block"
)

// replay is a stream of which the beginning can be looked at before it is read.
type replay struct {
	block.Stream
	seen []block.Run // read ahead, with data of their own
	err  error       // what ended the reading ahead
}

// peek returns the first n bytes, or all where there are fewer, and whether these are all. It is called once, before Next.
func (s *replay) peek(ctx context.Context, n int) (first []byte, whole bool, err error) {
	for have := int64(0); have < int64(n); {
		r, err := s.Stream.Next(ctx)
		if err != nil {
			s.err = err
			break
		}
		r.Data = bytes.Clone(r.Data)
		s.seen = append(s.seen, r)
		have += r.Len
	}
	first = make([]byte, 0, n)
	for _, r := range s.seen {
		k := min(r.Len, int64(n-len(first)))
		if r.Zero {
			first = first[:int64(len(first))+k]
		} else {
			first = append(first, r.Data[:k]...)
		}
	}
	if s.err != nil && s.err != io.EOF { // no errors.Is: damage may have io.EOF as its cause
		return first, false, s.err
	}
	return first, s.err == io.EOF, nil
}

// Next implements block.Stream.
func (s *replay) Next(ctx context.Context) (block.Run, error) {
	if len(s.seen) > 0 {
		r := s.seen[0]
		s.seen = s.seen[1:]
		return r, nil
	}
	if s.err != nil {
		return block.Run{}, s.err
	}
	return s.Stream.Next(ctx)
}

// streamReader reads a stream as bytes, for the decoder of the next layer. ctx bounds all its reads.
type streamReader struct {
	ctx   context.Context
	s     block.Stream
	data  []byte
	zeros int64
}

// Read implements io.Reader.
func (r *streamReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.data) == 0 && r.zeros == 0 {
		run, err := r.s.Next(r.ctx)
		if err != nil {
			return 0, err
		}
		r.data = run.Data
		if run.Zero {
			r.zeros = run.Len
		}
	}
	if r.zeros > 0 {
		n := int(min(int64(len(p)), r.zeros))
		clear(p[:n])
		r.zeros -= int64(n)
		return n, nil
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}
