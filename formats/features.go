package formats

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/imgtool/imgtool/block"
)

// What only some formats have is found on an open image by block.As, as one of the interfaces below. Their methods may be called from many
// goroutines; those that change an image need it to be open for writing, and are durable when they return.

// Describer is an image that has more to say of itself than a size.
type Describer interface {
	// Describe reads metadata only.
	Describe(ctx context.Context) (Description, error)
}

// Description is what an image says of itself.
type Description struct {
	ClusterSize int64      // unit of allocation in bytes; 0 where there is none
	Encrypted   bool       // the data is
	Dirty       bool       // a writer has not ended properly
	Corrupt     bool       // the image is marked as damaged
	Backing     *Ref       // the image that shows through where this one holds nothing; nil where there is none
	Others      []Ref      // what else the image refers to
	Snapshots   []Snapshot // kept inside
	Specific    Fields     // what only this format has, with the names that qemu-img gives it
}

// Fields is a list of named values in a fixed order. In JSON it is an object; values are texts, numbers, booleans, Fields, or slices of these.
type Fields []Field

// Field is a named value.
type Field struct {
	Name  string // words with hyphens between them
	Value any
}

// MarshalJSON implements json.Marshaler.
func (f Fields) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, field := range f {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(field.Name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(field.Value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// Backed is an image that may show another one through.
type Backed interface {
	// Backing returns what the image has recorded, and whether it has.
	Backing() (Ref, bool)
	// BackingDevice returns the backing image, opened for reading, which stays the image's own; nil where there is none.
	BackingDevice(ctx context.Context) (block.Device, error)
	// SetBacking records another backing image, or none where name is empty, and neither opens it nor changes anything else.
	// What is read afterwards through this handle still comes from the old one.
	SetBacking(ctx context.Context, name, format string) error
}

// Emptier is an image that can forget all that it holds itself, so that its backing image shows through everywhere, and zeros where there is
// none. Its size, its snapshots and its options stay.
type Emptier interface {
	Empty(ctx context.Context) error
}

// Snapshot is a state of an image that is kept inside it.
type Snapshot struct {
	ID          string // unique in the image
	Name        string
	Size        int64 // of the disk at the time, in bytes
	VMStateSize int64 // bytes of a machine's memory that are kept with it
	Date        time.Time
	VMClock     time.Duration // that the machine had run
	ICount      int64         // instructions that the machine had executed; -1 where not known
}

// Snapshotter is an image that keeps snapshots. A snapshot is named by its ID or its name; the ID wins.
type Snapshotter interface {
	Snapshots() []Snapshot
	// CreateSnapshot keeps the present state. Names need not be unique.
	CreateSnapshot(ctx context.Context, name string, at time.Time) error
	// ApplySnapshot makes the image what it was.
	ApplySnapshot(ctx context.Context, idOrName string) error
	// DeleteSnapshot forgets a state, and returns fs.ErrNotExist where there is none of this name, as ApplySnapshot does.
	DeleteSnapshot(ctx context.Context, idOrName string) error
}

// Bitmap is a record, kept in an image, of which ranges have been written.
type Bitmap struct {
	Name        string
	Granularity int64 // bytes for which one bit stands
	InUse       bool  // the program that wrote the image last has not ended properly: the record is not complete
	Enabled     bool  // writes are recorded
	Type        string
}

// BitmapKeeper is an image that keeps bitmaps. Their bits are read by Extents of the device; see block.Map. Where there is no bitmap of a
// name, methods return fs.ErrNotExist.
type BitmapKeeper interface {
	Bitmaps() []Bitmap
	// AddBitmap adds an empty one; a granularity of 0 is the format's default. It returns fs.ErrExist where the name is taken.
	AddBitmap(ctx context.Context, name string, granularity int64, enabled bool) error
	RemoveBitmap(ctx context.Context, name string) error
	ClearBitmap(ctx context.Context, name string) error
	EnableBitmap(ctx context.Context, name string, on bool) error
	// MergeBitmap sets in the bitmap what is set in the bitmap source of from, which may be this image itself.
	MergeBitmap(ctx context.Context, name string, from block.Device, source string) error
}

// Amender is an image whose options can be changed afterwards. Values are those of Create; what cannot be changed is an error, before
// anything is.
type Amender interface {
	// Amendable describes the options that can be changed, with their present values as defaults.
	Amendable() []OptionDoc
	Amend(ctx context.Context, values map[string]string) error
}

// Preallocation says how much of an image is allocated before anything is written to it.
type Preallocation string

// How images are preallocated. Formats that are nothing but data know no PreallocMetadata.
const (
	PreallocOff      Preallocation = "off"
	PreallocMetadata Preallocation = "metadata" // tables, and places for the data that are holes of the file
	PreallocFalloc   Preallocation = "falloc"   // space that the file system has reserved
	PreallocFull     Preallocation = "full"     // zeros that have been written
)

// Preallocator is an image that can allocate what it grows by.
type Preallocator interface {
	// ResizePreallocated is Resize, with new bytes preallocated. A smaller size needs PreallocOff.
	ResizePreallocated(ctx context.Context, size int64, p Preallocation) error
}

// Repair says what a check may put right.
type Repair uint8

const (
	// RepairNothing only reports.
	RepairNothing Repair = iota
	// RepairLeaks frees space that nothing uses, which cannot lose anything.
	RepairLeaks
	// RepairAll puts right everything that can be.
	RepairAll
)

// CheckOptions say how to check an image.
type CheckOptions struct {
	OpenOptions
	Repair Repair
	// Problem, where set, is told every problem as it is found, one call at a time. A hostile image has no more than a bounded number told.
	Problem func(Problem)
}

// Problem is a contradiction in an image.
type Problem struct {
	Kind  ProblemKind
	Part  string // the structure, in the specification's words
	Off   int64  // byte offset in the image file; -1 where there is none
	Text  string // what is wrong
	Fixed bool   // it has been put right
}

// ProblemKind is how bad a problem is.
type ProblemKind uint8

const (
	// Leak: space that nothing uses.
	Leak ProblemKind = iota
	// Corruption: data is lost or in danger.
	Corruption
	// CheckError: a part could not be checked.
	CheckError
)

// CheckResult counts what a check has found; the counts of problems are of those that are still there.
type CheckResult struct {
	Leaks, Corruptions, CheckErrors int64
	LeaksFixed, CorruptionsFixed    int64
	ImageEndOffset                  int64 // where the last used byte of the file ends

	// Clusters of the disk, where the format has them: all, those with data, those of them that do not follow their predecessor in the file,
	// and those that are compressed. TotalClusters is 0 where the format has none.
	TotalClusters, AllocatedClusters, FragmentedClusters, CompressedClusters int64
}

// Measurement is how long the file of a new image gets, in bytes.
type Measurement struct {
	Required       int64 `json:"required"`        // to hold the source
	FullyAllocated int64 `json:"fully-allocated"` // once every byte of it has been written
	Bitmaps        int64 `json:"bitmaps,omitempty"`
}
