package gzindex

import (
	"hash/crc32"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/inflate"
	"github.com/imgtool/imgtool/internal/crcmath"
)

// builder makes an index of what a Scanner decodes.
type builder struct {
	ix    *Index
	limit int64 // of memory, in bytes
	span  int64 // grows
	used  int64 // memory
	pos   int64 // of the image
	part  sum   // of what came since the last point or beginning of a member
	sp    sum   // of the span before that
	mem   sum   // of the member before that
	zeros zeroFinder
	pack  packer

	waitEnd int64 // a flush mark is waited for, to this byte of the image; 0: none is
	missed  int   // points that waited in vain since the last mark

	// The last point's window, while it is not known yet which bytes of it are referred to.
	tracing bool
	window  []byte
	lens    []byte
	seen    [windowLen]bool
}

// sum is a CRC-32 and the number of bytes that it is of.
type sum struct {
	crc uint32
	n   int64
}

// append returns the sum of what s and then t are of.
func (s sum) append(t sum) sum { return sum{crcmath.Combine(s.crc, t.crc, t.n), s.n + t.n} }

func newBuilder(o ScanOptions) *builder {
	b := &builder{ix: &Index{}, span: o.Span, limit: o.Limit, pack: newPacker()}
	if b.span == 0 {
		b.span = DefaultSpan
	}
	if b.limit == 0 {
		b.limit = DefaultLimit
	}
	b.span, b.limit = max(b.span, minSpan), max(b.limit, minLimit)
	b.zeros = zeroFinder{least: leastZeros, most: int(min(b.limit/4/runSize, maxPoints))}
	return b
}

// member notes that a member begins at a byte of the file. It is the cheapest point, so that it may come early.
func (b *builder) member(fileOff int64) {
	b.settle()
	b.waitEnd = 0
	if len(b.ix.points) == 0 || b.passed() >= b.span/2 {
		b.append(point{bit: fileOff * 8, kind: atMember})
	}
}

// passed returns how long the last span is.
func (b *builder) passed() int64 { return b.pos - b.ix.points[len(b.ix.points)-1].image }

// room returns buf, shortened so that decoding stops where a point may be due.
func (b *builder) room(buf []byte, at int) []byte {
	step := b.span - b.passed()
	switch {
	case b.waitEnd > 0:
		step = max(b.waitEnd-b.pos, 1)
	case step <= 0:
		step = b.span / 4
	}
	return buf[:min(int64(len(buf)), int64(at)+step+Slop)]
}

// due reports whether the last span is long enough, where the next byte of the file is at fileOff. What is nearly all zeros decodes so fast
// that its spans may be longer.
func (b *builder) due(fileOff int64) bool {
	last := &b.ix.points[len(b.ix.points)-1]
	sparse := fileOff-last.bit/8 < b.span/sparseRatio
	return b.passed() >= b.span && (!sparse || b.passed() >= b.span*sparseSpans)
}

const (
	sparseRatio = 16 // a span that is smaller in the file by this
	sparseSpans = 2  // may be so much longer
	patience    = 2  // points that wait for flush marks in vain before none waits any more

	inCache = 16 << 10 // bytes that are looked at twice at little more cost than once
)

// The CRC-32 of zeros follows from their number, so that it need not be computed.
var (
	acrossCache = crcmath.Across(inCache)
	zerosCRC    = crcmath.Zeros(inCache)
)

// add takes in the last n bytes of out, which d has just decoded, and sets a point where one is due.
func (b *builder) add(d *decoder, out []byte, n int) error {
	for p := out[len(out)-n:]; len(p) > 0; {
		k := min(len(p), inCache)
		zero := k == inCache && block.IsZero(p[:k])
		if zero {
			b.part.crc = acrossCache.Shift(b.part.crc) ^ zerosCRC
		} else {
			b.part.crc = crc32.Update(b.part.crc, crc32.IEEETable, p[:k])
		}
		b.part.n += int64(k)
		b.zeros.add(p[:k], zero)
		p = p[k:]
	}
	b.pos += int64(n)
	if b.tracing && (!d.open || d.z.Traced()) {
		b.settle()
		d.z.Trace(nil)
	}
	if !d.open {
		return b.endMember(d)
	}
	if !b.due(d.offset()) {
		return nil
	}
	p := d.z.Point()
	switch {
	case p.Block == inflate.Between:
		b.missed = 0
	case b.waitEnd == 0 && b.missed < patience:
		b.waitEnd = b.pos + b.span/4
		d.z.StopAtMarks(true)
		return nil
	case b.pos < b.waitEnd:
		return nil
	default:
		b.missed++
	}
	b.waitEnd = 0
	d.z.StopAtMarks(false)
	b.inside(d, out, p)
	return nil
}

// inside sets a point in a member, after out, and begins to see what of the window is referred to.
func (b *builder) inside(d *decoder, out []byte, p inflate.Point) {
	b.settle()
	b.append(point{bit: d.base*8 + p.In, kind: kindOf(p.Block), final: p.Final,
		state: state{left: uint16(p.Stored), nlit: uint16(p.NLit), ndist: uint8(len(p.Lens) - p.NLit)}})
	b.tracing = true
	b.lens = append(b.lens[:0], p.Lens...)
	b.window = append(b.window[:0], out[len(out)-int(min(d.z.OutputOffset(), windowLen, int64(len(out)))):]...)
	clear(b.seen[:])
	d.z.Trace(&b.seen)
}

