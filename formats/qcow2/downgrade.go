package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// mayDowngrade refuses to make version 2 of an image that has what version 2 has not. size is that of the disk then.
func (d *Device) mayDowngrade(ctx context.Context, size int64) error {
	refuse := func(what string) error { return fmt.Errorf("version 2 does not have %s", what) }
	switch h := d.h; {
	case d.extended():
		return refuse("extended_l2")
	case h.HasDataFile():
		return refuse("data_file")
	case h.CryptMethod == ondisk.CryptLUKS:
		return refuse("encryption with LUKS")
	case h.CryptMethod != ondisk.CryptNone && d.backing.Named():
		return block.ErrorOf(errors.ErrUnsupported, "an encrypted image with a backing file cannot get version 2")
	}
	b, err := d.loadBitmaps(ctx)
	if err != nil {
		return err
	}
	if n := len(b.list); n > 0 {
		return block.WithHint(refuse("bitmaps, and the image has some"), "remove the bitmaps first")
	}
	list, err := d.readSnapshots(ctx)
	if err != nil {
		return err
	}
	tables := int64(0)
	for _, s := range list {
		if s.DiskSize != uint64(size) || s.VMStateSize > math.MaxUint32 {
			return fmt.Errorf("version 2 does not keep the size of the disk with a snapshot, and snapshot %q has another one", s.Name)
		}
		if tables += 8 * int64(s.L1Size); tables > maxSnapshotL1 {
			return block.ErrorOf(errors.ErrUnsupported, "the L1 tables of the snapshots have more than %d bytes", maxSnapshotL1)
		}
	}
	if d.h.CompressionType == ondisk.CompressionZlib {
		return nil
	}
	return d.eachTable(ctx, func(table int64, p []byte) error {
		for i := 0; i < len(p); i += 8 {
			if binary.BigEndian.Uint64(p[i:])&ondisk.Compressed != 0 {
				return refuse("compression_type zstd, and the image has such clusters")
			}
		}
		return nil
	})
}

// eachTable calls do for each L2 table of the image and its snapshots, once, with its bytes.
func (d *Device) eachTable(ctx context.Context, do func(table int64, p []byte) error) error {
	tables, err := d.allTables(ctx)
	if err != nil {
		return err
	}
	for _, table := range tables {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, err := d.readTable(ctx, "L2 table", tableAt{table, d.clusterSize / 8})
		if err != nil {
			return err
		}
		if err := do(table, p); err != nil {
			return err
		}
	}
	return nil
}

// downgrade makes version 2 of version 3, once nothing is left that version 2 does not have.
func (d *Device) downgrade(ctx context.Context) error {
	if err := d.expandZeros(ctx); err != nil {
		return err
	}
	h := *d.h
	h.Version, h.CompressionType, h.Unknown = 2, ondisk.CompressionZlib, nil
	h.IncompatibleFeatures, h.CompatibleFeatures, h.AutoclearFeatures = 0, 0, 0
	h.SetExtension(ondisk.ExtFeatureNames, nil)
	h.SetExtension(ondisk.ExtBitmaps, nil)
	return d.setHeader(ctx, &h)
}

// expansion is the replacement of zero clusters, of some tables at a time.
type expansion struct {
	d      *Device
	tables []changedTable
	unused []span
}

type changedTable struct {
	off int64
	p   []byte
}

// maxExpansion is how many bytes of tables are kept in memory before they are written.
const maxExpansion = 4 << 20

// expandZeros replaces all zero clusters: by none where there is no backing file, else by data. Tables change in place, also those of snapshots:
// each of their entries reads as zero before and after.
func (d *Device) expandZeros(ctx context.Context) error {
	x := &expansion{d: d}
	err := d.eachTable(ctx, func(table int64, p []byte) error {
		changed, err := x.expand(ctx, table, p)
		if err != nil || !changed {
			return err
		}
		x.tables = append(x.tables, changedTable{table, p})
		if int64(len(x.tables))*d.clusterSize < maxExpansion {
			return nil
		}
		return x.write(ctx)
	})
	if err == nil {
		err = x.write(ctx)
	}
	d.tables.dropAll() // they are what the tables were
	return err
}

// expand replaces the zero clusters in the bytes of a table.
func (x *expansion) expand(ctx context.Context, table int64, p []byte) (changed bool, err error) {
	d := x.d
	users, err := d.refs.count(ctx, table>>d.clusterBits)
	if err != nil {
		return false, err
	}
	for i := 0; i < len(p); i += 8 {
		word := binary.BigEndian.Uint64(p[i:])
		if word&ondisk.Compressed != 0 || word&ondisk.Zero == 0 {
			continue
		}
		place := int64(word & ondisk.OffsetMask)
		if word&ondisk.L2Reserved != 0 || place&(d.clusterSize-1) != 0 {
			return false, d.corrupt("L2 entry", table+int64(i), "%#x cannot be", word)
		}
		entry, err := x.replace(ctx, place, word&ondisk.Copied != 0, users)
		if err != nil {
			return false, err
		}
		binary.BigEndian.PutUint64(p[i:], entry)
		changed = true
	}
	return changed, nil
}

// replace returns the entry in place of that of a zero cluster, to which place belongs, or none, in a table that is used by so many L1 tables.
func (x *expansion) replace(ctx context.Context, place int64, copied bool, users uint64) (uint64, error) {
	d := x.d
	if place != 0 {
		if err := d.refs.verify(ctx, place>>d.clusterBits, 1, copied); err != nil {
			return 0, err
		}
	}
	host := place
	if own := place != 0 && copied; !d.backing.Named() || !own {
		if place != 0 {
			for range users {
				x.unused = append(x.unused, span{place >> d.clusterBits, 1})
			}
		}
		if !d.backing.Named() {
			return 0, nil
		}
		var err error
		if host, _, _, err = d.refs.allocate(ctx, 1); err != nil {
			return 0, err
		}
		for range users - 1 {
			if err := d.refs.change(ctx, host>>d.clusterBits, 1, 1); err != nil {
				return 0, err
			}
		}
	}
	err := d.file.Zero(ctx, host, d.clusterSize, 0)
	d.wrote.Store(true)
	entry := uint64(host)
	if users == 1 {
		entry |= ondisk.Copied
	}
	return entry, err
}

// write writes the tables once what they lead to is durable, and gives up what they led to.
func (x *expansion) write(ctx context.Context) error {
	d := x.d
	if err := errors.Join(d.refs.write(ctx), d.syncFile(ctx)); err != nil {
		return err
	}
	for _, t := range x.tables {
		if err := d.writeFile(ctx, t.p, t.off); err != nil {
			return err
		}
	}
	for _, s := range x.unused {
		d.freed.unlink(s)
	}
	x.tables, x.unused = nil, nil
	if d.freed.crowded() || d.refs.crowded() {
		return d.flush(ctx)
	}
	return d.syncFile(ctx)
}

// count returns how often a cluster is used, which is an error where it is not.
func (r *refcounts) count(ctx context.Context, cluster int64) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.countLocked(ctx, cluster)
	if err == nil && n == 0 {
		err = notCounted(r.d, cluster)
	}
	return n, err
}
