// Package check looks for contradictions in the metadata of a qcow2 image and repairs them.
//
// It works on the image file alone: neither the backing file nor an external data file is opened. It counts how often each cluster of the file is
// referred to (by the header, the L1 tables of the disk and of all snapshots, L2 tables, compressed clusters, the refcount table and its
// blocks, the snapshot table, bitmaps, the encryption header), and compares that with the reference counts that the image holds: what is counted
// too high there is leaked, what is counted too low is in danger. Entries of tables are judged as they are met.
//
// Memory is bounded whatever the image says. Counts are kept for a window of the file, and where that is not all of it the tables are
// read once for each window. Tables that lie in holes of the file cost nothing, a table that many snapshots share is read once.
//
// # Beside qemu-img
//
// Counts and their meaning are those of qemu-img check, but for these:
//
//   - The backing file and the data file need not exist.
//   - Where an L1 entry or the snapshot table cannot be right, nothing is read at the place that it names, so that fewer errors are counted. What
//     looks leaked then is not freed, because it may be what is no longer found.
//   - In version 2, and with extended L2 entries, the zero flag of an entry is an error. An L1 entry with nothing but the COPIED flag is one, too.
//   - Two structures that are written in place and share a cluster are an error even where their count is right.
//   - Refcounts are put right in place where there are blocks for them; qemu-img rebuilds them all once one is 0 that should not be.
//   - Where refcounts must be rebuilt, a repair of leaks does nothing and reports; qemu-img fails.
//   - Of a cluster of which subclusters are called both allocated and zero, only these become zero. COPIED flags of compressed clusters are cleared.
//   - In an L2 table that is something else as well, nothing is repaired.
package check

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

const (
	// defaultBudget is how much memory counts take, in bytes, where the caller does not say.
	defaultBudget = 64 << 20
	// maxTold is how many problems the caller is told.
	maxTold = 4096
)

// checker looks at one image.
type checker struct {
	ctx    context.Context
	dev    block.Device
	h      *ondisk.Header
	size   int64 // of the file, in bytes
	tell   func(formats.Problem)
	told   int
	budget int64

	places places
	seen   findings
	quiet  bool // what the walk over the tables finds has been counted and told
	muted  bool // nothing is counted or told but what has been put right

	counts *counts
	// copiedHere says that COPIED flags contradict the counts of the window.
	copiedHere bool
	end        int64 // clusters of the file; one more where something reaches past its end by less than a cluster
}

// findings is what one look at the image has found.
type findings struct {
	formats.CheckResult
	highest int64 // cluster in use

	rebuild    bool // refcounts cannot be put right where they are
	hidden     bool // references are lost with a table that cannot be read, so that what looks leaked may be in use
	overlaps   bool // structures that are written where they lie share a cluster
	incomplete bool // snapshots lack what they must have

	raise  int64 // clusters that are counted too low
	copied int64 // COPIED flags that are wrong
	clear  int64 // entries that can be cleared
	shared sharedTables
}

// Check checks the image in dev, and repairs it where o says so. See formats.Driver.
//
// Where it repairs, the result is that of a second look afterwards, and the order of the writes is such that at no time a cluster is counted
// lower than it is used, or lower than it was. Leaks are freed only where no table is unreadable that might use them.
func Check(ctx context.Context, dev block.Device, o formats.CheckOptions) (formats.CheckResult, error) {
	if o.Repair != formats.RepairNothing && !dev.Info().Caps.Write {
		return formats.CheckResult{}, block.ErrReadOnly
	}
	h, err := ondisk.ReadHeader(ctx, dev)
	if err != nil {
		return formats.CheckResult{}, err
	}
	if unknown := h.UnknownFeatures(); len(unknown) > 0 {
		return formats.CheckResult{}, fmt.Errorf("%s: the image uses features that are not known here: %s", ondisk.Format, strings.Join(unknown, ", "))
	}
	c := &checker{ctx: ctx, dev: dev, h: h, size: dev.Size(), tell: o.Problem, budget: defaultBudget}
	if o.Memory > 0 {
		c.budget = o.Memory / 2
	}
	if o.Repair == formats.RepairNothing {
		err := c.look()
		return c.seen.CheckResult, err
	}
	return c.repair(o.Repair)
}

