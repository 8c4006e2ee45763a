package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/check"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// defaultMemory is what the caches of an image hold where nobody says, in bytes. It covers the L2 tables of 128 GiB in clusters of 64 KiB.
const defaultMemory = 32 << 20

// Options are what users may set when an image is opened.
type Options struct {
	Snapshot string `option:"snapshot" help:"show the internal snapshot with this ID or name, read-only"`
	KeyFile  string `option:"key-file" help:"file that holds the password of an image that is encrypted with AES"`
}

// Open returns the image in file. See formats.Driver.Open; the device is a *Device, inside of a block.Align where the image is encrypted.
func Open(ctx context.Context, file block.Device, o formats.OpenOptions) (block.Device, error) {
	return open(ctx, file, o, false)
}

// openCreated is Open of an image that has just been made. It need not be durable, nor in order, until somebody flushes it.
func openCreated(ctx context.Context, file block.Device, o formats.OpenOptions) (block.Device, error) {
	return open(ctx, file, o, true)
}

// open is Open, or openCreated.
func open(ctx context.Context, file block.Device, o formats.OpenOptions, created bool) (block.Device, error) {
	opts, err := formats.ParseOptions(&Options{}, o.Values)
	if err != nil {
		return nil, err
	}
	h, err := ondisk.ReadHeader(ctx, file)
	if err != nil {
		return nil, err
	}
	if err := mayOpen(h, file, o, opts); err != nil {
		return nil, err
	}
	if o.Write && h.IncompatibleFeatures&ondisk.IncompatDirty != 0 {
		if h, err = repairRefcounts(ctx, file, o); err != nil {
			return nil, err
		}
	}
	d := newDevice(h, file, o)
	d.unsynced.Store(created)
	d.wrote.Store(created)
	d.wroteData.Store(created)
	if err := d.load(ctx, opts); err != nil {
		return nil, errors.Join(err, d.closeOthers())
	}
	if h.CryptMethod != ondisk.CryptNone {
		return block.Align(d, ondisk.SectorSize), nil
	}
	return d, nil
}

// mayOpen refuses images that this package does not understand, or must not write.
func mayOpen(h *ondisk.Header, file block.Device, o formats.OpenOptions, opts *Options) error {
	switch unknown := h.UnknownFeatures(); {
	case len(unknown) > 0:
		return block.ErrorOf(errors.ErrUnsupported, "the image needs features that are not known here: %s", strings.Join(unknown, ", "))
	case !o.Write:
		return nil
	case !file.Info().Caps.Write || opts.Snapshot != "":
		return block.ErrReadOnly
	case h.IncompatibleFeatures&ondisk.IncompatCorrupt != 0:
		return block.WithHint(block.Corrupt(Name, "header", 72, "the image is marked as corrupt, and can only be read"), repairHint)
	}
	return nil
}

// repairRefcounts counts anew what an image uses whose last writer has not ended properly, and returns the header as it is then.
func repairRefcounts(ctx context.Context, file block.Device, o formats.OpenOptions) (*ondisk.Header, error) {
	o.Logger().Warn("the last writer of the image has not ended properly: refcounts are made anew", "file", o.Name)
	res, err := check.Check(ctx, file, formats.CheckOptions{OpenOptions: o, Repair: formats.RepairAll})
	if err != nil {
		return nil, err
	}
	h, err := ondisk.ReadHeader(ctx, file)
	if err != nil {
		return nil, err
	}
	if h.IncompatibleFeatures&ondisk.IncompatDirty != 0 {
		err := block.Corrupt(Name, "header", 72, "the last writer has not ended properly, and %d errors cannot be repaired", res.Corruptions+res.CheckErrors)
		return nil, block.WithHint(err, repairHint)
	}
	return h, nil
}

const repairHint = "`imgtool check -r all` looks at it and repairs what it can"

func newDevice(h *ondisk.Header, file block.Device, o formats.OpenOptions) *Device {
	d := &Device{geometry: newGeometry(h), h: h, file: file, o: o, writable: o.Write, encrypted: h.CryptMethod != ondisk.CryptNone}
	d.size.Store(int64(h.Size))
	memory := o.Memory
	if memory <= 0 {
		memory = defaultMemory
	}
	workers := o.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	d.tables = newSliceCache(memory/2, d.sliceLen)
	d.unpacker = newUnpacker(h, memory/4, workers)
	d.memory = memory
	return d
}

// load reads the L1 table and opens what the image refers to.
func (d *Device) load(ctx context.Context, opts *Options) error {
	var err error
	l1, size := tableAt{int64(d.h.L1TableOffset), int64(d.h.L1Size)}, int64(d.h.Size)
	if opts.Snapshot != "" {
		s, err := d.findSnapshot(ctx, opts.Snapshot)
		if err != nil {
			return err
		}
		l1, size = tableAt{int64(s.L1TableOffset), int64(s.L1Size)}, int64(s.DiskSize)
		if s.DiskSize > uint64(d.maxSize()) || d.h.L1Needed(s.DiskSize) > uint64(s.L1Size) {
			return d.corrupt("snapshot table", int64(d.h.SnapshotsOffset), "snapshot %q has %d bytes, and an L1 table of %d entries", opts.Snapshot, s.DiskSize, s.L1Size)
		}
	}
	d.size.Store(size)
	if d.l1, err = d.readL1(ctx, l1); err != nil {
		return err
	}
	d.l1Offset = l1.off
	if d.cryptErr = d.prepareCrypt(ctx, opts); d.cryptErr != nil && !d.o.Lazy {
		return d.cryptErr
	}
	if err := d.prepareData(ctx); err != nil {
		return err
	}
	if err := d.prepareBacking(ctx); err != nil {
		return err
	}
	d.slowZero = d.mustWriteZeros()
	if d.writable {
		return d.prepareWrite(ctx)
	}
	return nil
}

// maxSize is the largest size in bytes that a disk may have: one that can be rounded up to a cluster.
func (d *Device) maxSize() int64 { return math.MaxInt64 - d.clusterSize + 1 }

// tableAt is where a table of 8-byte entries lies.
type tableAt struct {
	off     int64
	entries int64
}

// readL1 reads an L1 table. The header's limits have bounded its length.
func (d *Device) readL1(ctx context.Context, t tableAt) ([]atomic.Uint64, error) {
	p, err := d.readTable(ctx, "L1 table", t)
	if err != nil {
		return nil, err
	}
	l1 := make([]atomic.Uint64, t.entries)
	for i := range l1 {
		l1[i].Store(binary.BigEndian.Uint64(p[8*i:]))
	}
	return l1, nil
}

// readTable reads the bytes of a table, all of which must lie in the file.
func (d *Device) readTable(ctx context.Context, part string, t tableAt) ([]byte, error) {
	n := t.entries * 8
	if err := block.CheckRange(t.off, n, d.file.Size()); err != nil {
		return nil, d.corrupt(part, t.off, "%d bytes of it leave the file, which has %d", n, d.file.Size())
	}
	p := make([]byte, n)
	return p, d.file.Read(ctx, p, t.off)
}

// cipher decrypts and encrypts data. Its methods may be called from many goroutines. Lengths and offsets are multiples of 512 bytes; guest is the
// offset in the disk, host that in the file with the data.
type cipher interface {
	decrypt(p []byte, guest, host int64) error
	encrypt(dst, src []byte, guest, host int64) error
}
