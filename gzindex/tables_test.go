package gzindex

import (
	"archive/tar"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzindex/tables"
)

// header returns a member's header with an extra field.
func header(extra []byte) []byte {
	h := []byte("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff")
	return append(binary.LittleEndian.AppendUint16(h, uint16(len(extra))), extra...)
}

// subfield returns data as a subfield of an extra field.
func subfield(id string, data []byte) []byte {
	return append(binary.LittleEndian.AppendUint16([]byte(id), uint16(len(data))), data...)
}

// trailer returns CRC32 and ISIZE.
func trailer(p []byte) []byte {
	t := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(p))
	return binary.LittleEndian.AppendUint32(t, uint32(len(p)))
}

// deflated returns p as DEFLATE data that refer to nothing before; final or ended by a flush.
func deflated(t testing.TB, p []byte, final bool) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, 6)
	check(t, err)
	_, err = w.Write(p)
	check(t, err)
	if final {
		check(t, w.Close())
	} else {
		check(t, w.Flush())
	}
	return b.Bytes()
}

// bgzf returns p as bgzip writes it.
func bgzf(t testing.TB, p []byte) []byte {
	t.Helper()
	var file []byte
	for chunk := range slices.Chunk(append([]byte(nil), p...), 0xff00) {
		file = append(file, bgzfMember(t, chunk)...)
	}
	return append(file, bgzfMember(t, nil)...)
}

func bgzfMember(t testing.TB, p []byte) []byte {
	data := append(deflated(t, p, true), trailer(p)...)
	bsize := binary.LittleEndian.AppendUint16(nil, uint16(18+len(data)-1))
	return append(header(subfield("BC", bsize)), data...)
}

// dictzip returns p as dictzip writes it.
func dictzip(t testing.TB, p []byte) []byte {
	t.Helper()
	const chunkLen = 58315
	le := binary.LittleEndian
	var data []byte
	chunks := slices.Collect(slices.Chunk(p, chunkLen))
	ra := le.AppendUint16(le.AppendUint16(le.AppendUint16(nil, 1), chunkLen), uint16(len(chunks)))
	for _, c := range chunks {
		d := deflated(t, c, false)
		data, ra = append(data, d...), le.AppendUint16(ra, uint16(len(d)))
	}
	file := append(header(subfield("RA", ra)), data...)
	return append(append(file, 3, 0), trailer(p)...)
}

// estargz returns a tar archive as eStargz: members with one file's header or content each, a TOC of them, and a footer.
func estargz(t testing.TB, files [][]byte) (file, image []byte) {
	t.Helper()
	type entry struct {
		Name   string `json:"name"`
		Type   string `json:"type"`
		Offset int64  `json:"offset"`
	}
	var entries []entry
	add := func(p []byte) {
		file, image = append(file, member(t, p, 6)...), append(image, p...)
	}
	for i, content := range files {
		var head bytes.Buffer
		w := tar.NewWriter(&head)
		check(t, w.WriteHeader(&tar.Header{Name: fmt.Sprint("file", i), Size: int64(len(content)), Mode: 0o644}))
		add(head.Bytes())
		entries = append(entries, entry{fmt.Sprint("file", i), "reg", int64(len(file))})
		add(append(bytes.Clone(content), make([]byte, -len(content)&511)...))
	}
	toc, err := json.Marshal(map[string]any{"version": 1, "entries": entries})
	check(t, err)
	at := len(file)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	check(t, w.WriteHeader(&tar.Header{Name: "stargz.index.json", Size: int64(len(toc)), Mode: 0o644}))
	_, err = w.Write(toc)
	check(t, err)
	check(t, w.Close())
	add(b.Bytes())
	footer := header(subfield("SG", fmt.Appendf(nil, "%016xSTARGZ", at)))
	footer = append(append(footer, 1, 0, 0, 0xff, 0xff), make([]byte, 8)...)
	if len(footer) != 51 {
		t.Fatalf("a footer of %d bytes", len(footer))
	}
	return append(file, footer...), image
}

