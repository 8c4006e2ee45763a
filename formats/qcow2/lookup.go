package qcow2

import (
	"context"
	"math/bits"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// kind says where the bytes of a run come from.
type kind uint8

const (
	unallocated kind = iota // from the backing image; zeros where there is none
	zero                    // they are zeros
	plain                   // from the file with the data
	packed                  // from a compressed cluster
)

// run is a range of the disk of which all bytes have the same kind, and lie one after another in the file.
type run struct {
	kind  kind
	len   int64  // bytes
	host  int64  // of plain runs: where the first byte lies. Of zero runs too, -1 where they have no place
	entry uint64 // of packed runs, which are of one cluster: the L2 entry
}

// lookup returns the run that begins at off, of at most n bytes; n is at least 1. It may end before the bytes that follow it differ.
func (d *Device) lookup(ctx context.Context, off, n int64) (run, error) {
	i := off >> d.l1Bits
	entry := d.l1[i].Load()
	if entry == 0 {
		end := (i + 1) << d.l1Bits
		for i++; end-off < n && d.l1[i].Load() == 0; i++ {
			end += 1 << d.l1Bits
		}
		return run{kind: unallocated, len: min(n, end-off)}, nil
	}
	table, err := d.l2Table(i, entry)
	if err != nil {
		return run{}, err
	}
	s, err := d.slice(ctx, table, off)
	if err != nil {
		return run{}, err
	}
	defer s.unpin()
	s.mu.RLock()
	defer s.mu.RUnlock()
	return d.lookupIn(s, off, n)
}

// l2Table returns where the L2 table lies to which entry i of the L1 table, which is not 0, points.
func (d *Device) l2Table(i int64, entry uint64) (int64, error) {
	table := int64(entry & ondisk.OffsetMask)
	if entry&ondisk.L1Reserved != 0 || table&(d.clusterSize-1) != 0 || table == 0 {
		return 0, d.corrupt("L1 table", d.l1Offset+8*i, "entry %d is %#x, which cannot be", i, entry)
	}
	return table, nil
}

// lookupIn is lookup in a slice that is locked for reading.
func (d *Device) lookupIn(s *slice, off, n int64) (run, error) {
	r, err := d.resolve(s, off)
	if err != nil {
		return r, err
	}
	for r.len < n && r.kind != packed {
		next := off + r.len
		if next>>d.sliceBits != off>>d.sliceBits {
			break
		}
		if k := d.alike(s, next, r.kind); k > 0 { // quickly
			r.len += k << d.clusterBits
			continue
		}
		more, err := d.resolve(s, next)
		if err != nil || more.kind != r.kind || more.host != r.host+r.len && (r.kind == plain || r.kind == zero && (r.host >= 0 || more.host >= 0)) {
			break // an error is told to those who ask for that place
		}
		r.len += more.len
	}
	r.len = min(r.len, n)
	return r, nil
}

// alike returns how many entries of s, from that of off on, where a run of a kind ends, are seen at once to continue it: they have never been set, or
// each lies behind the one before it.
func (d *Device) alike(s *slice, off int64, k kind) int64 {
	first := d.entryIndex(off) * d.entryWords
	i := first
	switch {
	case off&(d.clusterSize-1) != 0:
	case k == unallocated:
		for i < len(s.entries) && s.entries[i] == 0 {
			i++
		}
	case k == plain && !d.extended():
		for size := uint64(d.clusterSize); i < len(s.entries) && s.entries[i] == s.entries[i-1]+size; {
			i++
		}
	case k == plain:
		const all = 1<<ondisk.Subclusters - 1
		for size := uint64(d.clusterSize); i < len(s.entries) && s.entries[i] == s.entries[i-2]+size && s.entries[i+1] == all && s.entries[i-1] == all; {
			i += 2
		}
	}
	return int64((i - first) / d.entryWords)
}

// resolve returns the run from off to the end of its cluster, or of subclusters of one kind in it.
func (d *Device) resolve(s *slice, off int64) (run, error) {
	i := d.entryIndex(off)
	within := off & (d.clusterSize - 1)
	e, err := d.entry(s, i, d.floor(off))
	if err != nil {
		return run{}, err
	}
	r := run{kind: e.kind, len: d.clusterSize - within, host: -1, entry: e.word}
	if e.kind == packed {
		return r, nil
	}
	if e.hasPlace {
		r.host = e.host + within
	}
	if !d.extended() {
		return r, nil
	}
	sub := within >> d.subBits
	alloc, zeros := e.alloc>>sub, e.zero>>sub
	k := 0
	switch {
	case alloc&1 != 0:
		r.kind, k = plain, bits.TrailingZeros32(^alloc)
	case zeros&1 != 0:
		r.kind, k = zero, bits.TrailingZeros32(^zeros)
	default:
		r.kind, k = unallocated, bits.TrailingZeros32(alloc|zeros)
	}
	r.len = min(r.len, (sub+int64(k))<<d.subBits-within)
	return r, nil
}

// entry is an L2 entry that has been checked.
type entry struct {
	kind        kind // without the subclusters
	word        uint64
	host        int64
	hasPlace    bool // a place belongs to it, at host
	copied      bool
	alloc, zero uint32 // of subclusters, where there are any
}

// entry returns entry i of s, which stands for the cluster at guest of the disk.
func (d *Device) entry(s *slice, i int, guest int64) (entry, error) {
	word := s.entries[i*d.entryWords]
	e := entry{word: word}
	var bitmap ondisk.SubclusterBitmap
	if d.extended() {
		bitmap = ondisk.SubclusterBitmap(s.entries[i*2+1])
		e.alloc, e.zero = bitmap.Alloc(), bitmap.Zero()
	}
	if word == 0 && bitmap == 0 {
		return e, nil
	}
	bad := func(cause string, args ...any) (entry, error) {
		return e, d.corrupt("L2 entry", s.host+int64(8*i*d.entryWords), cause, args...)
	}
	if word&ondisk.Compressed != 0 {
		e.kind = packed
		switch {
		case word&ondisk.Copied != 0:
			return bad("%#x is of a compressed cluster that may be written in place", word)
		case d.h.HasDataFile():
			return bad("%#x is of a compressed cluster, and the data is in another file", word)
		case bitmap != 0:
			return bad("%#x is of a compressed cluster with subclusters %#x", word, uint64(bitmap))
		}
		return e, nil
	}
	e.host, e.copied = int64(word&ondisk.OffsetMask), word&ondisk.Copied != 0
	e.hasPlace = e.host != 0 || d.h.HasDataFile() && e.copied
	e.copied = e.copied && e.hasPlace // as QEMU has it
	e.kind = unallocated
	switch {
	case word&ondisk.L2Reserved != 0 || e.host&(d.clusterSize-1) != 0:
		return bad("%#x cannot be", word)
	case word&ondisk.Zero != 0 && (d.h.Version < 3 || d.extended()):
		return bad("%#x is of a zero cluster, which this image cannot have", word)
	case e.alloc&e.zero != 0:
		return bad("subclusters %#x are allocated and zero at once", e.alloc&e.zero)
	case e.alloc != 0 && !e.hasPlace:
		return bad("subclusters %#x are allocated, and the cluster is not", e.alloc)
	case e.hasPlace && d.h.HasDataFile() && e.host != guest:
		return bad("the cluster at byte %d lies at byte %d of the data file", guest, e.host)
	}
	switch {
	case word&ondisk.Zero != 0:
		e.kind = zero
	case e.hasPlace && !d.extended():
		e.kind = plain
	}
	return e, nil
}

// corrupt returns an error that names what contradicts the format.
func (d *Device) corrupt(part string, off int64, cause string, args ...any) error {
	return block.Corrupt(Name, part, off, cause, args...)
}
