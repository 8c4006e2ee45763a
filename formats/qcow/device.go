package qcow

import (
	"context"
	"errors"
	"sync"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/inflate"
	"github.com/imgtool/imgtool/formats"
)

// device is an open image.
type device struct {
	block.ReadOnly
	calls block.Calls
	h     *header
	file  block.Device
	l1    []uint64

	backing formats.Reference

	mu     sync.Mutex
	tables map[uint64][]uint64
	room   int // tables that are kept

	decoders sync.Pool // of *inflate.Decoder
	last     struct {  // the cluster that was decoded last, for reads that are shorter
		sync.Mutex
		entry uint64
		p     []byte
	}
}

// defaultMemory is what tables may take where nobody says, in bytes.
const defaultMemory = 16 << 20

func newDevice(h *header, file block.Device, o formats.OpenOptions) *device {
	memory := o.Memory
	if memory <= 0 {
		memory = defaultMemory
	}
	return &device{h: h, file: file, tables: map[uint64][]uint64{}, room: int(max(1, memory>>(h.L2Bits+3)))}
}

func (d *device) clusterSize() int64 { return 1 << d.h.ClusterBits }

// Info implements block.Device.
func (d *device) Info() block.Info {
	return block.Info{Name: d.file.Info().Name, Format: Name, MinBlock: 1, PreferredBlock: d.clusterSize(), Caps: block.Caps{Packed: true}}
}

// Size implements block.Device.
func (d *device) Size() int64 { return int64(d.h.Size) }

// begin starts a call about a range.
func (d *device) begin(ctx context.Context, off, n int64) error {
	if err := d.calls.Begin(ctx); err != nil {
		return err
	}
	if err := block.CheckRange(off, n, d.Size()); err != nil {
		d.calls.End()
		return err
	}
	return nil
}

// compressed, in an L2 entry: the cluster is.
const compressed = 1 << 63

// run is a range of the disk that is stored in one way.
type run struct {
	entry  uint64 // the L2 entry of its cluster; 0 where the backing file shows
	n      int64  // bytes
	within int64  // where it begins in the cluster
}

// lookup returns the run at off, of at most n bytes.
func (d *device) lookup(ctx context.Context, off, n int64) (run, error) {
	i := off >> d.h.l1Bits()
	if d.l1[i] == 0 {
		end := (i + 1) << d.h.l1Bits()
		for i++; end-off < n && d.l1[i] == 0; i++ {
			end += 1 << d.h.l1Bits()
		}
		return run{n: min(n, end-off)}, nil
	}
	table, err := d.table(ctx, d.l1[i])
	if err != nil {
		return run{}, err
	}
	k := off >> d.h.ClusterBits & (1<<d.h.L2Bits - 1)
	r := run{entry: table[k], within: off & (d.clusterSize() - 1)}
	r.n = d.clusterSize() - r.within
	for k++; r.n < n && r.entry == 0 && k < int64(len(table)) && table[k] == 0; k++ {
		r.n += d.clusterSize()
	}
	r.n = min(r.n, n)
	return r, nil
}

// table returns the L2 table at off.
func (d *device) table(ctx context.Context, off uint64) ([]uint64, error) {
	d.mu.Lock()
	t := d.tables[off]
	d.mu.Unlock()
	if t != nil {
		return t, nil
	}
	t, err := readTable(ctx, "L2 table", d.file, off, 1<<d.h.L2Bits)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for old := range d.tables {
		if len(d.tables) < d.room {
			break
		}
		delete(d.tables, old)
	}
	d.tables[off] = t
	return t, nil
}

// Read implements block.Device.
func (d *device) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.begin(ctx, off, int64(len(p))); err != nil {
		return err
	}
	defer d.calls.End()
	for len(p) > 0 {
		r, err := d.lookup(ctx, off, int64(len(p)))
		if err != nil {
			return err
		}
		q := p[:r.n]
		switch {
		case r.entry == 0:
			err = d.backing.Read(ctx, q, off)
		case d.h.CryptMethod != cryptNone:
			err = errEncrypted
		case r.entry&compressed != 0:
			err = d.unpack(ctx, q, r)
		default:
			err = d.readPlain(ctx, q, r)
		}
		if err != nil {
			return err
		}
		p, off = p[r.n:], off+r.n
	}
	return nil
}

// readPlain reads from a cluster that is stored as it is. The file may end inside the last one, of which the rest is zero.
func (d *device) readPlain(ctx context.Context, p []byte, r run) error {
	host, size := int64(r.entry), d.file.Size()
	if host >= size {
		return corrupt("L2 entry", -1, "a cluster lies at byte %d, behind the end of the file at %d", host, size)
	}
	n := max(0, min(int64(len(p)), size-host-r.within))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return d.file.Read(ctx, p[:n], host+r.within)
}

