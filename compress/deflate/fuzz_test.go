package deflate

import (
	"bytes"
	"compress/flate"
	"io"
	"testing"

	"github.com/imgtool/imgtool/compress/inflate"
)

// FuzzAppend compresses any bytes after any dictionary, at any level and with any window, ended in both ways, and decodes them again.
func FuzzAppend(f *testing.F) {
	for name, src := range inputs() {
		src = src[:min(len(src), 5000)]
		f.Add(src, uint(len(name)), uint8(len(name)), true)
		f.Add(append(src[:len(src):len(src)], src...), uint(len(src)), uint8(len(name)*3), false)
	}
	encoders := map[Options]*Encoder{}
	f.Fuzz(func(t *testing.T, p []byte, at uint, options uint8, final bool) {
		o := Options{Level: MinLevel + int(options)%MaxLevel, Window: minWindow << (options / MaxLevel % 8)}
		if encoders[o] == nil {
			encoders[o] = newEncoder(t, o)
		}
		e := encoders[o]
		at %= uint(len(p)) + 1
		dict, src := p[:at], p[at:]
		end := Sync
		if final {
			end = Final
		}
		piece := e.AppendDict(nil, dict, src, end)
		got, err := io.ReadAll(flate.NewReaderDict(bytes.NewReader(ended(piece, end)), dict))
		if err != nil || !bytes.Equal(got, src) {
			t.Fatalf("%+v: compress/flate makes %d bytes of %d after %d, %v", o, len(got), len(src), at, err)
		}
		// Without a dictionary, as zlib, by the package next door.
		z := e.AppendZlib(nil, p)
		got = make([]byte, len(p))
		if used, err := new(inflate.Decoder).Decode(got, z, inflate.Zlib); err != nil || used != len(z) || !bytes.Equal(got, p) {
			t.Fatalf("%+v: compress/inflate uses %d bytes of %d, %v", o, used, len(z), err)
		}
		// An encoder that has seen nothing gives the same.
		if again := newEncoder(t, o).AppendDict(nil, bytes.Clone(dict), bytes.Clone(src), end); !bytes.Equal(again, piece) {
			t.Fatalf("%+v: a new encoder gives something else", o)
		}
	})
}
