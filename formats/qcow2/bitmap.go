package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

var _ formats.BitmapKeeper = (*Device)(nil)

// bitmaps are the bitmaps of an image. What the directory in the file says of them is true at any time: those that are written to are marked as
// in use there before the first change, durably, and only when all bits are durable is the mark taken away.
type bitmaps struct {
	d     *Device
	begun atomic.Bool // those that record are marked

	mu        sync.Mutex
	list      []*bitmap
	directory fileRange
	switched  int       // how often the header has been given another directory
	recording []*bitmap // what changes of the disk are noted in
	held      int64     // bytes that pages take
	room      int64     // that they may take
}

// fileRange is a range of the image file, in bytes.
type fileRange struct{ off, n int64 }

// bitmap is one of them.
type bitmap struct {
	ondisk.BitmapEntry
	at     int64  // where its directory entry lies in the file
	stored uint32 // the flags that the file has
	lost   bool   // its bits are not what they should be, and never will be
	pages  map[int64]bitPage
}

// bitPage holds bits that have been set since pages were last spilled; nil stands for all.
type bitPage []byte

// bitmapTypeName is what formats.Bitmap.Type says.
const bitmapTypeName = "dirty-tracking"

// maxBitmapBytes is how much space the bits of one bitmap may take in the file: more QEMU does not read.
const maxBitmapBytes = 512 << 20

const removeHint = "`imgtool bitmap --remove` removes it"

// loadBitmaps returns the bitmaps of the image, reading the directory where nobody has yet.
func (d *Device) loadBitmaps(ctx context.Context) (*bitmaps, error) {
	d.loading.Lock()
	defer d.loading.Unlock()
	if d.bitmaps != nil {
		return d.bitmaps, nil
	}
	b := &bitmaps{d: d, room: max(d.memory/8, 256<<10)}
	x, err := d.h.Bitmaps()
	if err != nil {
		return nil, err
	}
	if x != nil {
		if err := b.readDirectory(ctx, x); err != nil {
			return nil, err
		}
	}
	d.bitmaps = b
	return b, nil
}

func (b *bitmaps) readDirectory(ctx context.Context, x *ondisk.BitmapsExtension) error {
	d := b.d
	b.directory = fileRange{int64(x.BitmapDirectoryOffset), int64(x.BitmapDirectorySize)}
	if err := block.CheckRange(b.directory.off, b.directory.n, d.file.Size()); err != nil {
		return d.corrupt("bitmap directory", b.directory.off, "it has %d bytes, and the file ends at byte %d", b.directory.n, d.file.Size())
	}
	p := make([]byte, b.directory.n)
	if err := d.file.Read(ctx, p, b.directory.off); err != nil {
		return err
	}
	entries, err := ondisk.ParseBitmapDirectory(p, b.directory.off, d.h)
	if err != nil {
		return err
	}
	if len(entries) != int(x.NbBitmaps) {
		return d.corrupt("bitmap directory", b.directory.off, "it has %d entries, and the header says %d", len(entries), x.NbBitmaps)
	}
	at := b.directory.off
	names := map[string]bool{}
	for _, e := range entries {
		if names[e.Name] {
			return d.corrupt("bitmap directory", at, "there are two bitmaps of the name %q", e.Name)
		}
		names[e.Name] = true
		b.list = append(b.list, &bitmap{BitmapEntry: e, at: at, stored: e.Flags, lost: e.Flags&ondisk.BitmapInUse != 0})
		at += int64(len(e.Append(nil)))
	}
	return nil
}

