package formats

import "io"

// IndexFile is a file beside an image in which a format keeps what else it could only find out again by reading the image through.
type IndexFile interface {
	// Open opens what is kept, and returns fs.ErrNotExist where nothing is yet.
	Open() (Index, error)
	// Write keeps what write gives it, all or nothing. What was kept before is not replaced: fs.ErrExist.
	Write(write func(w io.Writer) error) error
	// Wrap adds the file's name to an error about what it holds.
	Wrap(err error) error
}

// Index is an open IndexFile.
type Index interface {
	io.ReaderAt
	io.Closer
	Size() int64 // bytes
}
