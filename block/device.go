package block

import (
	"context"
	"os"
)

// Device is a sparse array of bytes.
//
// The interface is total on purpose: a wrapper written in Go hides the optional methods of what it wraps, so what
// every layer must see is here, and a device that cannot do a thing says so in [Caps] or by the error of the method.
//
// Offsets and lengths are in bytes and may be any value inside the device, aligned or not; [Align] stands in front
// of devices that need more. A range that is negative, overflows or leaves the device gives a [*RangeError] and has no effect.
// A zero length is legal up to and including Size, and does nothing.
type Device interface {
	// Info returns constants of the device: its name, block sizes and capabilities.
	Info() Info

	// Size returns the length of the device in bytes. It changes only by Resize, or by a Write or Zero past the end where Caps.Grow is set.
	Size() int64

	// Read fills all of p from off, or returns an error; then the content of p is undefined.
	Read(ctx context.Context, p []byte, off int64) error

	// Write stores all of p at off, or returns an error; then the range holds old or new bytes. With FUA the bytes are durable when it returns.
	// Other flags are ignored. It returns ErrReadOnly where Caps.Write is not set or the range is not writable.
	Write(ctx context.Context, p []byte, off int64, f Flags) error

	// Zero makes the range read as zero. With NoHole it stays allocated; with Fast it returns errors.ErrUnsupported,
	// and changes nothing, where it would cost as much as writing zeros.
	Zero(ctx context.Context, off, n int64, f Flags) error

	// Discard says that the content of the range is not needed any more. It is a hint: the content is undefined afterwards,
	// and a device that cannot discard returns nil. A device that cannot write returns ErrReadOnly.
	Discard(ctx context.Context, off, n int64) error

	// Extents appends to buf what the range [off, off+n) consists of, and returns it. The first appended extent starts at off, each
	// next one where the one before ends, and none reaches past off+n. One call may describe less than was asked, but never
	// nothing where n > 0. It reads metadata only. It returns errors.ErrUnsupported for a Map that the device does not have.
	Extents(ctx context.Context, m Map, off, n int64, buf []Extent) ([]Extent, error)

	// Prefetch says that the range will be read soon. It is a hint.
	Prefetch(ctx context.Context, off, n int64) error

	// Resize sets the size; new bytes read as zero. It returns errors.ErrUnsupported where Caps.Resize is not set.
	Resize(ctx context.Context, size int64) error

	// Flush makes durable what Write, Zero, Discard and Resize calls that returned before this call have changed.
	Flush(ctx context.Context) error

	// Close waits for calls in flight and releases the device. It does not imply Flush. Calls after it, a second Close
	// included, return os.ErrClosed.
	Close() error
}

// Flags modify a Write or a Zero.
type Flags uint8

const (
	// FUA (force unit access) makes the change durable before the call returns.
	FUA Flags = 1 << iota
	// NoHole makes Zero keep the range allocated.
	NoHole
	// Fast makes Zero fail with errors.ErrUnsupported rather than write zeros.
	Fast
)

// Info holds the constants of a device.
type Info struct {
	// Name says what the device is, for messages: a path, a URI.
	Name string
	// Format is the driver's name: raw, gz, qcow2.
	Format string

	// MinBlock is the smallest unit that the device reads or writes without a read-modify-write, in bytes; a power of two, 1 where any does.
	MinBlock int64
	// PreferredBlock is the unit that performs well; a power of two, at least MinBlock.
	PreferredBlock int64
	// MaxBlock is the longest single request that the device takes; 0 means any.
	MaxBlock int64

	// InFlight is how many calls at a time keep the device busy, where more than one for each processor do because they wait for something far away;
	// else 0.
	InFlight int

	// Probable says that Size is what the image suggests, and that only reading it through would prove it. A read that reaches the end
	// fails where the image turns out to end elsewhere.
	Probable bool

	Caps Caps
}

// Caps says what a device can do. The zero value is a device that can only be read.
type Caps struct {
	Write     bool // Write, Zero and Discard may succeed
	Grow      bool // Write and Zero past Size extend the device
	Resize    bool // Resize works
	FUA       bool // FUA costs less than Write and Flush
	Zero      bool // Zero costs less than writing zeros
	FastZero  bool // Zero with Fast may succeed
	Discard   bool // Discard frees space
	MultiConn bool // Flush on one handle covers writes through every other handle of the same device
	Prefetch  bool // Prefetch has an effect
	Packed    bool // reading costs CPU time (decompression, decryption)
}

// Map chooses what Extents describes. The zero value asks for allocation.
type Map struct {
	// Bitmap asks for the dirty bits of the bitmap with this name instead.
	Bitmap string
}

// Extent describes a range of a device.
type Extent struct {
	Off   int64 // first byte
	Len   int64 // bytes, at least 1
	Flags ExtentFlags
	Depth int // how many backing files down the data lies; 0 is the device itself

	// Node is the name of the file that holds the bytes as they are, where one does, and NodeOff where in it; else Node is "".
	Node    string
	NodeOff int64
}

// End returns the first byte after the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// ExtentFlags are the properties of an Extent.
type ExtentFlags uint8

const (
	// ExtAlloc: the range occupies space in the device (or in a backing file of it).
	ExtAlloc ExtentFlags = 1 << iota
	// ExtZero: the range is known to read as zero.
	ExtZero
	// ExtPacked: the range costs CPU time to read.
	ExtPacked
	// ExtReadOnly: the range cannot be written, on a device of which other ranges can.
	ExtReadOnly
	// ExtDirty: the range is set in the bitmap that was asked for.
	ExtDirty
)

// ExtData are the flags of plain allocated data.
const ExtData = ExtAlloc

// FileRange is a range of an open file that holds bytes of a device as they are.
type FileRange struct {
	File *os.File
	Off  int64
	Len  int64
}

// Pinner is implemented by devices whose bytes lie plain in an open file. Filter and Window forward it, Transform does not.
type Pinner interface {
	// Pin returns where the bytes from off lie, for at most n bytes and at least one, so that the kernel can move them (sendfile,
	// copy_file_range, reflink). What is pinned is neither freed nor moved until release is called. With ok false there is no such place.
	Pin(ctx context.Context, off, n int64) (r FileRange, release func(), ok bool)
}

// Pin asks d for the place of its bytes. See Pinner.
func Pin(ctx context.Context, d Device, off, n int64) (r FileRange, release func(), ok bool) {
	if p, is := d.(Pinner); is && n > 0 && CheckRange(off, n, d.Size()) == nil {
		return p.Pin(ctx, off, n)
	}
	return FileRange{}, nil, false
}

// As finds an implementation of T (an interface that few devices have) in d or in what the Filters around it wrap.
// It never looks through a Window or a Transform, whose addresses or bytes differ.
func As[T any](d Device) (T, bool) {
	for d != nil {
		if t, ok := d.(T); ok {
			return t, true
		}
		u, ok := d.(interface{ Unwrap() Device })
		if !ok {
			break
		}
		d = u.Unwrap()
	}
	var zero T
	return zero, false
}