// endMember checks the trailer of the member that has ended.
func (b *builder) endMember(d *decoder) error {
	b.fold()
	m := b.mem
	b.mem = sum{}
	switch at := d.offset() - trailerLen; {
	case d.crc != m.crc:
		return block.Corrupt(format, "trailer", at, "CRC32 is %08x, that of the content %08x", d.crc, m.crc)
	case d.isize != uint32(m.n):
		return block.Corrupt(format, "trailer", at+4, "ISIZE is %d, the content has %d bytes", d.isize, m.n)
	}
	return nil
}

// fold adds the sum of the last part to those of span and member.
func (b *builder) fold() {
	b.sp, b.mem, b.part = b.sp.append(b.part), b.mem.append(b.part), sum{}
}

// kindOf returns what a point that lies in a block of type t is.
func kindOf(t inflate.BlockType) kind {
	switch t {
	case inflate.Stored:
		return inStored
	case inflate.Fixed:
		return inFixed
	case inflate.Dynamic:
		return inDynamic
	}
	return atBlock
}

// append adds a point at the present place.
func (b *builder) append(p point) {
	b.end()
	p.image, p.checked = b.pos, true
	x := b.ix
	x.mu.Lock()
	x.points = append(x.points, p)
	x.size = b.pos
	x.zeros = b.zeros.runs
	x.mu.Unlock()
	b.use(pointSize)
}

// end gives the last span its CRC-32.
func (b *builder) end() {
	b.fold()
	x := b.ix
	x.mu.Lock()
	defer x.mu.Unlock()
	if n := len(x.points); n > 0 {
		x.points[n-1].crc, x.points[n-1].summed = b.sp.crc, true
	}
	b.sp = sum{}
}

// settle packs the state of the last point, where that has not been done: everything that refers to its window has been seen.
func (b *builder) settle() {
	if !b.tracing {
		return
	}
	b.tracing = false
	x := b.ix
	last := &x.points[len(x.points)-1]
	st := last.state
	st.window = b.mask()
	b.pack.pack(&st, b.lens, b.window[len(b.window)-int(st.window):])
	x.mu.Lock()
	last.state = st
	x.mu.Unlock()
	b.use(int64(len(st.packed)))
}

// mask zeroes the bytes of the window that nothing refers to, and returns how many bytes of its end are needed.
func (b *builder) mask() uint16 {
	const together = 8 // most of them are not referred to, and go so many at a time
	need, w := 0, b.window
	for i := 0; i < len(w); i += together {
		seen, end := (*[together]bool)(b.seen[i:]), len(w)-i
		if *seen == [together]bool{} {
			clear(w[max(0, end-together):end])
			continue
		}
		for k := 0; k < min(together, end); k++ {
			if seen[k] {
				need = i + k + 1
			} else {
				w[end-1-k] = 0
			}
		}
	}
	return uint16(need)
}

// use counts n bytes of memory, and makes room where they are too many.
func (b *builder) use(n int64) {
	b.used += n
	for (b.used > b.limit-b.limit/4 || len(b.ix.points) > maxPoints) && len(b.ix.points) > 2 {
		b.used -= b.ix.thin()
		b.span *= 2
	}
}

// finish completes the index at the end of the file, whose bytes id has seen.
func (b *builder) finish(id *identifier) {
	b.settle()
	b.end()
	x := b.ix
	x.mu.Lock()
	defer x.mu.Unlock()
	if last := len(x.points) - 1; last > 0 && x.points[last].image == b.pos {
		x.points = x.points[:last]
	}
	b.zeros.end()
	x.zeros, x.size, x.complete = b.zeros.runs, b.pos, true
	x.fileSize, x.identity = id.n, id.sum()
}

// leastZeros is the shortest run of zeros that is remembered, in bytes.
const leastZeros = 64 << 10

// zeroFinder finds runs of zero pages. Where they become too many, the shorter half goes.
type zeroFinder struct {
	least int64
	most  int
	runs  []run

	pos   int64
	dirty bool  // the page at pos holds something else
	from  int64 // the run of zeros that lasts
}

const pageLen = 4096

// add takes in what follows, which may be known to be zero.
func (z *zeroFinder) add(p []byte, zero bool) {
	for len(p) > 0 {
		k := min(int64(len(p)), pageLen-z.pos%pageLen)
		z.dirty = z.dirty || !zero && !block.IsZero(p[:k])
		p, z.pos = p[k:], z.pos+k
		if z.pos%pageLen != 0 {
			return
		}
		if z.dirty {
			z.close(z.pos - pageLen)
			z.dirty, z.from = false, z.pos
		}
	}
}

// end ends the last run, with the image.
func (z *zeroFinder) end() {
	if z.dirty {
		z.close(z.pos - z.pos%pageLen)
	} else {
		z.close(z.pos)
	}
}

// close ends a run at a byte of the image.
func (z *zeroFinder) close(at int64) {
	if at-z.from < z.least {
		return
	}
	if len(z.runs) == z.most {
		z.least *= 2
		var kept []run
		for _, r := range z.runs {
			if r.len >= z.least {
				kept = append(kept, r)
			}
		}
		z.runs = kept
	}
	if len(z.runs) < z.most && at-z.from >= z.least {
		z.runs = append(z.runs, run{z.from, at - z.from})
	}
}
