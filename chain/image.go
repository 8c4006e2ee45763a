package chain

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// Options say how to open an image. Registry must be set; the rest may be left out.
type Options struct {
	Registry formats.Registry // the formats there are: all.Drivers()
	Write    bool             // open for reading and writing
	Format   string           // name of a format that is put last, with nothing sniffed behind it; "" for none
	Gate     formats.Gate     // asked about what an image refers to; nil denies
	Log      *slog.Logger     // warnings of formats; nil drops them
	Memory   int64            // what caches of one layer may hold, in bytes; 0: the driver's default
	Workers  int              // goroutines that may compute at a time, per layer; 0: as many as there are CPUs
	// Sequential says that the image will be read once, from front to back: then it may come as a Stream where that is cheaper.
	Sequential bool
	// Glance says that little of the image will be read, near its beginning: its size may be what the image suggests, see block.Info.Probable.
	Glance bool
	// Lazy says that the files which the image refers to are opened when they are first needed; see formats.OpenOptions.
	Lazy bool
	// Alone hides what lies below the image: its backing file is not opened, and reads as if it had no bytes.
	Alone bool
	// IndexFile is where the outermost layer that is entered by an index keeps it; see formats.OpenOptions.
	IndexFile string
	AllowBusy bool     // write even a disk that is mounted or held
	NoLock    bool     // neither take locks nor look at those of others
	Stdin     *os.File // what - stands for; nil: os.Stdin
	NBD       NBDOptions

	referred bool    // an image names it, not the user
	below    bool    // stop below the last format: see OpenBelow
	pending  *Target // whose files a reference may mean: see Reopen
}

// Image is an open chain. Exactly one of Device and Stream is set; Close of the Image closes it.
type Image struct {
	Device block.Device // where any offset can be read
	Stream block.Stream // where the bytes go one way only

	Spec   Spec        // as written
	Layers []LayerInfo // what stands over the source, from the source outward: written or sniffed
	Path   string      // of the local file or disk that the source is; "" for other sources and for pipes

	format  string
	stat    os.FileInfo // of the local file; nil for other sources
	closers []io.Closer // below the stream, in the order of opening
	below   *Below      // set where the last format has not been opened
}

// LayerInfo tells of one layer of an open image.
type LayerInfo struct {
	Name string // of the format or the layer, not an alias
	How  string // Given or Sniffed
}

// How a layer came to be there.
const (
	Given   = "given"   // written in the chain, or named by Options.Format
	Sniffed = "sniffed" // found by the bytes
)

// Format returns the name of the last format in the chain, as drivers call it: raw, qcow2.
func (i *Image) Format() string { return i.format }

// Name returns the source as the user wrote it.
func (i *Image) Name() string { return sourceName(i.Spec.Source) }

// Close closes the device or the stream and everything below it. It does not flush.
func (i *Image) Close() error {
	if i.Device != nil {
		return i.Device.Close()
	}
	var errs []error
	if i.Stream != nil {
		errs = append(errs, i.Stream.Close())
	}
	for _, c := range slices.Backward(i.closers) {
		errs = append(errs, naming(i.Name()).wrap(c.Close()))
	}
	return errors.Join(errs...)
}

// SameFile reports whether path leads to the file that the image is read from, whatever name each of them goes by. It is false for
// sources that are not files, and where path does not exist.
func SameFile(i *Image, path string) bool {
	if i.stat == nil {
		return false
	}
	stat, err := os.Stat(path)
	return err == nil && os.SameFile(i.stat, stat)
}

// sourceName returns what errors call a source.
func sourceName(source string) string {
	if source == Standard {
		return "standard input"
	}
	return source
}
