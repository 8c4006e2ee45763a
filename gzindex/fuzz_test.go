package gzindex

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// FuzzScan compares the Scanner with compress/gzip, and with itself when it makes an index; then it reads from every point.
func FuzzScan(f *testing.F) {
	p := text(51, 5000)
	f.Add(member(f, p, 6))
	f.Add(append(member(f, p, 0), member(f, p[:100], 1)...))
	f.Add(append(member(f, nil, 6), 0, 0, 0))
	f.Add(member(f, p, 1)[:3000])
	f.Add(member(f, p[:200], 6)[:150])
	f.Add(bgzf(f, p))
	f.Add(dictzip(f, p))
	f.Add([]byte("\x1f\x8b\x08\x1f\x00\x00\x00\x00\x00\xff\x01\x00\x00a\x00b\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, file []byte) {
		got, err := drainAtMost(NewScanner(bytes.NewReader(file), ScanOptions{}), 1<<22)
		s := NewScanner(bytes.NewReader(file), ScanOptions{Index: true, Span: minSpan, Limit: minLimit})
		again, indexErr := drainAtMost(s, 1<<22)
		if !bytes.Equal(got, again) || (err == nil) != (indexErr == nil) {
			t.Fatalf("%d bytes and %v, with an index %d and %v", len(got), err, len(again), indexErr)
		}
		if err == errTooMuch {
			return
		}
		want, wantErr := plain(file)
		// compress/gzip takes no padding, and checks less of the header than RFC 1952 asks for.
		if err == nil && !bytes.Equal(got, want) || err != nil && wantErr == nil && !errors.As(err, new(*block.CorruptError)) && !errors.Is(err, block.ErrNotFormat) {
			t.Fatalf("%d bytes and %v, compress/gzip has %d and %v", len(got), err, len(want), wantErr)
		}
		if err != nil {
			return
		}
		uncheck(s.Index())
		d, err := Open(ctx, fileOf(t, file), Options{Index: s.Index(), Workers: 1})
		check(t, err)
		defer d.Close()
		if failed := readPages(t, d, got); failed > 0 || d.Size() != int64(len(got)) {
			t.Fatalf("%d bytes, %d pages failed", d.Size(), failed)
		}
	})
}

var errTooMuch = errors.New("too much")

// drainAtMost is drain with a limit.
func drainAtMost(s *Scanner, most int) ([]byte, error) {
	var all []byte
	buf := make([]byte, windowLen+64<<10+Slop)
	for at := 0; len(all) < most; {
		n, err := s.Fill(buf, at)
		all = append(all, buf[at:at+n]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		if at += n; len(buf)-at <= Slop {
			at = copy(buf, buf[at-windowLen:at])
		}
	}
	return all, errTooMuch
}

// plain returns what compress/gzip makes of a file, up to damage.
func plain(file []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// FuzzReadIndex opens a small file with any index, of which the checksums are put right: what is read is right, or fails.
func FuzzReadIndex(f *testing.F) {
	want := append(text(52, 200<<10), make([]byte, 100<<10)...)
	file := member(f, want, 6)
	good := save(f, index(f, file, ScanOptions{Span: minSpan}))
	f.Add(good)
	f.Add(good[:headerLen])
	for at := atPoints; at < len(good); at += 37 {
		p := bytes.Clone(good)
		p[at] ^= 1 << (at % 8)
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		p = sealed(bytes.Clone(p))
		x, err := ReadIndex(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			return
		}
		x.fileSize, x.identity = int64(len(file)), index(t, file, ScanOptions{}).identity
		d, err := Open(ctx, fileOf(t, file), Options{Index: x, Workers: 1, Memory: minMemory})
		check(t, err)
		defer d.Close()
		for off := int64(0); off < d.Size(); off += max(4096, d.Size()/100) {
			p := make([]byte, min(1000, d.Size()-off))
			if d.Read(ctx, p, off) == nil && (off+int64(len(p)) > int64(len(want)) || !bytes.Equal(p, want[off:][:len(p)])) {
				t.Fatalf("wrong bytes at %d", off)
			}
		}
		es, err := d.Extents(ctx, block.Map{}, 0, d.Size(), nil)
		check(t, err)
		for _, e := range es {
			if e.Flags&block.ExtZero != 0 && (e.End() > int64(len(want)) || !block.IsZero(want[e.Off:e.End()])) {
				t.Fatalf("%+v is not zero", e)
			}
		}
	})
}

// FuzzTables opens files with tables of others: what is read is what a plain reader gets, or fails.
func FuzzTables(f *testing.F) {
	p := text(53, 100<<10)
	f.Add(bgzf(f, p))
	f.Add(dictzip(f, p))
	e, _ := estargz(f, [][]byte{p[:20<<10], p[20<<10:]})
	f.Add(e)
	f.Fuzz(func(t *testing.T, file []byte) {
		if got, err := drainAtMost(NewScanner(bytes.NewReader(file), ScanOptions{}), 1<<22); err == errTooMuch {
			return
		} else {
			d, openErr := Open(ctx, fileOf(t, file), Options{Workers: 2, Memory: minMemory})
			if openErr != nil {
				if err == nil {
					t.Fatalf("a good file cannot be opened: %v", openErr)
				}
				return
			}
			defer d.Close()
			if d.Size() > 1<<24 {
				return
			}
			// dictzip has no checksums of its pieces: a table that lies well shows other pieces of the file.
			if d.Index().Table() == "dictzip" {
				_ = d.Read(ctx, make([]byte, d.Size()), 0)
				return
			}
			readPages(t, d, got)
		}
	})
}
