package check

import (
	"encoding/binary"
	"math"

	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// Byte offsets of header fields that repairs write.
const (
	refcountTableField = 48 // refcount_table_offset and refcount_table_clusters
	incompatibleField  = 72
	autoclearField     = 88
)

// repair looks, mends, and looks again. What is put right is told as it is; what is left, at the end.
func (c *checker) repair(how formats.Repair) (formats.CheckResult, error) {
	tell := c.tell
	c.tell = nil
	if err := c.look(); err != nil {
		return c.seen.CheckResult, err
	}
	before := c.seen.CheckResult
	if c.counts.scattered {
		return before, errScattered
	}
	if err := c.mend(how, tell); err != nil {
		return before, err
	}
	c.tell = tell
	if err := c.look(); err != nil {
		return c.seen.CheckResult, err
	}
	r := c.seen.CheckResult
	r.LeaksFixed = max(0, before.Leaks-r.Leaks)
	r.CorruptionsFixed = max(0, before.Corruptions-r.Corruptions)
	if r.Corruptions == 0 && r.CheckErrors == 0 {
		return r, c.markClean()
	}
	return r, nil
}

// mend puts right what the look before has found. Counts go up before anything else happens, and down when nothing refers any more to what they
// count; in between everything is durable.
func (c *checker) mend(how formats.Repair, tell func(formats.Problem)) error {
	all := how == formats.RepairAll
	if c.seen.Leaks == 0 && c.seen.Corruptions == 0 || c.seen.rebuild && !all {
		return nil
	}
	if err := c.clearAutoclear(); err != nil {
		return err
	}
	if c.seen.rebuild || all && c.places.snapshots != nil {
		c.tell = tell
		if err := c.rebuild(c.seen); err != nil {
			return err
		}
		c.tell = nil
		if err := c.look(); err != nil { // without the old table much else may be right
			return err
		}
	}
	c.tell, c.muted = tell, true
	defer func() { c.muted = false }()
	f := c.seen
	if all && f.raise > 0 {
		if err := c.setCounts(func(stored, used uint64) uint64 { return max(stored, used) }); err != nil {
			return err
		}
	}
	if all && f.clear > 0 {
		if err := c.clearTables(); err != nil {
			return err
		}
		if err := c.dev.Flush(c.ctx); err != nil {
			return err
		}
	}
	if !f.hidden {
		if err := c.setCounts(func(stored, used uint64) uint64 { return min(stored, used) }); err != nil {
			return err
		}
	}
	if !all && f.Corruptions > f.copied { // what else is wrong may be why the flags are
		return nil
	}
	err := c.windows(false, func() error {
		if err := c.compare(nil); err != nil {
			return err
		}
		return c.checkCopied(true)
	})
	if err != nil {
		return err
	}
	return c.dev.Flush(c.ctx)
}

// setCounts changes the counts of the image durably.
func (c *checker) setCounts(fix change) error {
	if err := c.windows(false, func() error { return c.compare(fix) }); err != nil {
		return err
	}
	return c.dev.Flush(c.ctx)
}

// clearTables clears the entries of all L1 and L2 tables of which a part must go.
func (c *checker) clearTables() error {
	for lo := int64(0); lo < math.MaxInt64; {
		var empty []l1Fix
		list, next, err := c.gather(lo, func(e uint64, at int64, _ span) (int64, bool) {
			if lo == 0 && e == ondisk.Copied && len(empty) < maxTableRefs {
				empty = append(empty, l1Fix{at: at})
			}
			off := int64(e & ondisk.OffsetMask)
			return off, c.isTable(off)
		})
		if err != nil {
			return err
		}
		if err := c.fixL1(empty); err != nil {
			return err
		}
		if err := c.eachTable(list, c.clearEntries); err != nil {
			return err
		}
		lo = next
	}
	return nil
}

// clearEntries clears the entries of an L2 table of which a part must go.
func (c *checker) clearEntries(t tableRef, data []byte) error {
	if c.seen.shared.has(t.off) {
		return nil
	}
	step := int(c.h.L2EntryLen())
	var changed dirty
	for i := 0; i+step <= len(data); i += step {
		e := c.l2At(t, data, i)
		fixed, wrong := c.cleared(e)
		if !wrong {
			continue
		}
		binary.BigEndian.PutUint64(data[i:], fixed.bits)
		if c.h.ExtendedL2() {
			binary.BigEndian.PutUint64(data[i+8:], uint64(fixed.bitmap))
		}
		changed.add(i, i+step)
		c.say(formats.Problem{Kind: formats.Corruption, Part: partL2, Off: e.at, Fixed: true}, "%s: entry %#x %#x is %#x %#x now", e.wrongs(fixed), e.bits, e.bitmap, fixed.bits, fixed.bitmap)
	}
	if !changed.any() {
		return nil
	}
	return c.writeSectors(data, t.off, changed)
}

// clearAutoclear clears the bits of features that are not known here, as whoever writes to an image has to.
func (c *checker) clearAutoclear() error {
	known := c.h.AutoclearFeatures & ondisk.AutoclearKnown
	if known == c.h.AutoclearFeatures {
		return nil
	}
	c.h.AutoclearFeatures = known
	return c.writeField(autoclearField, known)
}

// markClean says that the image is neither dirty nor corrupt.
func (c *checker) markClean() error {
	const marks = ondisk.IncompatDirty | ondisk.IncompatCorrupt
	if c.h.IncompatibleFeatures&marks == 0 {
		return nil
	}
	if err := c.dev.Flush(c.ctx); err != nil {
		return err
	}
	if err := c.clearAutoclear(); err != nil {
		return err
	}
	c.h.IncompatibleFeatures &^= marks
	return c.writeField(incompatibleField, c.h.IncompatibleFeatures)
}

// writeField writes a field of the header durably.
func (c *checker) writeField(at int64, v uint64) error {
	if err := c.dev.Write(c.ctx, binary.BigEndian.AppendUint64(nil, v), at, 0); err != nil {
		return err
	}
	return c.dev.Flush(c.ctx)
}
