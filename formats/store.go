package formats

import (
	"context"

	"github.com/imgtool/imgtool/block"
)

// Store is the place where a new image is made. Most images are one file; some are more: a descriptor and extents, an image and its data
// file. None of them has its name before all are done.
//
// A store is used by one goroutine at a time, and ends with Commit or Abort.
type Store interface {
	// Name returns the name that the image will have, without folders; names of further files are made from it. It is "" where the
	// image has none: a block device.
	Name() string

	// Create makes a file of the image and opens it for reading and writing. An empty name stands for the image itself; others are names
	// in the same folder, without separators, and errors.ErrUnsupported is returned where the target can not have further files.
	// A new file is empty and Caps.Resize is set. A target that exists already (a block device) keeps its size and its bytes.
	//
	// The store owns the device: Close of it does nothing, Commit and Abort close it.
	Create(ctx context.Context, name string) (block.Device, error)

	// Commit closes the files and gives them their names. Where that fails, it leaves none of them behind and returns the error.
	Commit(ctx context.Context) error

	// Abort closes the files and removes them. After Commit it does nothing, so that it can be deferred.
	Abort() error
}
