package qcow2

import "github.com/imgtool/imgtool/formats/qcow2/ondisk"

// maxSliceLen is how much of an L2 table is read, cached and written as one, in bytes.
const maxSliceLen = 16 << 10

// geometry holds the lengths of an image's structures. They do not change while it is open.
type geometry struct {
	clusterBits uint32
	clusterSize int64
	entryWords  int   // of an L2 entry: 1, or 2 where it is extended
	l1Bits      uint  // an L1 entry stands for 1<<l1Bits bytes of the disk
	sliceBits   uint  // a slice of an L2 table stands for 1<<sliceBits bytes of the disk
	sliceLen    int64 // bytes of a slice in the file
	subBits     uint32
	subSize     int64 // bytes of a subcluster; of a cluster where there are none
	refBits     uint  // a refcount block counts 1<<refBits clusters
}

func newGeometry(h *ondisk.Header) geometry {
	g := geometry{
		clusterBits: h.ClusterBits, clusterSize: h.ClusterSize(), entryWords: int(h.L2EntryLen() / 8), sliceLen: min(h.ClusterSize(), maxSliceLen),
		subBits: h.ClusterBits, refBits: uint(h.ClusterBits + 3 - h.RefcountOrder),
	}
	if h.ExtendedL2() {
		g.subBits -= 5 // 32 subclusters
	}
	g.subSize = 1 << g.subBits
	entryBits := uint(2 + g.entryWords) // 8 or 16 bytes
	g.l1Bits = uint(2*h.ClusterBits) - entryBits
	g.sliceBits = uint(h.ClusterBits) - entryBits
	for n := g.sliceLen; n > 1; n >>= 1 {
		g.sliceBits++
	}
	return g
}

func (g *geometry) extended() bool { return g.entryWords == 2 }

// floor returns where the cluster begins in which off lies, of the disk or of the file.
func (g *geometry) floor(off int64) int64 { return off &^ (g.clusterSize - 1) }

// ceil returns off rounded up to a cluster. Sizes are checked to leave room for it.
func (g *geometry) ceil(off int64) int64 { return (off + g.clusterSize - 1) &^ (g.clusterSize - 1) }

// clusters returns how many clusters n bytes need.
func (g *geometry) clusters(n int64) int64 { return g.ceil(n) >> g.clusterBits }

// entryIndex returns which entry of its slice the byte off of the disk has.
func (g *geometry) entryIndex(off int64) int {
	return int(off & (1<<g.sliceBits - 1) >> g.clusterBits)
}
