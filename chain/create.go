package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/term"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/source/file"
)

// CreateOptions say how to make a target. The zero value replaces files, and writes without syncing.
type CreateOptions struct {
	InPlace   bool     // write into the file that exists, which keeps its size and what is not overwritten
	Sync      bool     // what is committed is durable; changes in place always are
	AllowBusy bool     // write even a disk that is mounted or held
	NoLock    bool     // neither take locks nor look at those of others
	Stdout    *os.File // what - stands for; nil: os.Stdout
	NBD       NBDOptions
	Log       *slog.Logger // what happens to connections; nil drops it
}

// Target is where a new image goes: a formats.Store, or a writer where bytes can go one way only. It is used by one goroutine at a time and
// ends with Commit or Abort; nothing is named before Commit.
type Target struct {
	// Writer is set where the target is a pipe, a FIFO or standard output; then Device is nil.
	Writer io.Writer
	// Device is the file of the image, or the disk. Close of it does nothing: Commit and Abort do.
	Device block.Device
	// InPlace says that the target existed before and holds old bytes, which have to be overwritten, zeros too. Its size is fixed.
	InPlace bool

	path  string // of a file or a disk; of others ""
	name  naming
	o     CreateOptions
	base  string
	first bool            // Device has been given out by Create
	files []*file.Pending // the image's own first; none in place
	names []string        // of all but the first
	disk  block.Device    // in place: what Device is, with its own Close
	pipe  io.Closer       // what Writer writes to; nil for standard output
	done  bool
}

// Create opens the target that text names: a path, which may be a disk or a FIFO, the URL of one, -, an NBD export or a program that serves one, or
// null:. What exists as a file is replaced when the target is committed, and not touched before; disks and exports are written in place. Binary data
// is not written to a terminal. What is written wrongly is a *UsageError; every other error is an *Error that names the target.
func Create(ctx context.Context, text string, o CreateOptions) (*Target, error) {
	spec, err := Parse(text)
	if err != nil {
		return nil, err
	}
	if len(spec.Layers) > 0 {
		return nil, usage("%q: a target has no layers; the format to write is chosen with -O, and :: in a name is written \\::", text)
	}
	t := &Target{name: naming(spec.Source), o: o}
	if err := t.open(ctx, spec.Source); err != nil {
		return nil, t.name.opening(err)
	}
	return t, nil
}

// open opens or begins what text, a source, is as a target.
func (t *Target) open(ctx context.Context, text string) error {
	if text == Standard {
		t.name = "standard output"
		return t.openStandard(t.o.Stdout)
	}
	src, arg, err := findSource(text)
	switch {
	case err != nil:
		return err
	case src.path != nil:
		if t.path, err = src.path(arg); err != nil {
			return err
		}
		t.name = naming(t.path)
		return t.openPath(ctx)
	case src.target:
		in, err := src.open(ctx, arg, Options{Write: true, NBD: t.o.NBD, Log: t.o.Log})
		if err != nil {
			return err
		}
		return t.inPlace(in.dev)
	case src.prefix == nullPrefix:
		return t.openNull(arg)
	}
	return usage("%q cannot be a target: only files, disks, exports of NBD servers, null: and - can; a file of this name is written as ./%s", text, text)
}

// IsFile reports whether the target that text names is a file or a disk, whose name may tell what it is to hold.
func IsFile(text string) bool {
	spec, err := Parse(text)
	if err != nil || spec.Source == Standard {
		return false
	}
	src, _, err := findSource(spec.Source)
	return err == nil && src.path != nil
}

// openStandard takes standard output.
func (t *Target) openStandard(f *os.File) error {
	if f == nil {
		f = os.Stdout
	}
	if term.IsTerminal(int(f.Fd())) {
		return errTerminal
	}
	t.Writer = &namedWriter{f, t.name}
	return nil
}

var errTerminal = usage("an image is not written to a terminal: redirect the output, or give a file name")

// openPipe opens a FIFO or what behaves like one. It waits for the other end.
func (t *Target) openPipe(ctx context.Context) error {
	s, err := file.OpenStream(ctx, t.path, true)
	if err != nil {
		return err
	}
	if isTerminal(s) {
		return errors.Join(errTerminal, s.Close())
	}
	t.Writer, t.pipe = &namedWriter{s, t.name}, s
	return nil
}

// isTerminal reports whether s is a terminal. It leaves the file as it is, which Fd would make one that cannot be interrupted.
func isTerminal(s *file.Stream) (is bool) {
	c, err := s.SyscallConn()
	if err != nil {
		return false
	}
	err = c.Control(func(fd uintptr) { is = term.IsTerminal(int(fd)) })
	return is && err == nil
}

