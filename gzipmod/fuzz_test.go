package gzipmod

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzipmod/mark"
	"github.com/imgtool/imgtool/segment"
)

// resum puts the CRC of the index right, so that what is changed behind it is looked at.
func resum(p []byte) {
	if len(p) < indexOff+fixedLen || string(p[subfieldOff:subfieldOff+2]) != subfieldID {
		return
	}
	n := int(binary.LittleEndian.Uint16(p[subfieldOff+2:]))
	if n < fixedLen || len(p) < indexOff+n {
		return
	}
	index := p[indexOff : indexOff+n]
	clear(index[atCRC : atCRC+4])
	binary.LittleEndian.PutUint32(index[atCRC:], crc32.ChecksumIEEE(index))
}

// seeds are small files of every kind.
func seeds(t testing.TB) [][]byte {
	p := append(image(30, 3000), make([]byte, 140000)...) // small, so that the fuzzer is quick
	p = append(p, image(31, 2000)...)
	o := Options{Keep: []Range{span(4096, 1), span(143000, 1)}}
	src := device(t, p)
	l, err := NewLayout(ctx, src, o)
	check(t, err)
	plan, err := l.Plan(src, o)
	check(t, err)
	var pipe bytes.Buffer
	_, err = segment.Write(ctx, segment.ToWriter(&pipe), plan, segment.Options{})
	check(t, err)
	return [][]byte{content(t, mod(t, src, o, 1)), pipe.Bytes(), content(t, mod(t, device(t, nil), Options{}, 1)), content(t, mod(t, device(t, p[:1000]), Options{}, 1))}
}

// use does with a file whatever can be done, within bounds.
func use(t testing.TB, p []byte) {
	file := block.NewMemory(int64(len(p)))
	check(t, file.Write(ctx, p, 0, 0))
	mark := &memoryMark{}
	if err := Rebuild(ctx, file, mark, nil); err == nil && mark.p != nil {
		t.Fatal("Rebuild left its mark")
	}
	d, err := Open(ctx, block.NoClose(file), OpenOptions{Write: true, Mark: mark, Cache: 4 << 20})
	if err != nil {
		return
	}
	buf := make([]byte, 1<<16)
	ext, err := d.Extents(ctx, block.Map{}, 0, d.Size(), nil)
	check(t, err)
	for _, e := range ext[:min(len(ext), 20)] {
		q := buf[:min(e.Len, int64(len(buf)))]
		if err := d.Read(ctx, q, e.Off); err != nil && !errors.As(err, new(*block.CorruptError)) {
			t.Fatalf("reading %+v: %v", e, err)
		}
		if e.Flags&block.ExtReadOnly == 0 {
			check(t, d.Write(ctx, q, e.Off, 0))
		}
	}
	check(t, d.Close())
	if _, _, err := Verify(ctx, file, VerifyOptions{Workers: 1}); err != nil {
		t.Fatalf("what opens cannot be verified: %v", err)
	}
}

func FuzzIndex(f *testing.F) {
	for _, p := range seeds(f) {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 1<<20 {
			return
		}
		use(t, p)
		p = bytes.Clone(p)
		resum(p)
		use(t, p)
	})
}

func FuzzJournal(f *testing.F) {
	file := seeds(f)[0]
	n := indexOff + int(binary.LittleEndian.Uint16(file[subfieldOff+2:]))
	f.Add(mark.AppendBatch(mark.AppendBase(nil, int64(len(file)), file[:n]), []mark.Record{{Region: 1, CRC: 5}, {Region: 1, CRC: 6}}))
	f.Add([]byte("IMGMARK1"))
	f.Fuzz(func(t *testing.T, p []byte) {
		d := block.NewMemory(int64(len(file)))
		check(t, d.Write(ctx, file, 0, 0))
		announced := append(mark.AppendBase(nil, int64(len(file)), file[:n]), p...)
		announced = binary.LittleEndian.AppendUint32(announced, crc32.ChecksumIEEE(p))
		for _, q := range [][]byte{p, announced} {
			m := &memoryMark{p: append([]byte{}, q...)}
			if done, err := Repair(ctx, d, m); err == nil && (m.p != nil || !done.Marked) {
				t.Fatalf("repaired, %+v, and the mark is still there", done)
			}
			got := content(t, d) // a mark that lies makes checksums that lie, but touches nothing else
			if !bytes.Equal(got[:indexOff], file[:indexOff]) || !bytes.Equal(got[n:len(got)-8], file[n:len(file)-8]) || len(got) != len(file) {
				t.Fatal("a mark destroyed the file")
			}
		}
	})
}

