package deflate

import (
	"encoding/binary"
	"fmt"
	"hash/adler32"
)

const (
	MinLevel     = 1 // fast
	MaxLevel     = 9 // small
	DefaultLevel = 6

	minWindow = 256
)

// Options of an [Encoder] or a [Writer]. The zero value is good for most uses.
type Options struct {
	// Level is MinLevel to MaxLevel, 0 stands for DefaultLevel.
	Level int
	// Window is the greatest distance in bytes that a match may reach back: a power of two from 256 to 32768, 0 stands for 32768.
	Window int
}

// resolve puts in what 0 stands for.
func (o Options) resolve() (Options, error) {
	if o.Level == 0 {
		o.Level = DefaultLevel
	}
	if o.Window == 0 {
		o.Window = maxDistance
	}
	if o.Level < MinLevel || o.Level > MaxLevel {
		return o, fmt.Errorf("deflate: level %d is not one of %d to %d", o.Level, MinLevel, MaxLevel)
	}
	if o.Window < minWindow || o.Window > maxDistance || o.Window&(o.Window-1) != 0 {
		return o, fmt.Errorf("deflate: a window of %d bytes is not a power of two from %d to %d", o.Window, minWindow, maxDistance)
	}
	return o, nil
}

// End says how a piece of a stream ends.
type End uint8

const (
	// Final ends the stream: the last block has BFINAL set, and zero bits fill the last byte.
	Final End = iota
	// Sync ends the piece on a byte boundary with an empty stored block that is not final (its last bytes are 00 00 FF FF). Pieces put one after
	// the other make one stream.
	Sync
)

// matcher turns bytes into tokens. It knows the places that it has been shown since its last reset, as indexes of src: every call until then gives
// the same bytes in front.
type matcher interface {
	reset()
	// insert makes the places from p up to end known without making tokens: those of a dictionary.
	insert(src []byte, p, end int)
	// match appends the tokens of src[from:].
	match(tokens []token, src []byte, from int) []token
}

// efforts of the levels above MinLevel. Greedy up to 3, lazy from 4, optimal from 8.
var efforts = [MaxLevel + 1]effort{
	2: {depth: 2, nice: 16},
	3: {depth: 4, nice: 16},
	4: {depth: 3, nice: 32, lazy: 1},
	5: {depth: 6, nice: 32, lazy: 1},
	6: {depth: 12, nice: 64, lazy: 1},
	7: {depth: 32, nice: 128, lazy: 2},
	8: {depth: 16, nice: 64, passes: 1},
	9: {depth: 40, nice: 128, passes: 2},
}

const (
	partLen = 1 << 20 // what is tokenised before it is cut into blocks, bytes
	maxSrc  = 1 << 30 // what a matcher is shown without a reset, bytes
)

// Encoder compresses pieces of bytes that lie in memory. Its output depends on the pieces and the options alone. Its buffers, 1 to 4 MiB and
// at levels 8 and 9 up to 16, are reused: once they have grown to what the pieces need, it allocates nothing. It is used by one goroutine at
// a time.
type Encoder struct {
	options  Options
	fast     *fast   // of MinLevel, which has no matcher
	matcher  matcher // of the other levels
	tokens   []token
	splitter splitter
	w        blockWriter
	joined   []byte // a dictionary and what follows it
}

// NewEncoder returns an encoder, or an error where the options are out of range.
func NewEncoder(o Options) (*Encoder, error) {
	o, err := o.resolve()
	if err != nil {
		return nil, err
	}
	e := &Encoder{options: o}
	c := chains{distance: o.Window, effort: efforts[o.Level]}
	switch {
	case o.Level == MinLevel:
		e.fast = newFast(o.Window)
	case c.passes > 0:
		e.matcher = &optimal{chains: c}
	default:
		e.matcher = &c
	}
	return e, nil
}

// Append appends the DEFLATE form of src, which may be empty, to dst and returns it. It refers to nothing before src.
func (e *Encoder) Append(dst, src []byte, end End) []byte {
	return e.append(dst, src, 0, end)
}

// AppendDict is Append where matches may reach back into dict, of which the last Window bytes count: whoever decodes has it before src.
// Where src follows dict in memory, as parts of one slice, they are used as they are; else they are copied together.
func (e *Encoder) AppendDict(dst, dict, src []byte, end End) []byte {
	dict = dict[max(0, len(dict)-e.options.Window):]
	n := len(dict)
	if whole := dict[:min(cap(dict), n+len(src))]; n > 0 && len(src) > 0 && len(whole) == n+len(src) && &whole[n] == &src[0] {
		return e.append(dst, whole, n, end)
	}
	e.joined = append(append(e.joined[:0], dict...), src...)
	return e.append(dst, e.joined, n, end)
}

// AppendZlib appends src as RFC 1950 has it: CMF, FLG, the DEFLATE form of src, and its Adler-32.
func (e *Encoder) AppendZlib(dst, src []byte) []byte {
	dst = appendZlibHeader(dst, e.options)
	dst = e.append(dst, src, 0, Final)
	return binary.BigEndian.AppendUint32(dst, adler32.Checksum(src))
}

// append appends the form of src[from:], where what is before from is a dictionary.
func (e *Encoder) append(dst, src []byte, from int, end End) []byte {
	e.w.bitWriter = bitWriter{out: dst}
	e.encode(src, from, end == Final)
	switch end {
	case Final:
		e.w.align()
	case Sync:
		e.w.sync()
	}
	dst, e.w.out = e.w.out, nil
	return dst
}

// encode writes the blocks of src[from:], the last of which is final where final says so; without it there is none for no bytes.
func (e *Encoder) encode(src []byte, from int, final bool) {
	if from == len(src) {
		if final {
			e.w.blocks(&e.splitter, nil, nil, true)
		}
		return
	}
	if e.fast != nil {
		e.fast.encode(&e.w, src, from, final)
		return
	}
	for {
		e.matcher.reset()
		e.matcher.insert(src, 0, from)
		for known := min(len(src), maxSrc); from < known; {
			to := min(from+partLen, known)
			e.tokens = e.matcher.match(e.tokens[:0], src[:to], from)
			e.w.blocks(&e.splitter, src[from:to], e.tokens, final && to == len(src))
			from = to
		}
		if from == len(src) {
			break
		}
		src = src[from-maxDistance:]
		from = maxDistance
	}
}
