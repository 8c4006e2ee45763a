// Package inflate decodes DEFLATE (RFC 1951), bare or inside zlib (RFC 1950) or gzip (RFC 1952) framing.
//
// There are two forms. A [Decoder] decodes streams that lie in memory whole into memory of known size: clusters, grains, chunks.
// A [Reader] decodes forward from an io.Reader in bounded memory, member by member, and can do what an index of a foreign file needs:
// tell at any time where it stands to the bit ([Reader.Point]), go on there later ([Reader.Resume]), say which bytes of the window are
// really referred to ([Reader.Trace]), and stop where a compressor flushed ([Reader.StopAtMarks]).
//
// Both run the same loops, so that they accept the same streams, and put the same offset to damage. These are the streams that zlib accepts, but
// for those with more than 64 KiB of FNAME or FCOMMENT, which are refused.
// Memory is what their types hold, and depends on the input only for the Extra, Name and Comment of a [Header], of up to 64 KiB each.
//
// Neither type may be used by two goroutines at once; different values are independent.
package inflate

import (
	"errors"
	"fmt"
)

// Framing says what stands around the DEFLATE data.
type Framing uint8

const (
	Raw  Framing = iota // RFC 1951 alone
	Zlib                // RFC 1950: CMF, FLG, data, ADLER32
	Gzip                // RFC 1952: one member
)

// BlockType says in what a [Point] lies.
type BlockType uint8

const (
	Between BlockType = iota // the next bit is the header of a block, or the data has ended
	Stored                   // RFC 1951 section 3.2.4
	Fixed                    // section 3.2.6
	Dynamic                  // section 3.2.7
)

var (
	// ErrShort: the stream ends before the output is full.
	ErrShort = errors.New("deflate stream is shorter than expected")
	// ErrLong: the stream goes on after the output is full.
	ErrLong = errors.New("deflate stream is longer than expected")
)

// The values of [Error.Part].
const (
	partHeader  = "header"
	partBlock   = "block header"
	partLens    = "code lengths"
	partLit     = "literal/length code"
	partDist    = "distance"
	partStored  = "stored block"
	partTrailer = "trailer"
	partPoint   = "point"
)

// Error is damage in a stream. A stream that only ends too early is io.ErrUnexpectedEOF instead.
type Error struct {
	Part string // the structure: "header", "block header", "stored block", "code lengths", "literal/length code", "distance", "trailer", "point"
	Off  int64  // of the input, in bytes: where the structure that is wrong begins
	Err  error  // what is wrong with it
}

func (e *Error) Error() string {
	return fmt.Sprintf("deflate %s at byte %d: %v", e.Part, e.Off, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// What can be wrong inside DEFLATE data.
var (
	errBlockType    = errors.New("reserved block type 3")
	errStoredLen    = errors.New("LEN and NLEN do not match")
	errHLIT         = errors.New("HLIT promises more than 286 codes")
	errHDIST        = errors.New("HDIST promises more than 30 codes")
	errRepeat       = errors.New("a length is to be repeated before there is one")
	errTooMany      = errors.New("more lengths than HLIT and HDIST promise")
	errNoEnd        = errors.New("end of block has no code")
	errOversub      = errors.New("over-subscribed code")
	errIncomplete   = errors.New("incomplete code")
	errLenSymbol    = errors.New("reserved length symbol")
	errDistSymbol   = errors.New("reserved distance symbol")
	errNoCode       = errors.New("bits that are no code")
	errTooFar       = errors.New("reaches before the start of the output")
	errChecksum     = errors.New("checksum does not match the data")
	errISIZE        = errors.New("ISIZE does not match the data")
	errFraming      = errors.New("inflate: unknown framing")
	errNotBegun     = errors.New("inflate: read before Begin")
	errInsideStream = errors.New("inflate: input looked at inside a stream")
)
