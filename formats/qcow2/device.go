package qcow2

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// Device is an open image. Every method may be called from many goroutines.
type Device struct {
	calls block.Calls
	users users
	pins  sync.WaitGroup // added to only in calls
	geometry

	file      block.Device // the image file
	o         formats.OpenOptions
	writable  bool
	slowZero  bool // zeros must be written
	encrypted bool
	memory    int64 // bytes that all caches together may hold
	data      formats.Reference
	backing   formats.Reference
	crypt     cipher // nil where the data is not encrypted, or cannot be decrypted
	cryptErr  error  // why not

	// These change only while no other call runs.
	h        *ondisk.Header
	l1       []atomic.Uint64
	l1Offset int64 // in the file

	plainness      sync.Once
	isPlain        bool // what plainFile says
	counting       sync.Once
	isPreallocated bool // what preallocated says

	size     atomic.Int64
	tables   *sliceCache
	unpacker *unpacker

	// What follows serves writing.
	refs      *refcounts
	locks     block.RangeLocks // of clusters of the disk whose entries change
	freed     freed
	l1mu      sync.Mutex
	l1Dirty   map[int64]bool // sectors of the L1 table that have changed, under l1mu
	grows     bool           // writing past its end makes the file longer
	untouched int64          // nothing was ever written to the file from here on, under refs.mu
	buffers   sync.Pool      // of *[]byte, for clusters that are put together

	begun     atomic.Bool // something has been changed
	beginning sync.Mutex
	loading   sync.Mutex
	bitmaps   *bitmaps // nil where nobody has asked for them, under loading; when the image is open for writing they are there

	committing sync.Mutex
	unsynced   atomic.Bool // the image is new and nobody has flushed it: the order of writes does not matter
	syncing    sync.Mutex  // the image file is being flushed
	wrote      atomic.Bool // it has been written to since the last flush of it began
	wroteData  atomic.Bool // so has the data file
	failure    atomic.Pointer[error]
}

// Info implements block.Device.
func (d *Device) Info() block.Info {
	unit := int64(1)
	if d.encrypted {
		unit = ondisk.SectorSize
	}
	w := d.writable
	return block.Info{
		Name: d.file.Info().Name, Format: Name, MinBlock: unit, PreferredBlock: d.clusterSize,
		Caps: block.Caps{
			Write: w, Resize: w, Zero: w && !d.slowZero, FastZero: w && !d.slowZero, Discard: w,
			Packed: !d.data.Named() || d.encrypted, Prefetch: d.file.Info().Caps.Prefetch,
		},
	}
}

// Size implements block.Device.
func (d *Device) Size() int64 { return d.size.Load() }

// begin starts a call about a range of the disk. Only after nil the caller calls calls.End.
func (d *Device) begin(ctx context.Context, off, n int64) error {
	if err := d.calls.Begin(ctx); err != nil {
		return err
	}
	if err := block.CheckRange(off, n, d.Size()); err != nil {
		d.calls.End()
		return err
	}
	return nil
}

// Close implements block.Device. It waits for pins to be released, and closes what the image refers to as well.
func (d *Device) Close() error {
	if err := d.calls.Close(); err != nil {
		return err
	}
	d.pins.Wait() // finish frees what nobody uses
	err := d.finish()
	return errors.Join(err, d.closeOthers(), d.file.Close())
}

// closeOthers closes all but the image file.
func (d *Device) closeOthers() error { return errors.Join(d.data.Close(), d.backing.Close()) }
