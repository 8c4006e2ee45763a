// Package convert is the copy engine: it moves the content of one block device to another, to a pipe, or compares two.
//
// [Copy] is what to use first. [CopyStream] takes a source that goes one way only, [WriteTo] a target that does, and [Compare]
// reads two devices and says where they first differ. [Commit] and [Rebase] move what lies in an overlay.
//
// How a source is read is changed by what stands in front of it: [Limit] bounds the rate, and [Salvage] goes on where data cannot be read.
// Both serve drivers that plan their output from a source as well.
//
// The engine is driven by extents: what a source knows to be zero is not read, and what a new target has as zero already is never
// written. The rest is cut into requests, which workers read, look through for zeros, and write.
//
// A device may say how many calls it takes to keep it busy (block.Info.InFlight), because each waits for something far away. As many are in
// flight then, extents are asked for ahead, short holes are read with the data around them, and holes that a target has already are left.
//
// All functions stop soon after the context ends, leave no goroutine behind, and name the byte offset in their errors.
// They neither flush nor close what they are given.
package convert

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/imgtool/imgtool/block"
)

const (
	// DefaultZeroGranule is the ZeroGranule that the command line uses: the block size of most file systems, below
	// which a hole saves nothing.
	DefaultZeroGranule = 4 << 10
	// DefaultMemory is the memory budget where none is given, in bytes.
	DefaultMemory = 256 << 20
	// DefaultRequest is the longest request to a device that is written where none is given, in bytes. File systems keep what is written at
	// once together in memory, up to the size of a large page, 2 MiB: 1.5 GB from qcow2 to a raw file on ext4, in a virtual machine with
	// Linux 6.18, took 1.3 s of processor time so, and 3.5 s in requests of 512 KiB.
	DefaultRequest = 2 << 20
	// readRequest is the same where nothing is written to a device: what is read should still be in the processor's cache when it is looked
	// through.
	readRequest = 512 << 10
	// farRequest is the same where a device waits for something far away: many requests that are short keep both ends busy.
	farRequest = 512 << 10

	maxWorkers = 16      // by default, on one machine: past it the target's lock is what everybody waits for
	minRequest = 4 << 10 // what a small memory budget can shrink requests to
)

// Options say how to copy. The zero value copies with all processors, and finds no zeros in data.
type Options struct {
	// Workers is how many requests are in flight; 0 means one for each processor, at most 16, or as many as keep the source or the target busy
	// where one of them says so (block.Info.InFlight).
	Workers int
	// Request is the longest request in bytes; 0 means DefaultRequest, 512 KiB where nothing is written to a device or one is far away, or the block
	// that a source unpacks at a time where that is longer. It is never more than a device takes.
	Request int64
	// Memory bounds all buffers together, in bytes; 0 means DefaultMemory. Requests are made shorter, and then workers fewer, to keep it.
	Memory int64

	// ZeroGranule is the shortest run of zeros inside data that becomes a hole, in bytes. With 0 nothing is looked for, and
	// the target is allocated everywhere, the source's holes included.
	ZeroGranule int64
	// TargetIsZero says that the target reads as zero everywhere before the copy, as a new file does, so that zeros need not be written.
	TargetIsZero bool
	// KeepBacking says that the target shows a backing image which reads as that of the source does, so that only what the source itself holds is
	// copied: extents of Depth 0, their zeros as zeros. It excludes TargetIsZero.
	KeepBacking bool

	// Kernel lets the kernel move bytes where both sides lie plain in files.
	Kernel Kernel

	// Progress is told how many bytes have been dealt with, and of how many; total is 0 where that is not known. Calls come one
	// at a time, from any goroutine, and done never falls.
	Progress func(done, total int64)
}

// Kernel holds the operating system's calls that move bytes between files; package source/file has them. A nil field is not used.
type Kernel struct {
	// Reflink makes dst share all of src's blocks, or returns an error and changes nothing.
	Reflink func(dst, src *os.File) error
	// CopyRange copies n bytes and returns how many it did copy. It returns errors.ErrUnsupported where it cannot.
	CopyRange func(dst *os.File, dstOff int64, src *os.File, srcOff, n int64) (int64, error)
}

