package file

import (
	"context"
	"errors"

	"github.com/imgtool/imgtool/block"
)

// How Clone copied.
const (
	Shared   = "shared blocks"  // reflink: it took no space and no time
	InKernel = "kernel copy"    // copy_file_range
	Copied   = "read and write" // through memory
)

// Clone makes dst, a new and empty file, a copy of src: sharing its blocks where the file system can, else copying inside the kernel, else
// reading and writing. Holes stay holes. It returns how the copy was made.
func Clone(ctx context.Context, dst, src *Device) (how string, err error) {
	size := src.Size()
	if err := dst.Resize(ctx, size); err != nil {
		return "", err
	}
	if err := Reflink(dst.File(), src.File()); err == nil {
		return Shared, nil
	} else if !errors.Is(err, errors.ErrUnsupported) {
		return "", err
	}
	how = InKernel
	for e, err := range block.Walk(ctx, src, block.Map{}, 0, size) {
		if err == nil && e.Flags&block.ExtZero == 0 {
			how, err = copyExtent(ctx, dst, src, e, how)
		}
		if err != nil {
			return "", err
		}
	}
	return how, nil
}

// clonePiece is how much Clone copies between two looks at the context, in bytes.
const clonePiece = 64 << 20

// copyExtent copies one run of data, and returns how the rest is to be copied.
func copyExtent(ctx context.Context, dst, src *Device, e block.Extent, how string) (string, error) {
	for off := e.Off; off < e.End(); {
		if err := ctx.Err(); err != nil {
			return how, err
		}
		n := min(clonePiece, e.End()-off)
		if how == InKernel {
			k, err := CopyRange(dst.File(), off, src.File(), off, n)
			off += k
			if errors.Is(err, errors.ErrUnsupported) {
				how, err = Copied, nil
			}
			if err != nil {
				return how, err
			}
			continue
		}
		p := make([]byte, min(n, 1<<20))
		if err := src.Read(ctx, p, off); err != nil {
			return how, err
		}
		if err := dst.Write(ctx, p, off, 0); err != nil {
			return how, err
		}
		off += int64(len(p))
	}
	return how, nil
}