// unpack reads from a compressed cluster.
func (d *device) unpack(ctx context.Context, p []byte, r run) error {
	if int64(len(p)) == d.clusterSize() {
		return d.decode(ctx, p, r.entry)
	}
	d.last.Lock()
	defer d.last.Unlock()
	if d.last.entry != r.entry {
		if d.last.p == nil {
			d.last.p = make([]byte, d.clusterSize())
		}
		d.last.entry = 0
		if err := d.decode(ctx, d.last.p, r.entry); err != nil {
			return err
		}
		d.last.entry = r.entry
	}
	copy(p, d.last.p[r.within:])
	return nil
}

// compressedRange returns where the data of a compressed cluster lies.
func (d *device) compressedRange(entry uint64) (off, n int64) {
	x := 63 - d.h.ClusterBits
	return int64(entry & (1<<x - 1)), int64(entry >> x & (1<<d.h.ClusterBits - 1))
}

// decode fills p, a cluster long, from a compressed cluster.
func (d *device) decode(ctx context.Context, p []byte, entry uint64) error {
	off, n := d.compressedRange(entry)
	if block.CheckRange(off, n, d.file.Size()) != nil {
		return corrupt("L2 entry", -1, "a compressed cluster of %d bytes lies at byte %d, and the file ends at %d", n, off, d.file.Size())
	}
	src := make([]byte, n)
	if err := d.file.Read(ctx, src, off); err != nil {
		return err
	}
	f, _ := d.decoders.Get().(*inflate.Decoder)
	if f == nil {
		f = new(inflate.Decoder)
	}
	defer d.decoders.Put(f)
	if _, err := f.Decode(p, src, inflate.Raw); err != nil {
		return corrupt("compressed cluster", off, "%w", err)
	}
	return nil
}

// extentBatch is about how many extents one call of Extents describes.
const extentBatch = 1024

// Extents implements block.Device. What no image of the chain has is zero, as deep as the last image that was asked for it.
func (d *device) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if err := d.begin(ctx, off, n); err != nil {
		return buf, err
	}
	defer d.calls.End()
	if m != (block.Map{}) {
		return buf, errors.ErrUnsupported
	}
	base := len(buf)
	for n > 0 && len(buf)-base < extentBatch {
		r, err := d.lookup(ctx, off, n)
		if err != nil {
			return buf, err
		}
		e := block.Extent{Off: off, Len: r.n, Flags: block.ExtAlloc | block.ExtPacked}
		switch {
		case r.entry == 0:
			if buf, r.n, err = d.backing.Extents(ctx, off, r.n, buf, base); err != nil {
				return buf, err
			}
		case r.entry&compressed == 0 && d.h.CryptMethod == cryptNone:
			e.Flags, e.Node, e.NodeOff = block.ExtData, d.file.Info().Name, int64(r.entry)+r.within
			fallthrough
		default:
			buf = block.AppendExtent(buf, base, e)
		}
		off, n = off+r.n, n-r.n
	}
	return buf, nil
}

// Prefetch implements block.Device. There is nothing that it could do.
func (d *device) Prefetch(ctx context.Context, off, n int64) error {
	if err := d.begin(ctx, off, n); err != nil {
		return err
	}
	d.calls.End()
	return nil
}

// Describe implements formats.Describer.
func (d *device) Describe(ctx context.Context) (formats.Description, error) {
	if err := d.calls.Begin(ctx); err != nil {
		return formats.Description{}, err
	}
	defer d.calls.End()
	x := formats.Description{ClusterSize: d.clusterSize(), Encrypted: d.h.CryptMethod != cryptNone}
	if ref, ok := d.backing.Ref(); ok {
		x.Backing = &ref
	}
	return x, nil
}

// Backing implements formats.Backed.
func (d *device) Backing() (formats.Ref, bool) { return d.backing.Ref() }

// BackingDevice implements formats.Backed.
func (d *device) BackingDevice(ctx context.Context) (block.Device, error) {
	if err := d.calls.Begin(ctx); err != nil {
		return nil, err
	}
	defer d.calls.End()
	return d.backing.Device(ctx)
}

// SetBacking implements formats.Backed.
func (d *device) SetBacking(context.Context, string, string) error { return block.ErrReadOnly }

// Close implements block.Device. It closes the backing image as well.
func (d *device) Close() error {
	if err := d.calls.Close(); err != nil {
		return err
	}
	return errors.Join(d.backing.Close(), d.file.Close())
}