// TestCraftedIndex gives an index that is wrong in one way each, and demands an error that says so.
func TestCraftedIndex(t *testing.T) {
	good := seeds(t)[0]
	le := binary.LittleEndian
	regions := indexOff + fixedLen
	chunks := regions + regionLen*int(le.Uint32(good[indexOff+atRegions:]))
	for name, change := range map[string]func(p []byte){
		"region outside the image": func(p []byte) { p[regions+5]++ },
		"unknown kind":             func(p []byte) { p[regions+7] = 9 },
		"region of no length":      func(p []byte) { clear(p[regions : regions+7]) },
		"overlapping file offsets": func(p []byte) { p[regions+regionLen+8] -= 3 },
		"huge file offset":         func(p []byte) { p[regions+15] = 0xff },
		"huge chunk":               func(p []byte) { le.PutUint32(p[chunks:], 1<<31) },
		"chunk of no length":       func(p []byte) { le.PutUint32(p[chunks:], 0) },
		"image size":               func(p []byte) { p[indexOff+atSize+3]++ },
		"huge image size":          func(p []byte) { p[indexOff+atSize+7] = 0xff },
		"file size":                func(p []byte) { p[indexOff+atFileSize]++ },
		"huge number of regions":   func(p []byte) { le.PutUint32(p[indexOff+atRegions:], 1<<31) },
		"huge number of chunks":    func(p []byte) { le.PutUint32(p[indexOff+atChunks:], 1<<32-1) },
		"chunk size":               func(p []byte) { le.PutUint32(p[indexOff+atChunkSize:], 0) },
		"version":                  func(p []byte) { p[indexOff+atVersion] = 77 },
		"state":                    func(p []byte) { p[indexOff+atState] = 2 },
		"stored unit":              func(p []byte) { p[indexOff+atStoredUnit] = 1 },
		"kept and data exchanged":  func(p []byte) { p[regions+7], p[regions+regionLen+7] = byte(Kept), byte(Data) },
		"XLEN":                     func(p []byte) { p[headerFixed]++ },
		"trailer CRC32":            func(p []byte) { p[len(p)-8]++ },
		"trailer ISIZE":            func(p []byte) { p[len(p)-1]++ },
		"final block":              func(p []byte) { p[len(p)-13] = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			p := bytes.Clone(good)
			change(p)
			resum(p)
			_, err := Open(ctx, device(t, p), OpenOptions{})
			var c *block.CorruptError
			if !errors.As(err, &c) || c.Off < 0 || c.Off >= int64(len(p)) {
				t.Fatalf("Open: %v", err)
			}
			use(t, p)
		})
	}
	p := bytes.Clone(good)
	p[indexOff+atSize]++
	if _, err := Open(ctx, device(t, p), OpenOptions{}); !errors.As(err, new(*block.CorruptError)) {
		t.Fatalf("an index with a wrong CRC: %v", err)
	}
}

// TestVerifyFindsEveryDamage flips bits all over a file: Verify or Open must notice each.
func TestVerifyFindsEveryDamage(t *testing.T) {
	good := seeds(t)[0]
	step := 1
	if testing.Short() {
		step = 37
	}
	for i := 0; i < len(good); i += step + i/400 {
		// MTIME, XFL and OS are not content, and nothing can be checked about them.
		if i >= 4 && i < headerFixed {
			continue
		}
		p := bytes.Clone(good)
		p[i] ^= 1 << (i % 8)
		file := device(t, p)
		_, problems, err := Verify(ctx, file, VerifyOptions{Workers: 1})
		if err == nil && len(problems) == 0 {
			t.Fatalf("bit %d of byte %d flipped and not found", i%8, i)
		}
	}
	for n := len(good) - 1; n > 0; n -= 1 + n/20 {
		if _, problems, err := Verify(ctx, device(t, good[:n]), VerifyOptions{}); err == nil && len(problems) == 0 {
			t.Fatalf("truncated to %d bytes and not found", n)
		}
	}
	if _, problems, _ := Verify(ctx, device(t, append(bytes.Clone(good), 0)), VerifyOptions{}); len(problems) != 1 {
		t.Fatalf("a byte after the trailer: %v", problems)
	}
}