// tableOf returns the table of a file.
func tableOf(t testing.TB, file []byte) *tables.Table {
	t.Helper()
	table, err := tables.Read(ctx, fileOf(t, file), tables.Options{Span: 1 << 10, Places: 1 << 20, Memory: 1 << 20})
	check(t, err)
	return table
}

func TestTables(t *testing.T) {
	want := text(11, 3<<20)
	for _, c := range []struct {
		name   string
		file   []byte
		places int
	}{
		{"BGZF", bgzf(t, want), (len(want) + 0xff00 - 1) / 0xff00},
		{"dictzip", dictzip(t, want), (len(want) + 58314) / 58315},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := tableOf(t, c.file)
			if table == nil || table.Name != c.name || table.Size != int64(len(want)) || len(table.Places) != c.places {
				t.Fatalf("%+v, want %d places", table, c.places)
			}
			d := opened(t, c.file, nil, Options{})
			if d.Index().Table() != c.name {
				t.Fatalf("the device reads by %q", d.Index().Table())
			}
			readAll(t, d, want, 1)
			var saved bytes.Buffer
			n, err := d.Index().WriteTo(&saved)
			check(t, err)
			again, err := ReadIndex(bytes.NewReader(saved.Bytes()), n)
			check(t, err)
			readAll(t, opened(t, c.file, again, Options{}), want, 2)
			got, err := drain(NewScanner(bytes.NewReader(c.file), ScanOptions{Index: true, Span: 64 << 10}), 1<<20)
			check(t, err)
			if !bytes.Equal(got, want) {
				t.Fatal("the stream differs")
			}
		})
	}
}

func TestEStargz(t *testing.T) {
	files := [][]byte{text(1, 900<<10), nil, text(2, 10), text(3, 1<<20), text(4, 300<<10), make([]byte, 500<<10), text(5, 2<<20)}
	file, want := estargz(t, files)
	table := tableOf(t, file)
	if table == nil || table.Name != "eStargz" || len(table.Places) < 4 {
		t.Fatalf("%+v", table)
	}
	// The parts are scanned at once, and the index is the same as that of a scan from the beginning in all that readers see.
	x, err := scanParts(ctx, fileOf(t, file), table.Places, ScanOptions{Index: true}, Options{Workers: 2, Memory: defaultMemory})
	check(t, err)
	if x == nil || x.Points() < 4 {
		t.Fatalf("%v", x)
	}
	plain := index(t, file, ScanOptions{})
	if x.size != plain.size || x.fileSize != plain.fileSize || x.identity != plain.identity {
		t.Fatalf("%d bytes of %d, want %d of %d", x.size, x.fileSize, plain.size, plain.fileSize)
	}
	uncheck(x)
	readAll(t, opened(t, file, x, Options{}), want, 1)
	readAll(t, opened(t, file, nil, Options{}), want, 2)

	// A table that lies is not used.
	table.Places[2].File += 5
	if x, err := scanParts(ctx, fileOf(t, file), table.Places, ScanOptions{Index: true}, Options{Workers: 2, Memory: defaultMemory}); x != nil || err != nil {
		t.Fatalf("%v, %v", x, err)
	}
}