// listBitmaps returns the bitmaps. Where the directory cannot be read there are none, and the log is told.
func (d *Device) listBitmaps(ctx context.Context) []formats.Bitmap {
	b, err := d.loadBitmaps(ctx)
	if err != nil {
		d.o.Logger().Warn("the bitmaps of the image cannot be listed", "image", d.o.Name, "error", err)
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []formats.Bitmap
	for _, m := range b.list {
		list = append(list, formats.Bitmap{
			Name: m.Name, Granularity: 1 << m.GranularityBits, InUse: m.lost, Enabled: m.Flags&ondisk.BitmapAuto != 0, Type: bitmapTypeName,
		})
	}
	return list
}

// Bitmaps implements formats.BitmapKeeper. Where the directory cannot be read there are none.
func (d *Device) Bitmaps() []formats.Bitmap {
	ctx := context.Background()
	if d.calls.Begin(ctx) != nil {
		return nil
	}
	defer d.calls.End()
	return d.listBitmaps(ctx)
}

// find returns the bitmap of a name.
func (b *bitmaps) find(name string) (*bitmap, error) {
	for _, m := range b.list {
		if m.Name == name {
			return m, nil
		}
	}
	return nil, block.ErrorOf(fs.ErrNotExist, "there is no bitmap %q", name)
}

// findUsable returns it, where its bits are what they should be.
func (b *bitmaps) findUsable(name string) (*bitmap, error) {
	m, err := b.find(name)
	if err == nil && m.lost {
		err = block.WithHint(errors.New("it is not complete: the program that wrote the image last has not ended properly"), removeHint)
	}
	if err == nil {
		err = b.check(m)
	}
	return m, err
}

// check returns an error where a bitmap is not to be used.
func (b *bitmaps) check(m *bitmap) error {
	d := b.d
	bad := func(cause string, args ...any) error {
		return block.WithHint(d.corrupt("bitmap directory", m.at, cause, args...), removeHint)
	}
	const known = ondisk.BitmapInUse | ondisk.BitmapAuto | ondisk.BitmapExtraDataCompatible
	off, n := int64(m.BitmapTableOffset), int64(m.BitmapTableSize)
	need := int64(d.h.BitmapTableSize(uint64(d.Size()), m.GranularityBits))
	switch {
	case m.Type != ondisk.BitmapDirtyTracking, m.Flags&^known != 0, len(m.ExtraData) > 0 && m.Flags&ondisk.BitmapExtraDataCompatible == 0:
		return block.WithHint(block.ErrorOf(errors.ErrUnsupported, "bitmaps of type %d with flags %#x are not known here", m.Type, m.Flags), removeHint)
	case n != need:
		return bad("bitmap_table_size is %d, and a disk of %d bytes needs %d", n, d.Size(), need)
	case n > maxBitmapBytes>>d.clusterBits:
		return bad("bitmap_table_size is %d, and a bitmap has at most %d bytes", n, maxBitmapBytes)
	case block.CheckRange(off, 8*n, d.file.Size()) != nil:
		return bad("the bitmap table at %#x leaves the file, which has %d bytes", off, d.file.Size())
	}
	return nil
}

// changeBitmaps runs do while no other call runs and the file has all bits. Bitmaps that do enables are marked as in use by the next change.
// Where do fails before the file has another directory, all is as it was.
func (d *Device) changeBitmaps(ctx context.Context, do func(ctx context.Context, b *bitmaps) error) error {
	return d.alone(ctx, func(ctx context.Context) error {
		b := d.bitmaps
		b.mu.Lock()
		defer b.mu.Unlock()
		if err := b.storeLocked(ctx); err != nil {
			return err
		}
		restore := b.save()
		err := do(ctx, b)
		if err != nil {
			restore()
		}
		return err
	})
}

// save returns a function that brings back what the bitmaps are now, all of whose bits the file has, unless the file has got another directory.
func (b *bitmaps) save() (restore func()) {
	list, directory, switched := slices.Clone(b.list), b.directory, b.switched
	var old []bitmap
	for _, m := range list {
		old = append(old, *m)
	}
	return func() {
		if b.switched != switched {
			return
		}
		for i, m := range list {
			b.dropPages(m)
			stored, lost := m.stored, m.lost
			*m = old[i]
			if m.stored = stored; lost {
				m.lost, m.Flags = true, m.Flags|ondisk.BitmapInUse
			}
		}
		b.list, b.directory = list, directory
	}
}

// AddBitmap implements formats.BitmapKeeper.
func (d *Device) AddBitmap(ctx context.Context, name string, granularity int64, enabled bool) error {
	if granularity == 0 {
		granularity = min(max(d.clusterSize, 4<<10), 64<<10)
	}
	return d.changeBitmaps(ctx, func(ctx context.Context, b *bitmaps) error {
		if err := b.mayAdd(name, granularity); err != nil {
			return err
		}
		m := &bitmap{BitmapEntry: ondisk.BitmapEntry{
			Type: ondisk.BitmapDirtyTracking, GranularityBits: uint8(bits.TrailingZeros64(uint64(granularity))), Name: name,
		}}
		if enabled {
			m.Flags = ondisk.BitmapAuto
		}
		if err := b.newTable(ctx, m, make([]uint64, d.h.BitmapTableSize(uint64(d.Size()), m.GranularityBits))); err != nil {
			return err
		}
		b.list = append(b.list, m)
		return b.writeDirectory(ctx)
	})
}

// mayAdd refuses a bitmap that cannot be.
func (b *bitmaps) mayAdd(name string, granularity int64) error {
	d := b.d
	_, err := b.find(name)
	switch {
	case d.h.Version < 3:
		return block.WithHint(errors.New("an image of version 2 has no bitmaps"), "`imgtool amend -o compat=1.1` changes the version")
	case name == "":
		return errors.New("the name of the bitmap is empty")
	case len(name) > ondisk.MaxNameLen:
		return fmt.Errorf("the name of the bitmap has %d bytes, and at most %d are possible", len(name), ondisk.MaxNameLen)
	case err == nil:
		return block.ErrorOf(fs.ErrExist, "there is a bitmap of this name already")
	case granularity < 1<<ondisk.MinBitmapGranularityBits || granularity > 1<<ondisk.MaxBitmapGranularityBits || granularity&(granularity-1) != 0:
		return fmt.Errorf("the granularity is %d, and has to be a power of two from %d to %d", granularity,
			int64(1)<<ondisk.MinBitmapGranularityBits, int64(1)<<ondisk.MaxBitmapGranularityBits)
	case len(b.list) >= ondisk.MaxBitmaps:
		return fmt.Errorf("there are %d bitmaps, as many as an image can have", len(b.list))
	}
	return b.maySize(d.Size(), uint8(bits.TrailingZeros64(uint64(granularity))))
}

// maySize refuses a bitmap that would be too short or too long for a disk of size bytes.
func (b *bitmaps) maySize(size int64, granularityBits uint8) error {
	n := b.d.h.BitmapTableSize(uint64(size), granularityBits)
	switch {
	case size == 0:
		return errors.New("a disk of 0 bytes cannot have bitmaps")
	case n > maxBitmapBytes>>b.d.clusterBits:
		return fmt.Errorf("a bitmap of granularity %d would have more than %d bytes on a disk of %d", int64(1)<<granularityBits, maxBitmapBytes, size)
	}
	return nil
}

// RemoveBitmap implements formats.BitmapKeeper.
func (d *Device) RemoveBitmap(ctx context.Context, name string) error {
	return d.changeBitmaps(ctx, func(ctx context.Context, b *bitmaps) error {
		m, err := b.find(name)
		if err != nil {
			return err
		}
		b.list = slices.DeleteFunc(b.list, func(o *bitmap) bool { return o == m })
		if err := b.writeDirectory(ctx); err != nil {
			return err
		}
		return b.free(ctx, m.BitmapEntry)
	})
}

// ClearBitmap implements formats.BitmapKeeper.
func (d *Device) ClearBitmap(ctx context.Context, name string) error {
	return d.changeBitmaps(ctx, func(ctx context.Context, b *bitmaps) error {
		m, err := b.findUsable(name)
		if err != nil {
			return err
		}
		old := m.BitmapEntry
		if err := b.newTable(ctx, m, make([]uint64, m.BitmapTableSize)); err != nil {
			return err
		}
		if err := b.writeDirectory(ctx); err != nil {
			return err
		}
		return b.free(ctx, old)
	})
}

// EnableBitmap implements formats.BitmapKeeper.
func (d *Device) EnableBitmap(ctx context.Context, name string, on bool) error {
	return d.changeBitmaps(ctx, func(ctx context.Context, b *bitmaps) error {
		m, err := b.findUsable(name)
		if err != nil {
			return err
		}
		m.Flags &^= ondisk.BitmapAuto
		if on {
			m.Flags |= ondisk.BitmapAuto
		}
		return b.writeFlags(ctx)
	})
}

// mergePiece is how many ranges of a bitmap are merged at once.
const mergePiece = 1 << 16

// MergeBitmap implements formats.BitmapKeeper. Where it fails some of the bits may have been set.
func (d *Device) MergeBitmap(ctx context.Context, name string, from block.Device, source string) error {
	size := from.Size()
	if size != d.Size() {
		return fmt.Errorf("the bitmap to merge is of a disk of %d bytes, and this one has %d", size, d.Size())
	}
	var dirty []block.Extent
	for e, err := range block.Walk(ctx, from, block.Map{Bitmap: source}, 0, size) {
		if err != nil {
			return fmt.Errorf("bitmap %q: %w", source, err)
		}
		if e.Flags&block.ExtDirty == 0 {
			continue
		}
		if dirty = append(dirty, e); len(dirty) == mergePiece {
			if err := d.setInBitmap(ctx, name, dirty); err != nil {
				return err
			}
			dirty = dirty[:0]
		}
	}
	return d.setInBitmap(ctx, name, dirty)
}

// setInBitmap sets ranges of the disk in a bitmap.
func (d *Device) setInBitmap(ctx context.Context, name string, ranges []block.Extent) error {
	return d.changeBitmaps(ctx, func(ctx context.Context, b *bitmaps) error {
		m, err := b.findUsable(name)
		if err != nil || len(ranges) == 0 {
			return err
		}
		m.Flags |= ondisk.BitmapInUse
		if err := b.writeFlags(ctx); err != nil {
			return err
		}
		for _, e := range ranges {
			if err := block.CheckRange(e.Off, e.Len, d.Size()); err != nil {
				return err
			}
			if err := b.set(ctx, m, e.Off, e.Len); err != nil {
				return err
			}
		}
		if err := b.storeLocked(ctx); err != nil {
			return err
		}
		if m.lost {
			return block.WithHint(d.corrupt("bitmap table", int64(m.BitmapTableOffset), "it is damaged, and the bitmap is lost"), removeHint)
		}
		return nil
	})
}