// Stats says what a copy has done. All are bytes; Read, Zero, Left, Moved and Cloned together cover Size.
type Stats struct {
	Size   int64 // of the source
	Read   int64 // read from the source as data
	Zero   int64 // known as zero without reading
	Left   int64 // left alone, because the target shows it without a copy
	Moved  int64 // moved by Kernel.CopyRange
	Cloned int64 // shared by Kernel.Reflink

	Found   int64 // of Read: found to be zero
	Written int64 // to the target: data, and zeros where it was not zero already
}

// limits returns how many workers there are, and how long a request is at most, where each worker keeps the given number of buffers, reads
// from the sources and writes to the target, which is nil where there is none. fallback is the request where the options say none.
func (o Options) limits(fallback, buffersPerWorker int64, target block.Device, sources ...block.Device) (workers int, request int64) {
	workers, request = min(runtime.GOMAXPROCS(0), maxWorkers), fallback
	packed, most := int64(0), int64(math.MaxInt64)
	for k, d := range slices.Concat(sources, []block.Device{target}) {
		if d == nil {
			continue
		}
		i := d.Info()
		if workers = max(workers, i.InFlight); i.InFlight > 0 {
			request = min(request, farRequest)
		}
		if i.Caps.Packed && k < len(sources) {
			packed = max(packed, i.PreferredBlock)
		}
		if i.MaxBlock > 0 {
			most = min(most, max(i.MaxBlock, minRequest))
		}
	}
	request = max(request, packed)
	if o.Workers > 0 {
		workers = o.Workers
	}
	if o.Request > 0 {
		request = o.Request
	}
	request = min(request, most)
	memory := o.Memory
	if memory <= 0 {
		memory = DefaultMemory
	}
	for request > minRequest && request > memory/buffersPerWorker/int64(workers) {
		request /= 2
	}
	workers = int(max(1, min(int64(workers), memory/buffersPerWorker/request)))
	return workers, request
}

// unit returns in which steps data is searched for zeros: a power of two, at most ZeroGranule unless the target's blocks are longer.
func (o Options) unit(target block.Info) int64 {
	u := int64(4 << 10)
	for u > 1 && u > o.ZeroGranule {
		u /= 2
	}
	return max(u, target.MinBlock)
}

// progress adds up what workers report.
type progress struct {
	mu    sync.Mutex
	done  int64
	total int64
	tell  func(done, total int64)
	stats Stats
}

// add counts n bytes, and changes the statistics.
func (p *progress) add(n int64, change func(*Stats)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	change(&p.stats)
	if p.tell != nil {
		p.tell(p.done, p.total)
	}
}

// Error is a failure at a place.
type Error struct {
	Op  string // Read, Write or Describe
	Off int64  // in the image, in bytes: where the request began, or the damage that it met
	Err error
}

// What failed, in an Error.
const (
	Read     = "read"
	Write    = "write"
	Describe = "find data and holes" // Extents of the source
)

func (e *Error) Error() string { return fmt.Sprintf("%s at byte %d: %v", e.Op, e.Off, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// failure returns an Error. That the caller wants to stop is no failure, and stays as it is.
func failure(op string, off int64, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &Error{Op: op, Off: off, Err: err}
}

// unread returns the failure to read p, which was to come from off. Of damage it looks for the first sector; what a disk cannot read may take it long,
// and is not asked for again.
func unread(ctx context.Context, d block.Device, p []byte, off int64, err error) error {
	for len(p) > sector && errors.As(err, new(*block.CorruptError)) {
		half := (len(p)/2 + sector - 1) / sector * sector
		if e := d.Read(ctx, p[:half], off); e != nil {
			p, err = p[:half], e
			continue
		}
		e := d.Read(ctx, p[half:], off+int64(half))
		if e == nil {
			break
		}
		p, off, err = p[half:], off+int64(half), e
	}
	return failure(Read, off, err)
}