// look finds out what is wrong. It begins anew each time.
func (c *checker) look() error {
	c.size = c.dev.Size()
	c.end = clustersOf(c.size, c.h)
	c.seen = findings{}
	c.seen.TotalClusters = clustersOf(int64(c.h.Size), c.h)
	c.quiet = false
	if err := c.readPlaces(); err != nil {
		return err
	}
	err := c.windows(false, func() error {
		if err := c.compare(nil); err != nil {
			return err
		}
		return c.checkCopied(false)
	})
	if errors.Is(err, errScattered) {
		c.found(formats.CheckError, 1, partCluster, -1, "%v", err)
		err = nil
	}
	c.seen.ImageEndOffset = (c.seen.highest + 1) << c.h.ClusterBits
	return err
}

// windows counts references for one window after the other, and calls use for each. With bare, what rebuild writes elsewhere is left out.
func (c *checker) windows(bare bool, use func() error) error {
	unit := max(c.h.RefcountBlockEntries(), pageClusters)
	for lo := int64(0); lo < c.end; lo = c.counts.hi {
		c.counts = newCounts(lo, c.end+1, unit, c.budget)
		if err := c.count(bare); err != nil {
			return err
		}
		if c.counts.scattered {
			return errScattered
		}
		c.quiet = true
		if err := use(); err != nil {
			return err
		}
	}
	return nil
}

// errScattered ends a look at an image that would take time without bound.
var errScattered = errors.New("what the tables refer to is scattered over more of the file than can be counted")

// count counts every reference of the image in the present window.
func (c *checker) count(bare bool) error {
	for _, p := range c.places.fixed {
		if bare && (p.refcounts || p.part == partSnapshots && c.places.snapshots != nil) {
			continue // they get another place
		}
		c.addRange(p.part, -1, p.off, p.len, 1, refOther)
	}
	if !bare {
		c.countBlocks()
	}
	if err := c.countBitmaps(); err != nil {
		return err
	}
	return c.countTables()
}

// addRange counts w references to the clusters that hold a byte of the range, and reports whether it lies inside the file. The last cluster of a file
// need not be whole. at is where the reference is, or -1.
func (c *checker) addRange(part string, at, off, n int64, w, flags uint64) bool {
	if n <= 0 {
		return true
	}
	end, ok := block.Add(off, n)
	if !ok || end-c.size >= c.h.ClusterSize() {
		c.corrupt(int64(w), part, at, "%d bytes at %#x are referred to, and the file ends at byte %d", n, off, c.size)
		return false
	}
	first, last := off>>c.h.ClusterBits, (end-1)>>c.h.ClusterBits
	c.end = max(c.end, last+1)
	c.counts.add(first, last-first+1, w, flags)
	return true
}

// corrupt counts and tells n corruptions at one place, the first time that the tables are walked.
func (c *checker) corrupt(n int64, part string, off int64, text string, args ...any) {
	if !c.quiet {
		c.found(formats.Corruption, n, part, off, text, args...)
	}
}

// found counts and tells n problems of a kind at one place.
func (c *checker) found(kind formats.ProblemKind, n int64, part string, off int64, text string, args ...any) {
	if c.muted {
		return
	}
	switch kind {
	case formats.Leak:
		c.seen.Leaks += n
	case formats.Corruption:
		c.seen.Corruptions += n
	case formats.CheckError:
		c.seen.CheckErrors += n
	}
	c.say(formats.Problem{Kind: kind, Part: part, Off: off}, text, args...)
}

// say tells the caller of a problem.
func (c *checker) say(p formats.Problem, text string, args ...any) {
	if c.tell == nil || c.told > maxTold {
		return
	}
	if c.told++; c.told > maxTold {
		p = formats.Problem{Kind: formats.CheckError, Off: -1, Text: "there are more problems, which are counted but not told"}
	} else {
		p.Text = fmt.Sprintf(text, args...)
	}
	c.tell(p)
}

// clustersOf returns how many clusters n bytes take.
func clustersOf(n int64, h *ondisk.Header) int64 {
	return int64(divideUp(uint64(n), uint64(h.ClusterSize())))
}

func divideUp(n, unit uint64) uint64 { return n/unit + min(n%unit, 1) }

// isCorrupt reports whether err says that the image is damaged, rather than that it cannot be read.
func isCorrupt(err error) bool {
	var damaged *block.CorruptError
	return errors.As(err, &damaged)
}