// openPath opens or begins a file.
func (t *Target) openPath(ctx context.Context) error {
	stat, err := os.Stat(t.path)
	fresh := errors.Is(err, fs.ErrNotExist) || err == nil && stat.Mode().IsRegular()
	if fresh && !t.o.InPlace {
		return t.begin(t.path)
	}
	d, err := file.Open(ctx, t.path, file.Options{Write: true, NoLock: t.o.NoLock, AllowBusy: t.o.AllowBusy})
	if errors.Is(err, file.ErrNotSeekable) {
		return t.openPipe(ctx)
	}
	if err != nil {
		return err
	}
	return t.inPlace(block.Align(d, 0))
}

// inPlace makes dev, which keeps its size, the target. On an error it is closed.
func (t *Target) inPlace(dev block.Device) error {
	if !dev.Info().Caps.Write {
		return errors.Join(block.ErrReadOnly, dev.Close())
	}
	fixed, err := block.NewWindow(dev, 0, dev.Size())
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	t.InPlace, t.disk = true, fixed
	t.Device = &named{Filter: block.Filter{Device: block.NoClose(fixed)}, name: t.name}
	return nil
}

// openNull opens what forgets all that is written to it: with a size as a disk, and else as a new file that gets none.
func (t *Target) openNull(size string) error {
	if size == "" {
		t.Device = &sink{Device: block.NewNull(0)}
		return nil
	}
	n, err := sizes.ParseSize(size)
	if err != nil {
		return &UsageError{err}
	}
	return t.inPlace(block.NewNull(n))
}

// begin begins a file under a temporary name.
func (t *Target) begin(path string) error {
	p, err := file.Create(path, file.CreateOptions{NoLock: t.o.NoLock})
	if err != nil {
		return err
	}
	t.files = append(t.files, p)
	if t.Device == nil {
		t.base = filepath.Base(path)
		t.Device = t.device(p, t.name)
	}
	return nil
}

func (t *Target) device(p *file.Pending, name naming) block.Device {
	return &named{Filter: block.Filter{Device: block.NoClose(p.Device())}, name: name}
}

// Name implements formats.Store.
func (t *Target) Name() string { return t.base }

// Create implements formats.Store.
func (t *Target) Create(_ context.Context, name string) (block.Device, error) {
	switch {
	case t.done:
		return nil, os.ErrClosed
	case t.Device == nil:
		return nil, t.name.wrap(block.ErrorOf(errors.ErrUnsupported, "goes one way only"))
	case name == "" || name == t.base:
		if t.first {
			return nil, t.name.wrap(fs.ErrExist)
		}
		t.first = true
		return t.Device, nil
	case t.InPlace || len(t.files) == 0:
		return nil, t.name.wrap(block.ErrorOf(errors.ErrUnsupported, "cannot hold an image of several files"))
	case name != filepath.Base(name) || !filepath.IsLocal(name) || name == ".":
		return nil, t.name.wrap(fmt.Errorf("%q is not the name of a file in the same folder", name))
	case slices.Contains(t.names, name):
		return nil, t.name.wrap(fmt.Errorf("%s: %w", name, fs.ErrExist))
	}
	path := filepath.Join(filepath.Dir(t.path), name)
	if err := t.begin(path); err != nil {
		return nil, naming(path).opening(err)
	}
	t.names = append(t.names, name)
	return t.device(t.files[len(t.files)-1], naming(path)), nil
}

// Commit implements formats.Store: files get their names, the image itself last; a disk is flushed.
func (t *Target) Commit(ctx context.Context) error {
	if t.done {
		return os.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.commit(ctx); err != nil {
		return errors.Join(t.name.wrap(err), t.Abort())
	}
	t.done = true
	return nil
}

func (t *Target) commit(ctx context.Context) error {
	if t.InPlace {
		if err := t.disk.Flush(ctx); err != nil {
			return err
		}
	}
	var committed []string
	for i, p := range slices.Backward(t.files) {
		if err := p.Commit(t.o.Sync); err != nil {
			for _, path := range committed {
				err = errors.Join(err, os.Remove(path))
			}
			return err
		}
		if i > 0 {
			committed = append(committed, filepath.Join(filepath.Dir(t.path), t.names[i-1]))
		}
	}
	return t.close()
}

// close closes what is not a new file, once.
func (t *Target) close() error {
	disk, pipe := t.disk, t.pipe
	t.disk, t.pipe = nil, nil
	switch {
	case disk != nil:
		return disk.Close()
	case pipe != nil:
		return bare(pipe.Close())
	}
	return nil
}

// Abort implements formats.Store: new files are removed; what is written to a disk or a pipe stays.
func (t *Target) Abort() error {
	if t.done {
		return nil
	}
	t.done = true
	var errs []error
	for _, p := range t.files {
		errs = append(errs, t.name.wrap(p.Abort()))
	}
	return errors.Join(append(errs, t.name.wrap(t.close()))...)
}

// namedWriter is a writer whose errors name it.
type namedWriter struct {
	w    io.Writer
	name naming
}

func (w *namedWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	return n, w.name.wrap(bare(err))
}
