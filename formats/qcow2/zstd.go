package qcow2

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
)

// zstdSlack is how much room in bytes the decoder wants besides what it decodes: a block of the longest kind, and 16 bytes behind it that it
// may overwrite. Without it each copy is checked against the end, which costs a fifth of the speed.
const zstdSlack = 128<<10 + 16

// zstdDecoder decodes clusters, by way of a buffer that has the slack.
type zstdDecoder struct {
	*zstd.Decoder
	buf []byte
}

func newZstd(clusterSize int64) (*zstdDecoder, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true))
	return &zstdDecoder{z, make([]byte, 0, clusterSize+zstdSlack)}, err
}

var (
	errShort = errors.New("the data ends before the cluster is full")
	errLong  = errors.New("the data goes on when the cluster is full")
)

// decode decodes whole frames from the start of src until dst is full. What follows them is of other clusters.
func (z *zstdDecoder) decode(dst, src []byte) error {
	for len(dst) > 0 {
		n, err := frameLen(src)
		if err != nil {
			return err
		}
		out, err := z.DecodeAll(src[:n], z.buf)
		switch {
		case errors.Is(err, zstd.ErrDecoderSizeExceeded), err == nil && len(out) > len(dst):
			return errLong
		case err != nil:
			return err
		}
		dst, src = dst[copy(dst, out):], src[n:]
	}
	return nil
}

const (
	zstdMagic     = 0xfd2fb528
	skippable     = 0x184d2a50 // to ...5f
	skippableMask = 0xfffffff0
)

// frameLen returns the length of the zstd frame at the start of p (RFC 8878, 3.1).
func frameLen(p []byte) (int, error) {
	if len(p) < 8 {
		return 0, errShort
	}
	le := binary.LittleEndian
	magic := le.Uint32(p)
	if magic&skippableMask == skippable {
		n := int64(le.Uint32(p[4:])) + 8
		if n > int64(len(p)) {
			return 0, io.ErrUnexpectedEOF
		}
		return int(n), nil
	}
	if magic != zstdMagic {
		return 0, zstd.ErrMagicMismatch
	}
	d := p[4] // the frame header descriptor
	single, checksum := d>>5&1, int(d>>2&1)
	n := 5 + int(1-single) + [4]int{0, 1, 2, 4}[d&3]
	if size := d >> 6; size > 0 {
		n += 1 << size
	} else {
		n += int(single)
	}
	for {
		if n+3 > len(p) {
			return 0, io.ErrUnexpectedEOF
		}
		header := uint32(p[n]) | uint32(p[n+1])<<8 | uint32(p[n+2])<<16
		n += 3
		if typ := header >> 1 & 3; typ == 1 { // one byte, repeated
			n++
		} else {
			n += int(header >> 3)
		}
		if header&1 != 0 {
			break
		}
	}
	if n += 4 * checksum; n > len(p) {
		return 0, io.ErrUnexpectedEOF
	}
	return n, nil
}
