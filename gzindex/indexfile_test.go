package gzindex

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// save returns the index as a file.
func save(t testing.TB, x *Index) []byte {
	t.Helper()
	var b bytes.Buffer
	_, err := x.WriteTo(&b)
	check(t, err)
	return b.Bytes()
}

// sealed returns an index file with its checksums put right, so that what else is wrong is found.
func sealed(p []byte) []byte {
	le := binary.LittleEndian
	if len(p) < headerLen {
		return p
	}
	tables := int64(le.Uint32(p[atPoints:]))*pointLen + int64(le.Uint32(p[atZeros:]))*zerosLen
	if tables <= int64(len(p)-headerLen) {
		states := p[headerLen+tables:]
		for i := range int(le.Uint32(p[atPoints:])) {
			pt := p[headerLen+i*pointLen:][:pointLen]
			n := min(int(le.Uint16(pt[24:])), len(states))
			le.PutUint32(pt[20:], crc32.ChecksumIEEE(states[:n]))
			states = states[n:]
		}
		le.PutUint32(p[atTableCRC:], crc32.ChecksumIEEE(p[headerLen:headerLen+tables]))
	}
	le.PutUint32(p[atCRC:], crc32.ChecksumIEEE(p[:atCRC]))
	return p
}

// TestIndexFileCrafted changes one field each.
func TestIndexFileCrafted(t *testing.T) {
	want := append(text(41, 1<<20), make([]byte, 300<<10)...)
	good := save(t, index(t, member(t, want, 6), ScanOptions{Span: minSpan}))
	le := binary.LittleEndian
	point := func(i int) int { return headerLen + i*pointLen }
	zeros := headerLen + int(le.Uint32(good[atPoints:]))*pointLen
	for _, c := range []struct {
		name   string
		change func(p []byte) []byte
		says   string
	}{
		{"magic", func(p []byte) []byte { p[1] = 'x'; return p }, block.ErrNotFormat.Error()},
		{"empty", func(p []byte) []byte { return nil }, block.ErrNotFormat.Error()},
		{"version", func(p []byte) []byte { p[atVersion]++; return p }, "version 2"},
		{"no points", func(p []byte) []byte { le.PutUint32(p[atPoints:], 0); return p }, "0 points"},
		{"many points", func(p []byte) []byte { le.PutUint32(p[atPoints:], 1<<31); return p }, "2147483648 points"},
		{"many runs", func(p []byte) []byte { le.PutUint32(p[atZeros:], 1<<31); return p }, "2147483648 runs"},
		{"one more point", func(p []byte) []byte { p[atPoints]++; return p }, "do not make"},
		{"huge image", func(p []byte) []byte { le.PutUint64(p[atImage:], 1<<63); return p }, "an image of"},
		{"huge file", func(p []byte) []byte { le.PutUint64(p[atFile:], 1<<63); return p }, "in a file of"},
		{"huge states", func(p []byte) []byte { le.PutUint64(p[atStates:], 1<<63); return p }, "do not make"},
		{"cut", func(p []byte) []byte { return p[:len(p)-1] }, "do not make"},
		{"longer", func(p []byte) []byte { return append(p, 0) }, "do not make"},
		{"late start", func(p []byte) []byte { p[point(0)] = 1; return p }, "the first one is not the beginning"},
		{"points in no order", func(p []byte) []byte { le.PutUint64(p[point(3):], 5); return p }, "the one before"},
		{"bits in no order", func(p []byte) []byte { le.PutUint64(p[point(3)+8:], 5); return p }, "the one before"},
		{"huge place", func(p []byte) []byte { le.PutUint64(p[point(3):], 1<<63-1); return p }, "the one before"},
		{"behind the end", func(p []byte) []byte { le.PutUint64(p[atImage:], 100); return p }, "end of the file"},
		{"a span that is too long", func(p []byte) []byte {
			le.PutUint64(p[point(1)+8:], 8*10)
			return p
		}, "cannot make"},
		{"kind", func(p []byte) []byte { p[point(2)+33] = flagSum | byte(kinds); return p }, "not known"},
		{"member in a byte", func(p []byte) []byte {
			p[point(2)+33], p[point(2)+8] = flagSum, p[point(2)+8]|1
			return p
		}, "not the beginning of a byte"},
		{"kind of a block", func(p []byte) []byte { p[point(2)+33] = flagSum | byte(inFixed); return p }, "do not fit its kind"},
		{"no sum", func(p []byte) []byte { p[point(2)+33] &^= flagSum; return p }, "without CRC-32"},
		{"window", func(p []byte) []byte { le.PutUint16(p[point(2)+26:], windowLen+1); return p }, "too long"},
		{"lengths", func(p []byte) []byte { le.PutUint16(p[point(2)+30:], 400); return p }, "too long"},
		{"state", func(p []byte) []byte { le.PutUint16(p[point(2)+24:], 0); return p }, "of state"},
		{"states", func(p []byte) []byte { le.PutUint16(p[point(2)+24:], 0xffff); return p }, "state"},
		{"state that is too short for its code lengths", func(p []byte) []byte { le.PutUint16(p[point(2)+34:], 8); return p }, "of state"},
		{"state that is too long", func(p []byte) []byte { le.PutUint16(p[point(2)+34:], 0xffff); return p }, "of state"},
		{"run", func(p []byte) []byte { le.PutUint64(p[zeros+8:], 1<<40); return p }, "corrupt run of zeros"},
		{"empty run", func(p []byte) []byte { le.PutUint64(p[zeros+8:], 0); return p }, "corrupt run of zeros"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := sealed(c.change(bytes.Clone(good)))
			x, err := ReadIndex(bytes.NewReader(p), int64(len(p)))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v, %v; want %q", x, err, c.says)
			}
		})
	}
	if _, err := ReadIndex(bytes.NewReader(sealed(bytes.Clone(good))), int64(len(good))); err != nil {
		t.Fatal(err)
	}
}

