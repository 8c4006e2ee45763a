package inflate

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// wrapped returns a gzip member with this header and raw data that decodes to want.
func wrapped(header string, data []byte, want string) []byte {
	p := append([]byte(header), data...)
	p = binary.LittleEndian.AppendUint32(p, crc32.ChecksumIEEE([]byte(want)))
	return binary.LittleEndian.AppendUint32(p, uint32(len(want)))
}

func TestFramingAllocs(t *testing.T) {
	long := strings.Repeat("x", 60000)
	data := new(maker).fixed(1).literals("abc").end().out
	for _, c := range []struct {
		header string
		most   float64 // allocations
	}{
		{"\x1f\x8b\x08\x00\x01\x02\x03\x04\x00\x03", 0},
		{"\x1f\x8b\x08\x1c\x01\x02\x03\x04\x00\x03\x60\xea" + long + long + "\x00" + long + "\x00", 100},
	} {
		src := wrapped(c.header, data, "abc")
		var d Decoder
		dst := make([]byte, 3)
		if n := testing.AllocsPerRun(10, func() {
			_, err := d.Decode(dst, src, Gzip)
			check(t, err)
		}); n > c.most {
			t.Errorf("Decode with a header of %d bytes: %v allocations", len(c.header), n)
		}
		in := bytes.NewReader(nil)
		z := NewReader(nil)
		if n := testing.AllocsPerRun(10, func() {
			in.Reset(src)
			z.Reset(in)
			h, err := z.Begin(Gzip)
			check(t, err)
			if h.Len != int64(len(c.header)) {
				t.Errorf("header of %d bytes: %d", len(c.header), h.Len)
			}
		}); n > c.most {
			t.Errorf("Begin with a header of %d bytes: %v allocations", len(c.header), n)
		}
	}
}

// TestHeaderInputError: an error of the input stays as it is even if it is one of this package, as with gzip in gzip.
func TestHeaderInputError(t *testing.T) {
	member := wrapped("\x1f\x8b\x08\x1e\x01\x02\x03\x04\x00\x03\x03\x00xyzname\x00comment\x00\x12\x34", nil, "")
	for f, header := range map[Framing][]byte{Gzip: member[:10+5+5+8+1], Zlib: []byte("\x78")} {
		for n := range len(header) + 1 {
			inner := &Error{Part: partTrailer, Off: 1234, Err: errChecksum}
			_, err := NewReader(io.MultiReader(bytes.NewReader(header[:n]), iotest.ErrReader(inner))).Begin(f)
			if err != error(inner) || inner.Off != 1234 {
				t.Errorf("framing %d, after %d bytes: %v", f, n, err)
			}
		}
	}
}

// TestShortHeaders: what is too short for a header, but does not begin as one, is none.
func TestShortHeaders(t *testing.T) {
	for src, want := range map[string]string{
		"x":             "deflate header at byte 0: not a gzip header",
		"\x1fx":         "deflate header at byte 0: not a gzip header",
		"garbage":       "deflate header at byte 0: not a gzip header",
		"\x1f":          io.ErrUnexpectedEOF.Error(),
		"\x1f\x8b":      io.ErrUnexpectedEOF.Error(),
		"\x1f\x8b\x08x": io.ErrUnexpectedEOF.Error(),
	} {
		if o := outcomes(t, []byte(src), Gzip); o.err != want {
			t.Errorf("%q: %v", src, o)
		}
	}
}

func TestUnknownFraming(t *testing.T) {
	data := new(maker).fixed(1).literals("abc").end().out
	for _, f := range []Framing{3, 255} {
		z := NewReader(bytes.NewReader(data))
		if _, err := z.Begin(f); err != errFraming {
			t.Errorf("Begin: %v", err)
		}
		if _, err := z.Next(); err == nil {
			t.Error("Next goes on")
		}
		if _, err := new(Decoder).Decode(make([]byte, 3), data, f); err != errFraming {
			t.Errorf("Decode: %v", err)
		}
	}
}
