package formats

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/segment"
)

// Driver is one image format. Functions that are nil are not supported. All of them may be called from many goroutines.
type Driver struct {
	Name    string   // what -f and -O take, and Info.Format says: lower case, short
	Aliases []string // other names for it, as other tools have them
	Doc     string   // one line for the list of formats

	// Transport marks a wrapper that images travel in (gz, xz, zst, bz2, tar, ova). Sniffing goes on inside it, and ends at every other
	// format, because what lies inside a disk is written by its guest.
	Transport bool

	// Indexes says that Open and Decode use OpenOptions.IndexFile.
	Indexes bool

	// Compresses says that Plan heeds CreateOptions.Compress.
	Compresses bool

	// Extensions are the file name endings of the format, with the dot, in lower case; the first is the usual one.
	Extensions []string

	// Probe says how sure it is that the bytes are of this format. It is a pure function of them.
	Probe func(h Head) Score

	// Open returns the image in dev as a device, and owns dev from then on: closing the image closes it. Where it returns an error,
	// dev still belongs to the caller. It returns block.ErrNotFormat where dev holds something else, a *block.CorruptError where the
	// image is damaged, and errors.ErrUnsupported where this image can only be read from front to back, by Decode.
	Open func(ctx context.Context, dev block.Device, o OpenOptions) (block.Device, error)

	// Decode returns the image that is read from r, from front to back. Closing the stream does not close r, and ends whatever still reads
	// from it. The stream returns io.EOF only once the checksums of the format have been right and r is at its end, so that the checksums
	// of what r comes out of have been right too.
	Decode func(ctx context.Context, r io.Reader, o OpenOptions) (block.Stream, error)

	// Create makes an image of o.Size bytes in files of s. It reads as zero, except where the store gave the format a place that held
	// bytes before and the format keeps them, as raw does. Closing the device writes what the format still keeps in memory, but neither
	// commits nor aborts s: the caller does, after Close.
	Create func(ctx context.Context, s Store, o CreateOptions) (block.Device, error)

	// Plan returns an image of what src holds, to be written by segment.Write. src stays open while it is written, and stays the caller's.
	Plan func(ctx context.Context, src block.Device, o CreateOptions) (*segment.Plan, error)

	// Check looks for contradictions in the metadata of the image in dev, without the data that it holds, and repairs them where o says so; then
	// dev must be writable. It works on images that Open refuses; an error means that it could not begin or go on. dev stays the caller's.
	Check func(ctx context.Context, dev block.Device, o CheckOptions) (CheckResult, error)

	// Measure says how long the file gets that Plan makes of src, or, where src is nil, that Create makes with o.Size.
	Measure func(ctx context.Context, src block.Device, o CreateOptions) (Measurement, error)

	// PlanStream does the same for a source of which the size may be known only at the end. A plan of a stream is written once.
	PlanStream func(ctx context.Context, src block.Stream, o CreateOptions) (*segment.Plan, error)

	// Options is a pointer to a struct that holds the defaults of what users may set of a new image, or nil. See ParseOptions.
	Options any
	// OpenOptions is the same for an image that is opened. In a chain, an argument without a name (ova=disk1.vmdk) is the first of them.
	OpenOptions any
}

// OpenOptions are what Open and Decode may use. The zero value opens for reading, refuses every reference and uses small defaults.
type OpenOptions struct {
	Name   string            // of the file, as the user gave it; what references are relative to. "" where there is none
	Values map[string]string // the user's options; see ParseOptions
	Write  bool              // the image will be written; a format that cannot returns block.ErrReadOnly
	// Sequential says that the image will be read once, from front to back: Open may return errors.ErrUnsupported where Decode is cheaper.
	Sequential bool
	// Glance says that little of the image will be read, near its beginning: Open need not read all of it to be sure of its size, and says so
	// in Info.Probable.
	Glance bool
	// IndexFile is where a format that can be entered only with an index keeps the index of this image: read where the file exists, written
	// once the image has been read through where it does not. nil for nowhere.
	IndexFile IndexFile
	// Lazy says that what the image refers to is opened when it is first needed, and that a failure is one of that read or write. It is for
	// those who look at an image but not at what it holds.
	Lazy bool
	// Refer opens what the image refers to; nil denies everything.
	Refer   Opener
	Log     *slog.Logger // warnings about the image; see Logger
	Memory  int64        // what caches and read-ahead of this image may hold, in bytes; 0: the driver's default
	Workers int          // goroutines that may compute at a time; 0: as many as there are CPUs
}