// TestTablesLie makes tables that hang together and do not fit the file.
func TestTablesLie(t *testing.T) {
	alone(t)
	want := text(12, 2<<20)
	le := binary.LittleEndian
	for _, c := range []struct {
		name string
		file func() []byte
	}{
		{"BGZF", func() []byte { // two members change their ISIZE, so that the sum is right
			file := bgzf(t, want)
			n := int(le.Uint16(file[16:])) + 1
			le.PutUint32(file[n-4:], le.Uint32(file[n-4:])-100)
			m := n + int(le.Uint16(file[n+16:])) + 1
			le.PutUint32(file[m-4:], le.Uint32(file[m-4:])+100)
			return file
		}},
		{"dictzip", func() []byte { // a chunk takes some bytes from the next
			file := dictzip(t, want)
			sizes := file[12+4+6:]
			le.PutUint16(sizes[18:], le.Uint16(sizes[18:])+7)
			le.PutUint16(sizes[20:], le.Uint16(sizes[20:])-7)
			return file
		}},
		{"dictzip", func() []byte { // a chunk begins at the flush of the one before
			file := dictzip(t, want)
			sizes := file[12+4+6:]
			le.PutUint16(sizes[18:], le.Uint16(sizes[18:])-5)
			le.PutUint16(sizes[20:], le.Uint16(sizes[20:])+5)
			return file
		}},
		{"dictzip", func() []byte { // the image is longer
			file := dictzip(t, want)
			le.PutUint32(file[len(file)-4:], uint32(len(want))+1)
			return file
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := c.file()
			if table := tableOf(t, file); table == nil || table.Name != c.name {
				t.Fatalf("%+v", table)
			}
			d := opened(t, file, nil, Options{})
			failed := 0
			p := make([]byte, 1000)
			for off := int64(0); off+1000 <= d.Size(); off += 1000 {
				err := d.Read(ctx, p, off)
				var damage *block.CorruptError
				switch {
				case errors.As(err, &damage) && bytes.Contains([]byte(err.Error()), []byte(c.name+" table")):
					failed++
				case err != nil:
					t.Fatal(err)
				case !bytes.Equal(p, want[off:off+1000]):
					t.Fatalf("wrong bytes at %d", off)
				}
			}
			end := make([]byte, 10)
			if d.Read(ctx, end, d.Size()-10) != nil {
				failed++
			}
			if failed == 0 || failed > 1500 {
				t.Fatalf("%d reads failed", failed)
			}
		})
	}
}

// TestNoTable reads files that nearly have a table: they are scanned.
func TestNoTable(t *testing.T) {
	want := text(13, 300<<10)
	b, d := bgzf(t, want), dictzip(t, want)
	longer := bytes.Clone(d)
	binary.LittleEndian.PutUint16(longer[12+4+4:], 1000)
	e, tarred := estargz(t, [][]byte{want})
	toc := bytes.Clone(e)
	copy(toc[len(toc)-51+16:], "0000000000000001")
	for _, c := range []struct {
		name string
		file []byte
		want []byte
	}{
		{"BGZF and a plain member", append(bytes.Clone(b), member(t, want, 6)...), slices.Concat(want, want)},
		{"padded BGZF", append(bytes.Clone(b), make([]byte, 5000)...), want},
		{"dictzip and a plain member", append(bytes.Clone(d), member(t, want, 6)...), slices.Concat(want, want)},
		{"dictzip that counts wrong", longer, want},
		{"eStargz without TOC", toc, tarred},
	} {
		t.Run(c.name, func(t *testing.T) {
			if table := tableOf(t, c.file); table != nil && len(table.Places) > 1 {
				t.Fatalf("%+v", table)
			}
			readAll(t, opened(t, c.file, nil, Options{}), c.want, 3)
		})
	}
	cut := b[:len(b)/2]
	if _, err := Open(ctx, fileOf(t, cut), Options{}); !errors.As(err, new(*block.CorruptError)) {
		t.Fatalf("half a BGZF file: %v", err)
	}
}

// TestTablesDamage gives files whose table is right and whose content is not what the checksums say: who reads everything learns it.
func TestTablesDamage(t *testing.T) {
	noise := make([]byte, 300000)
	for i := range noise {
		noise[i] = byte(i * i >> 7 * 37)
	}
	dz := dictzip(t, noise)
	dz[len(dz)-8] ^= 1 // CRC32
	if _, err := Open(ctx, fileOf(t, dz), Options{NoScan: true}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("dictzip to be read from front to back: %v", err)
	}

	bz := bgzf(t, noise[:1000])
	clear(bz[len(bz)-28-4 : len(bz)-28]) // ISIZE of the last member before the one that ends the file
	if _, err := Open(ctx, fileOf(t, bz), Options{}); !errors.As(err, new(*block.CorruptError)) {
		t.Errorf("BGZF that says it is empty: %v", err)
	}
}
