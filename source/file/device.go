package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"

	"github.com/imgtool/imgtool/block"
)

// Device is a regular file or a disk. Every method may be called from many goroutines.
//
// Any offset and length is legal, except on the character disks of FreeBSD, whose sector is Info().MinBlock; put block.Align
// in front of those. Bytes go through the page cache of the operating system.
type Device struct {
	f     *os.File
	name  string
	write bool
	disk  bool
	unit  int64 // bytes; what the disk's zeroing and discarding is aligned to, 1 for a file
	ways  ways

	size atomic.Int64

	// mu is held for reading by every call, and for writing by those that need to be alone: Close, and what sets the length of the file
	// by truncation, which could cut off what a write has just appended.
	mu     sync.RWMutex
	closed bool
	pins   sync.WaitGroup // added to only under mu while not closed

	oneRun atomic.Bool // the operating system does not tell data from holes
	last   lastRun

	flushing sync.Mutex
	lost     error // the first failure of a flush, under flushing
}

var _ interface {
	block.Device
	block.Pinner
} = (*Device)(nil)

// preferredBlock is a page of memory and the block of nearly every file system, in bytes.
const preferredBlock = 4096

// File returns the open file, for ioctls and kernel copies. It stays the device's. Its file offset must neither be used nor
// relied on: Extents moves it. Whoever makes the file longer through it has to call Resize first.
func (d *Device) File() *os.File { return d.f }

// Info implements block.Device.
func (d *Device) Info() block.Info {
	i := block.Info{Name: d.name, Format: "file", MinBlock: 1, PreferredBlock: preferredBlock}
	if d.disk {
		i.PreferredBlock = max(preferredBlock, d.unit)
		if disksAreCharDevices {
			i.MinBlock = d.unit
		}
	}
	i.Caps = block.Caps{MultiConn: true, Prefetch: canPrefetch}
	if d.write {
		i.Caps.Write = true
		i.Caps.Grow, i.Caps.Resize = !d.disk, !d.disk
		i.Caps.Zero = d.ways.fast()
		i.Caps.FastZero = i.Caps.Zero
		i.Caps.Discard = d.ways.discard != nil
	}
	return i
}

// Size implements block.Device. A size that another program gives the file later is not seen.
func (d *Device) Size() int64 { return d.size.Load() }

// enter begins a call that runs beside others; every nil must be followed by d.mu.RUnlock.
func (d *Device) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.RLock()
	if d.closed {
		d.mu.RUnlock()
		return os.ErrClosed
	}
	return nil
}

// enterWrite is enter for a call that changes the file.
func (d *Device) enterWrite(ctx context.Context) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	if !d.write {
		d.mu.RUnlock()
		return block.ErrReadOnly
	}
	return nil
}

// enterAlone begins a call that runs alone and changes the file; every nil must be followed by d.mu.Unlock.
func (d *Device) enterAlone(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	err := os.ErrClosed
	switch {
	case d.closed:
	case !d.write:
		err = block.ErrReadOnly
	default:
		return nil
	}
	d.mu.Unlock()
	return err
}

// checkGrow checks a range that may, in a file, reach past its end.
func (d *Device) checkGrow(off, n int64) error {
	size := d.size.Load()
	if !d.disk && off >= 0 && n > 0 && off <= math.MaxInt64-n {
		return nil
	}
	return block.CheckRange(off, n, size)
}

// grown records that the file reaches to end at least.
func (d *Device) grown(end int64) {
	for {
		size := d.size.Load()
		if end <= size || d.size.CompareAndSwap(size, end) {
			return
		}
	}
}

// Read implements block.Device. It returns io.ErrUnexpectedEOF where another program has made the file shorter.
func (d *Device) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	defer d.mu.RUnlock()
	if err := block.CheckRange(off, int64(len(p)), d.size.Load()); err != nil || len(p) == 0 {
		return err
	}
	n, err := d.f.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF):
		return fmt.Errorf("read at byte %d: %w: the file is shorter than when it was opened", off+int64(n), io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read at byte %d: %w", off+int64(n), bare(err))
}

