package qcow2

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/imgtool/imgtool/compress/inflate"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// packedPart is a part of a compressed cluster that is to be read.
type packedPart struct {
	p       []byte // where to
	within  int64  // where p begins in the cluster
	disk    int64  // where the cluster lies on the disk
	off     int64  // where the compressed data lies in the file
	n       int64  // bytes of it at most
	present int64  // bytes of it that the file has
}

// appendPacked appends the part of a compressed cluster that begins at off of the disk.
func (d *Device) appendPacked(parts []packedPart, p []byte, off int64, entry uint64) ([]packedPart, error) {
	at, n := ondisk.CompressedRange(entry, d.clusterBits)
	size := d.file.Size()
	if at > int64(ondisk.MaxOffset) || at+n >= size+ondisk.SectorSize || at >= size {
		return parts, d.corrupt("L2 entry", -1, "the compressed cluster at byte %d of the disk lies at byte %d, %d bytes, behind the end of the file at %d",
			d.floor(off), at, n, size)
	}
	return append(parts, packedPart{p: p, within: off & (d.clusterSize - 1), disk: d.floor(off), off: at, n: n, present: min(n, size-at)}), nil
}

// unpacker reads compressed clusters.
type unpacker struct {
	clusterSize int64
	zstd        bool
	decoders    sync.Pool    // of *inflate.Decoder or *zstdDecoder
	buffers     sync.Pool    // of *[]byte, for compressed data
	idle        atomic.Int64 // goroutines that may be started yet
	recent      recentClusters
}

func newUnpacker(h *ondisk.Header, memory int64, workers int) *unpacker {
	u := &unpacker{clusterSize: h.ClusterSize(), zstd: h.CompressionType == ondisk.CompressionZstd}
	u.idle.Store(int64(workers - 1))
	u.recent.room = int(min(max(2, memory/h.ClusterSize()), maxRecent))
	return u
}

// batchLen is how much compressed data is read at once, in bytes, unless one cluster has more.
const batchLen = 256 << 10

// batch returns how many of the parts, which are not none, lie so close together that they are read at once, and where they end.
func batch(parts []packedPart) (count int, end int64) {
	first := parts[0]
	end = first.off + first.present
	for count = 1; count < len(parts); count++ {
		next := parts[count]
		if next.off < first.off || next.off > end || next.off+next.present-first.off > batchLen {
			break
		}
		end = max(end, next.off+next.present)
	}
	return count, end
}

// read fills all parts. It works on several batches at once where goroutines are idle.
func (u *unpacker) read(ctx context.Context, d *Device, parts []packedPart) error {
	count, end := batch(parts)
	if count == len(parts) && (count == 1 || u.idle.Load() <= 0) {
		return u.readBatch(ctx, d, parts, end)
	}
	var mu sync.Mutex
	var failed error
	next := func() ([]packedPart, int64) {
		mu.Lock()
		defer mu.Unlock()
		if len(parts) == 0 || failed != nil {
			return nil, 0
		}
		count, end := batch(parts)
		if half := (len(parts) + 1) / 2; count > half { // leave something to the others
			count = half
			end = 0
			for _, part := range parts[:count] {
				end = max(end, part.off+part.present)
			}
		}
		mine := parts[:count]
		parts = parts[count:]
		return mine, end
	}
	work := func() {
		for mine, end := next(); mine != nil; mine, end = next() {
			if err := u.readBatch(ctx, d, mine, end); err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		}
	}
	var helpers sync.WaitGroup
	for range min(len(parts)-1, maxHelpers) {
		if u.idle.Add(-1) < 0 {
			u.idle.Add(1)
			break
		}
		helpers.Go(func() {
			defer u.idle.Add(1)
			work()
		})
	}
	work()
	helpers.Wait()
	return failed
}

// maxHelpers bounds the goroutines that help with one request.
const maxHelpers = 64

// readBatch fills parts whose compressed data lies between that of the first and end.
func (u *unpacker) readBatch(ctx context.Context, d *Device, parts []packedPart, end int64) error {
	if len(parts) == 1 && int64(len(parts[0].p)) < u.clusterSize {
		if c := u.recent.find(parts[0].off); c != nil {
			copy(parts[0].p, c[parts[0].within:])
			return nil
		}
	}
	buf, _ := u.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	defer u.buffers.Put(buf)
	start := parts[0].off
	if n := int(end - start); cap(*buf) < n {
		*buf = make([]byte, n)
	}
	src := (*buf)[:end-start]
	if err := d.file.Read(ctx, src, start); err != nil {
		return err
	}
	for _, part := range parts {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := u.decodePart(part, src[part.off-start:][:part.present]); err != nil {
			return d.corrupt("compressed cluster", part.off, "it holds byte %d of the disk: %w", part.disk, err)
		}
	}
	return nil
}

// decodePart decodes a cluster into the caller's buffer where all of it is wanted; of others it remembers the rest.
func (u *unpacker) decodePart(part packedPart, src []byte) error {
	if int64(len(part.p)) == u.clusterSize {
		return u.decode(part.p, src)
	}
	c := u.recent.find(part.off)
	if c == nil {
		c = make([]byte, u.clusterSize)
		if err := u.decode(c, src); err != nil {
			return err
		}
		u.recent.add(part.off, c)
	}
	copy(part.p, c[part.within:])
	return nil
}

// decode decodes the cluster at the start of src into dst, which it fills exactly.
func (u *unpacker) decode(dst, src []byte) error {
	if u.zstd {
		z, _ := u.decoders.Get().(*zstdDecoder)
		if z == nil {
			var err error
			if z, err = newZstd(u.clusterSize); err != nil {
				return err
			}
		}
		defer u.decoders.Put(z)
		return z.decode(dst, src)
	}
	f, _ := u.decoders.Get().(*inflate.Decoder)
	if f == nil {
		f = new(inflate.Decoder)
	}
	defer u.decoders.Put(f)
	_, err := f.Decode(dst, src, inflate.Raw)
	return err
}

// maxRecent bounds how many decoded clusters are remembered: enough for a few readers that go forward in small steps.
const maxRecent = 8

// recentClusters remembers decoded clusters by where their compressed data lies. They are never changed.
type recentClusters struct {
	mu   sync.Mutex
	room int
	list []recentCluster
	hand int
}

type recentCluster struct {
	off int64
	p   []byte
}

func (r *recentClusters) find(off int64) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.list {
		if r.list[i].off == off {
			return r.list[i].p
		}
	}
	return nil
}

func (r *recentClusters) add(off int64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) < r.room {
		r.list = append(r.list, recentCluster{off, p})
		return
	}
	r.list[r.hand] = recentCluster{off, p}
	r.hand = (r.hand + 1) % len(r.list)
}
