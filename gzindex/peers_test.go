package gzindex

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/segment"
)

// TestPeersFiles reads what the programs write that people compress images with: front to back, and from every point.
func TestPeersFiles(t *testing.T) {
	alone(t)
	want := text(6, 5<<20)
	raw := filepath.Join(t.TempDir(), "disk.raw")
	check(t, os.WriteFile(raw, want, 0o666))
	for _, c := range [][]string{
		{"gzip", "-1", "-c", raw}, {"gzip", "-6", "-c", raw}, {"gzip", "-9", "-c", raw}, {"pigz", "-p3", "-c", raw}, {"pigz", "-p3", "-i", "-c", raw},
		{"igzip", "-0", "-c", raw}, {"igzip", "-1", "-c", raw}, {"bgzip", "-c", raw}, {"busybox", "gzip", "-c", raw}, {"7zz", "a", "-tgzip", "-so", "x.gz", raw},
	} {
		t.Run(c[0]+c[1], func(t *testing.T) {
			everyPoint(t, peers.Run(t, c[0], c[1:]...), want)
		})
	}
}

// TestOurFiles does the same with what imgtool writes, and with members of all kinds one after another.
func TestOurFiles(t *testing.T) {
	alone(t)
	want := text(7, 5<<20)
	src := fileOf(t, want)
	l, err := gzipmod.NewLayout(ctx, src, gzipmod.Options{Keep: []gzipmod.Range{{Off: 1 << 20, Len: 300 << 10}}})
	check(t, err)
	plan, err := l.Plan(src, gzipmod.Options{})
	check(t, err)
	var file bytes.Buffer
	_, err = segment.Write(ctx, segment.ToWriter(&file), plan, segment.Options{})
	check(t, err)
	everyPoint(t, file.Bytes(), want)

	var members []byte
	for i, at := 0, 0; at < len(want); i++ {
		end := min(len(want), at+i*i*10000)
		members = append(members, member(t, want[at:end], i%10)...)
		members = append(members, make([]byte, i%3)...)
		at = end
	}
	everyPoint(t, members, want)
}

// everyPoint compares the content of file with want: as a stream, with and without an index, and as a device from each point of the index
// on, first in a random order and then in a row, by the index as it was scanned and as it was saved.
func everyPoint(t *testing.T, file, want []byte) {
	t.Helper()
	for _, o := range []ScanOptions{{}, {Index: true}} {
		got, err := drain(NewScanner(bytes.NewReader(file), o), 300<<10)
		check(t, err)
		if !bytes.Equal(got, want) {
			t.Fatal("the stream differs")
		}
	}
	scanned := index(t, file, ScanOptions{Span: 64 << 10})
	var saved bytes.Buffer
	n, err := scanned.WriteTo(&saved)
	check(t, err)
	read, err := ReadIndex(bytes.NewReader(saved.Bytes()), n)
	check(t, err)
	if scanned.Points() < len(want)/(64<<10)/5 {
		t.Fatalf("%d points", scanned.Points())
	}
	for _, x := range []*Index{scanned, read} {
		d := opened(t, file, x, Options{Memory: 8 << 20})
		for k := range x.points {
			i := (k*7919 + 13) % len(x.points)
			from, to := x.points[i].image, x.endOf(i)
			p := make([]byte, min(to-from, 5000))
			for _, off := range []int64{to - int64(len(p)), from} {
				check(t, d.Read(ctx, p, off))
				if !bytes.Equal(p, want[off:][:len(p)]) {
					t.Fatalf("%d bytes at %d differ, from point %d: %+v", len(p), off, i, x.points[i])
				}
			}
		}
		readAll(t, d, want, 4)
		for i := range x.points {
			if !x.points[i].checked {
				t.Fatalf("span %d was read and not checked", i)
			}
		}
	}
}

// TestIndexIsSmall measures the index of a file whose windows matter: a point costs less than a tenth of its window.
func TestIndexIsSmall(t *testing.T) {
	alone(t)
	want := text(9, 8<<20)
	x := index(t, member(t, want, 6), ScanOptions{Span: 256 << 10})
	var saved bytes.Buffer
	_, err := x.WriteTo(&saved)
	check(t, err)
	if each := saved.Len() / x.Points(); each > 12<<10 || x.Points() < 12 {
		t.Fatalf("%d points of %d bytes each", x.Points(), each)
	}
}

// TestFlushedPieces: what pigz -i and full flushes leave needs no window.
func TestFlushedPieces(t *testing.T) {
	alone(t)
	want := text(10, 16<<20)
	raw := filepath.Join(t.TempDir(), "disk.raw")
	check(t, os.WriteFile(raw, want, 0o666))
	x := index(t, peers.Run(t, "pigz", "-i", "-b", "128", "-p2", "-c", raw), ScanOptions{Span: 1 << 20})
	for i, p := range x.points {
		if i > 0 && (p.kind != atBlock || p.state.size() != 0) {
			t.Errorf("point %d at byte %d needs a state of %d bytes", i, p.image, p.state.size())
		}
	}
	if len(x.points) < 8 {
		t.Fatalf("%d points", len(x.points))
	}
}

// within fails the test where it has taken too long: a bound that is generous by far.
func within(t *testing.T, most time.Duration, what string, f func()) {
	t.Helper()
	begin := time.Now()
	f()
	if took := time.Since(begin); took > most {
		t.Errorf("%s took %v", what, took)
	}
}