// Write implements block.Device. A write past the end of a file leaves a hole before it.
func (d *Device) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if err := d.enterWrite(ctx); err != nil {
		return err
	}
	defer d.mu.RUnlock()
	if err := d.checkGrow(off, int64(len(p))); err != nil || len(p) == 0 {
		return err
	}
	if err := d.put(p, off); err != nil {
		return err
	}
	return d.fua(f)
}

// put writes all of p at off.
func (d *Device) put(p []byte, off int64) error {
	_, err := d.f.WriteAt(p, off)
	if err == nil {
		d.grown(off + int64(len(p)))
		return nil
	}
	// A part may have been written, and have made the file longer. WriteAt does not tell.
	if info, statErr := d.f.Stat(); statErr == nil && !d.disk {
		d.grown(info.Size())
	}
	return fmt.Errorf("write %d bytes at byte %d: %w", len(p), off, bare(err))
}

// Prefetch implements block.Device.
func (d *Device) Prefetch(ctx context.Context, off, n int64) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	defer d.mu.RUnlock()
	if err := block.CheckRange(off, n, d.size.Load()); err != nil || n == 0 {
		return err
	}
	willNeed(d.f, off, n)
	return nil
}

// Resize implements block.Device: it truncates the file, or lengthens it by a hole. A disk has the size it has.
func (d *Device) Resize(ctx context.Context, size int64) error {
	if err := d.enterAlone(ctx); err != nil {
		return err
	}
	defer d.mu.Unlock()
	if d.disk {
		return block.ErrorOf(errors.ErrUnsupported, "a disk cannot be resized")
	}
	if size < 0 {
		return &block.RangeError{Off: size, Size: d.size.Load()}
	}
	return d.truncate(size)
}

// truncate sets the length of the file. The caller is alone.
func (d *Device) truncate(size int64) error {
	defer d.last.forget()
	if err := d.f.Truncate(size); err != nil {
		return fmt.Errorf("set the size to %d bytes: %w", size, bare(err))
	}
	d.size.Store(size)
	return nil
}

// Flush implements block.Device. Once it has failed it fails for ever: the operating system gives up what it could not write and
// reports that once, so that a later success would not mean that all is stored.
func (d *Device) Flush(ctx context.Context) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	defer d.mu.RUnlock()
	if !d.write {
		return nil
	}
	return d.flush()
}

// failure returns the first failure of a flush.
func (d *Device) failure() error {
	d.flushing.Lock()
	defer d.flushing.Unlock()
	return d.lost
}

func (d *Device) flush() error {
	if err := d.failure(); err != nil {
		return err
	}
	// Not under the mutex: flushes that overlap share the work in the kernel.
	err := bare(datasync(d.f))
	if err == nil {
		return nil
	}
	d.flushing.Lock()
	defer d.flushing.Unlock()
	if d.lost == nil {
		d.lost = fmt.Errorf("flush: %w: what was written since the last flush may be lost", err)
	}
	return d.lost
}

// fua ends a change that was asked to be durable.
func (d *Device) fua(f block.Flags) error {
	if f&block.FUA == 0 {
		return nil
	}
	return d.flush()
}

// Pin implements block.Pinner. Holes are pinned like data: the file reads there as zeros.
func (d *Device) Pin(ctx context.Context, off, n int64) (block.FileRange, func(), bool) {
	if err := d.enter(ctx); err != nil {
		return block.FileRange{}, nil, false
	}
	defer d.mu.RUnlock()
	size := d.size.Load()
	if off < 0 || off >= size || n <= 0 {
		return block.FileRange{}, nil, false
	}
	d.pins.Add(1)
	return block.FileRange{File: d.f, Off: off, Len: min(n, size-off)}, sync.OnceFunc(d.pins.Done), true
}

// Close implements block.Device. It waits for calls in flight and for pins to be released, and gives up the locks.
func (d *Device) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return os.ErrClosed
	}
	d.closed = true
	d.mu.Unlock()
	d.pins.Wait()
	if err := d.f.Close(); err != nil {
		return fmt.Errorf("close: %w", bare(err))
	}
	return nil
}
