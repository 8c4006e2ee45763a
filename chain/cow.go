package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/source/file"
)

// largeTemp is where Unix keeps temporary files that may not fit into memory, as those in /tmp often have to.
const largeTemp = "/var/tmp"

// cowOptions are the options of the layer cow.
type cowOptions struct {
	Dir string `option:"dir" help:"folder for the temporary file; without it TMPDIR or /var/tmp"`
}

func openCow(_ context.Context, dev block.Device, l Layer) (block.Device, error) {
	o, err := formats.ParseOptions(&cowOptions{}, l.values())
	if err != nil {
		return nil, err
	}
	return ThrowAway(dev, o.Dir)
}

// ThrowAway returns dev, which is never written, with changes going to a sparse temporary file in the folder dir ("" is TMPDIR, or /var/tmp), which is
// gone when the device is closed. The device owns dev unless there is an error.
func ThrowAway(dev block.Device, dir string) (block.Device, error) {
	upper, err := newScratch(dir, dev.Size())
	if err != nil {
		err = fmt.Errorf("make a temporary file for what is written: %w", err)
		return nil, block.WithHint(err, "TMPDIR, or cow,dir=FOLDER, names another folder")
	}
	o, err := block.NewOverlay(dev, upper)
	if err != nil {
		return nil, errors.Join(err, upper.Close())
	}
	return o, nil
}

// scratch is a temporary file. Nothing in it has to survive the program, so that it is never flushed.
type scratch struct {
	block.Filter
	close func() error
}

// newScratch makes an empty one. Only this user can open it while it has a name, which it loses at once where the system can do that.
func newScratch(dir string, size int64) (*scratch, error) {
	if dir == "" {
		dir = os.TempDir()
		if fi, err := os.Stat(largeTemp); os.Getenv("TMPDIR") == "" && err == nil && fi.IsDir() {
			dir = largeTemp
		}
	}
	parent := dir
	dir, err := os.MkdirTemp(parent, "imgtool-cow-")
	if at := (*os.PathError)(nil); errors.As(err, &at) {
		return nil, fmt.Errorf("%s: %w", parent, at.Err)
	}
	if err != nil {
		return nil, err
	}
	p, err := file.Create(filepath.Join(dir, "upper"), file.CreateOptions{Size: size, NoLock: true})
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	s := &scratch{Filter: block.Filter{Device: p.Device()}}
	if os.Remove(p.Device().File().Name()) == nil {
		s.close = p.Device().Close
		_ = os.Remove(dir) // an empty folder does no harm
		return s, nil
	}
	s.close = func() error { return errors.Join(p.Abort(), os.Remove(dir)) }
	return s, nil
}

func (s *scratch) Info() block.Info {
	i := s.Filter.Info()
	i.Caps.FUA = true
	return i
}

func (s *scratch) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return s.Filter.Write(ctx, p, off, f&^block.FUA)
}

func (s *scratch) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	return s.Filter.Zero(ctx, off, n, f&^block.FUA)
}

func (s *scratch) Flush(context.Context) error { return nil }
func (s *scratch) Close() error                { return s.close() }