// TestIndexFileDamage flips every byte once: it is noticed when the index is read, or when a state is used.
func TestIndexFileDamage(t *testing.T) {
	alone(t)
	want := text(42, 300<<10)
	file := member(t, want, 6)
	good := save(t, index(t, file, ScanOptions{Span: minSpan}))
	for i := range good {
		p := bytes.Clone(good)
		p[i] ^= 0x10
		x, err := ReadIndex(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			continue
		}
		if i < headerLen+x.Points()*pointLen+len(x.zeros)*zerosLen {
			t.Fatalf("byte %d was changed and nobody noticed", i)
		}
		if i%50 != 0 {
			continue
		}
		d := opened(t, file, x, Options{Workers: 1})
		got := make([]byte, len(want))
		if err := d.Read(ctx, got, 0); err == nil || !strings.Contains(err.Error(), "gzip index: corrupt state") {
			t.Fatalf("byte %d was changed: %v", i, err)
		}
	}
}

// TestIndexForges: what an index with right checksums says wrongly of the content is noticed by who reads that.
func TestIndexForges(t *testing.T) {
	alone(t)
	want := append(text(43, 1<<20), make([]byte, 200<<10)...)
	file := member(t, want, 6)
	for _, c := range []struct {
		name   string
		change func(x *Index)
	}{
		{"a CRC-32", func(x *Index) { x.points[3].crc++ }},
		{"a place in the image", func(x *Index) { x.points[3].image++ }},
		{"a place in the file", func(x *Index) { x.points[3].bit++ }},
		{"a window", func(x *Index) { x.points[3].state = x.points[4].state }},
		{"zeros", func(x *Index) { x.zeros = []run{{x.points[3].image + 10, 10}} }},
		{"the size", func(x *Index) { x.size, x.zeros = x.size-1, nil }},
		{"a bit of BFINAL", func(x *Index) {
			for i := range x.points {
				x.points[i].final = true
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := index(t, file, ScanOptions{Span: minSpan})
			c.change(x)
			p := save(t, x)
			y, err := ReadIndex(bytes.NewReader(p), int64(len(p)))
			if err != nil {
				t.Fatal(err)
			}
			if failed := readPages(t, opened(t, file, y, Options{}), want); failed == 0 {
				t.Fatal("nobody noticed")
			}
		})
	}
}

// readPages reads all of d, and returns how many pages could not be read. What could be must be right.
func readPages(t testing.TB, d *Device, want []byte) (failed int) {
	t.Helper()
	for off := int64(0); off < d.Size(); {
		p := make([]byte, min(4096, d.Size()-off))
		err := d.Read(ctx, p, off)
		if err != nil {
			if !errors.As(err, new(*block.CorruptError)) {
				t.Fatal(err)
			}
			failed++
		} else if off+int64(len(p)) > int64(len(want)) || !bytes.Equal(p, want[off:][:len(p)]) {
			t.Fatalf("wrong bytes at %d", off)
		}
		off += int64(len(p))
	}
	return failed
}

// TestHiddenContent: zeros that an index makes up are not shown before they were checked, unless the caller believes it.
func TestHiddenContent(t *testing.T) {
	want := text(44, 1<<20)
	file := member(t, want, 6)
	x := index(t, file, ScanOptions{Span: minSpan})
	x.zeros = []run{{0, x.size}}
	p := save(t, x)
	for _, trust := range []bool{false, true} {
		y, err := ReadIndex(bytes.NewReader(p), int64(len(p)))
		check(t, err)
		d := opened(t, file, y, Options{TrustIndex: trust})
		es, err := d.Extents(ctx, block.Map{}, 0, d.Size(), nil)
		check(t, err)
		if shown := es[0].Flags&block.ExtZero != 0; shown != trust {
			t.Fatalf("trust %v: %+v", trust, es)
		}
	}
}

// TestOtherFile: an index knows its file.
func TestOtherFile(t *testing.T) {
	want := text(45, 1<<20)
	file := member(t, want, 6)
	x := index(t, file, ScanOptions{})
	longer := append(bytes.Clone(file), 0)
	changed := bytes.Clone(file)
	changed[len(changed)-100] ^= 1
	for _, other := range [][]byte{longer, changed, nil} {
		if _, err := Open(ctx, fileOf(t, other), Options{Index: x}); err == nil || !strings.Contains(err.Error(), "another file") {
			t.Fatalf("%d bytes: %v", len(other), err)
		}
	}
	unfinished := NewScanner(bytes.NewReader(file), ScanOptions{Index: true}).Index()
	if _, err := Open(ctx, fileOf(t, file), Options{Index: unfinished}); err == nil {
		t.Fatal("an index that is not complete was taken")
	}
	if _, err := unfinished.WriteTo(io.Discard); err == nil {
		t.Fatal("an index that is not complete was written")
	}
}