// Logger returns o.Log, or a logger that drops everything.
func (o OpenOptions) Logger() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}

// CreateOptions are what Create, Plan and PlanStream may use. The bytes of the image depend on Size, Values, ModTime and the content only,
// never on Workers or Memory.
type CreateOptions struct {
	Size    int64             // of the device inside the image, in bytes; Plan takes it from its source, PlanStream from here where the stream does not know: then -1 says that nobody does
	Values  map[string]string // the user's options; see ParseOptions
	ModTime time.Time         // what the format records as its time of making; the zero time: as little as the format allows
	Memory  int64             // what the writing may hold in memory, in bytes; 0: the driver's default
	Workers int               // goroutines that may compute at a time; 0: as many as there are CPUs

	// Compress asks for compressed data of formats that can do with and without; others ignore it.
	Compress bool
	// OneWay says that the plan goes to a pipe: where a format needs to know more of the source before its first byte, it costs more to plan,
	// and a plan that needs Patches is not possible.
	OneWay bool
}

// Score says how sure a probe is. Scores between the named ones are legal.
type Score int

const (
	// No: the bytes are not of this format.
	No Score = 0
	// Fallback: nothing speaks against it, as nothing ever does against raw.
	Fallback Score = 1
	// Weak: few bits speak for it, as in a magic number of two bytes.
	Weak Score = 25
	// Likely: a magic number of four bytes or more is right.
	Likely Score = 50
	// Certain: the magic number and the fields around it are right.
	Certain Score = 100
)

// Registry is a list of drivers in the order in which they are asked. It is not changed once it is made.
type Registry []Driver

// Lookup returns the driver with this name or alias, or nil. Names are compared without regard to case.
func (r Registry) Lookup(name string) *Driver {
	for i := range r {
		if strings.EqualFold(r[i].Name, name) || slices.ContainsFunc(r[i].Aliases, func(a string) bool { return strings.EqualFold(a, name) }) {
			return &r[i]
		}
	}
	return nil
}

// Probe returns the driver that is surest of what h shows, and how sure; the first in order wins ties. It returns nil and No where
// none is. The caller asks h.Err afterwards: what could not be read was judged as missing.
func (r Registry) Probe(h Head) (*Driver, Score) {
	var best *Driver
	score := No
	for i := range r {
		if r[i].Probe == nil {
			continue
		}
		if s := r[i].Probe(h); s > score {
			best, score = &r[i], s
		}
	}
	return best, score
}

// ForFile returns the driver that has the ending of a file name, or nil: the format that a user most likely wants to write there.
func (r Registry) ForFile(name string) *Driver {
	ext := strings.ToLower(filepath.Ext(name))
	for i := range r {
		if slices.Contains(r[i].Extensions, ext) {
			return &r[i]
		}
	}
	return nil
}

// Names returns the drivers' names in order, without aliases.
func (r Registry) Names() []string {
	names := make([]string, len(r))
	for i := range r {
		names[i] = r[i].Name
	}
	return names
}

// Check returns what is wrong with the registry itself: a driver without a name, a name or an alias given twice. Tests call it.
func (r Registry) Check() error {
	seen := map[string]string{}
	for _, d := range r {
		if d.Name == "" {
			return errors.New("a driver has no name")
		}
		for _, n := range append([]string{d.Name}, d.Aliases...) {
			n = strings.ToLower(n)
			if other, twice := seen[n]; twice {
				return fmt.Errorf("drivers %s and %s are both called %q", other, d.Name, n)
			}
			seen[n] = d.Name
		}
		for _, o := range []any{d.Options, d.OpenOptions} {
			if _, err := ParseOptions(o, nil); err != nil {
				return fmt.Errorf("driver %s: %w", d.Name, err)
			}
		}
	}
	return nil
}
