package formats

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/imgtool/imgtool/block"
)

// Ref is something outside an image that the image names and that must be opened to read it. Its fields come from the image: nobody the
// user trusts has written them.
type Ref struct {
	Kind   string // what it is to the image: BackingFile, DataFile, or another word of its format
	Name   string // as the image has it
	Format string // the format that the image says it has; "" where it says none
	From   string // path of the image that refers to it
}

// What a reference is to an image, in words for messages.
const (
	BackingFile = "backing file" // shown where the image itself holds nothing
	DataFile    = "data file"    // holds the image's data, as they are
)

// Opener opens what an image refers to, once a Gate has let it pass. A backing file is opened in the format that ref says, or by its bytes where
// it says none; a data file is opened as ref.Format "raw". With write it is opened for writing. The device is the caller's.
type Opener func(ctx context.Context, ref Ref, write bool) (block.Device, error)

// Open opens what ref names. A nil opener denies.
func (o Opener) Open(ctx context.Context, ref Ref, write bool) (block.Device, error) {
	if o == nil {
		return nil, denied(ref, "references are not followed here")
	}
	return o(ctx, ref, write)
}

// Gate decides whether a reference may be followed: nil lets it pass, an error that wraps block.ErrDenied does not, and another error says why that
// could not be found out.
// It may be called from many goroutines.
type Gate func(ctx context.Context, ref Ref) error

// Ask asks g about ref. A nil gate denies.
func (g Gate) Ask(ctx context.Context, ref Ref) error {
	if g == nil {
		return denied(ref, "references are not followed here")
	}
	return g(ctx, ref)
}

// AllowAll is the gate of a user who trusts the image: everything passes.
func AllowAll(context.Context, Ref) error { return nil }

// DirGate is the gate of the command line: a regular file passes that lies in the image's own folder or below it, named by a relative
// path. Absolute names, "..", symbolic links that lead out of the folder, URLs, protocols and json: names do not.
//
// It looks at the folder as it is when asked; who can write there while an image is opened can swap files, but can write the image too.
func DirGate(_ context.Context, ref Ref) error {
	if ref.From == "" {
		return denied(ref, "the image that refers to it has no folder")
	}
	// As in qemu, a colon before the first separator makes a protocol of what is before it: nbd:, json:, https:. Drive letters too.
	if i := strings.IndexAny(ref.Name, `:/\`); i >= 0 && ref.Name[i] == ':' {
		return denied(ref, "it is not a plain file name")
	}
	if !filepath.IsLocal(ref.Name) || strings.ContainsRune(ref.Name, 0) {
		return denied(ref, "it is not a name below the image's own folder")
	}
	root, err := os.OpenRoot(filepath.Dir(ref.From))
	if err != nil {
		return failed(ref, err)
	}
	defer root.Close()
	fi, err := root.Stat(ref.Name)
	switch {
	case errors.As(err, new(syscall.Errno)):
		return failed(ref, err)
	case err != nil: // of os.Root itself: it leads out
		return denied(ref, cause(err).Error())
	case !fi.Mode().IsRegular():
		return denied(ref, "it is not a regular file")
	}
	return nil
}

// failed returns the error for a ref that cannot be looked at, which says nothing of whether it would be let pass.
func failed(ref Ref, err error) error { return fmt.Errorf("%s %q: %w", ref.Kind, ref.Name, cause(err)) }

// cause returns an error of package os without the name of the file.
func cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// denied returns the error of a gate that refuses ref.
func denied(ref Ref, why string) error {
	return block.WithHint(fmt.Errorf("%s %q: %w: %s", ref.Kind, ref.Name, block.ErrDenied, why),
		"--allow-references follows whatever the image names")
}
