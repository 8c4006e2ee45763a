package gz

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/segment"
)

var ctx = context.Background()

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// text returns n bytes that compress, with zeros in between.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 5))
	p := make([]byte, n)
	for off := 0; off < n; {
		run := min(n-off, 1+r.IntN(300000))
		if r.IntN(3) > 0 {
			for i := range run {
				p[off+i] = byte(r.IntN(1 + r.IntN(20)))
			}
		}
		off += run
	}
	return p
}

// member returns p as one gzip member, with the optional header fields that flags ask for (RFC 1952 section 2.3.1).
func member(t testing.TB, p []byte, flags byte) []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, 5)
	check(t, err)
	_, err = w.Write(p)
	check(t, err)
	check(t, w.Close())
	m := b.Bytes()
	head := append([]byte(nil), m[:headerLen]...)
	head[3] = flags
	if flags&4 != 0 {
		head = append(head, 8, 0, 'x', 'y', 4, 0, 1, 2, 3, 4)
	}
	if flags&8 != 0 {
		head = append(head, "disk.raw\x00"...)
	}
	if flags&16 != 0 {
		head = append(head, "a comment\x00"...)
	}
	if flags&2 != 0 {
		sum := crc32.ChecksumIEEE(head)
		head = append(head, byte(sum), byte(sum>>8))
	}
	return append(head, m[headerLen:]...)
}

func device(t testing.TB, p []byte) block.Device {
	d := block.NewMemory(int64(len(p)))
	check(t, d.Write(ctx, p, 0, 0))
	return d
}

func readStream(s block.Stream) ([]byte, error) {
	var p []byte
	for {
		r, err := s.Next(ctx)
		if err == io.EOF {
			return p, nil
		}
		if err != nil {
			return p, err
		}
		if r.Zero {
			r.Data = make([]byte, r.Len)
		}
		p = append(p, r.Data...)
	}
}

func decodeAll(p []byte) ([]byte, error) {
	s, err := decode(ctx, bytes.NewReader(p), formats.OpenOptions{})
	if err != nil {
		return nil, err
	}
	got, err := readStream(s)
	return got, errors.Join(err, s.Close())
}

func openAll(t testing.TB, p []byte) ([]byte, error) {
	d, err := open(ctx, device(t, p), formats.OpenOptions{})
	if err != nil {
		return nil, err
	}
	q := make([]byte, d.Size())
	return q, errors.Join(d.Read(ctx, q, 0), d.Close())
}

func TestMembersAndHeaderFields(t *testing.T) {
	want := text(1, 3<<20)
	var file []byte
	for flags := range byte(32) {
		from, to := int(flags)*len(want)/32, int(flags+1)*len(want)/32
		file = append(file, member(t, want[from:to], flags&^1)...)
	}
	file = append(file, member(t, nil, 0)...)
	for _, padding := range []int{0, 1, 511, 600000} {
		padded := append(bytes.Clone(file), make([]byte, padding)...)
		got, err := decodeAll(padded)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("stream with %d bytes of padding: %d bytes, %v", padding, len(got), err)
		}
		if got, err = openAll(t, padded); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("device with %d bytes of padding: %d bytes, %v", padding, len(got), err)
		}
	}
}

func TestDamage(t *testing.T) {
	want := text(2, 100000)
	first := member(t, want[:50000], 4|8)
	file := append(bytes.Clone(first), member(t, want[50000:], 0)...)
	for n := 1; n < len(file); n += 1 + n/50 {
		got, err := decodeAll(file[:n])
		if n == len(first) { // a whole file
			if err != nil || len(got) != 50000 {
				t.Fatalf("the first member alone: %d bytes, %v", len(got), err)
			}
			continue
		}
		var c *block.CorruptError
		if !errors.As(err, &c) || !errors.Is(err, io.ErrUnexpectedEOF) || c.Off > int64(n) {
			t.Fatalf("truncated to %d bytes: %v", n, err)
		}
	}
	bad := bytes.Clone(file)
	bad[len(bad)-8] ^= 1
	var c *block.CorruptError
	if _, err := decodeAll(bad); !errors.As(err, &c) || c.Part != "trailer" || c.Off != int64(len(bad)-8) {
		t.Fatalf("wrong CRC32: %v", err)
	}
	if _, err := openAll(t, bad); !errors.As(err, &c) {
		t.Fatalf("wrong CRC32, as a device: %v", err)
	}
	if _, err := decodeAll(append(bytes.Clone(file), "garbage"...)); !errors.As(err, &c) || c.Off != int64(len(file)) {
		t.Fatalf("garbage after the last member: %v", err)
	}
	if _, err := decodeAll([]byte("QFI\xfb is not gzip")); !errors.Is(err, block.ErrNotFormat) {
		t.Fatalf("another format: %v", err)
	}
}

// TestForeign reads a foreign file at random, with a cache that is far too small, so that it decodes again and again.
func TestForeign(t *testing.T) {
	want := text(3, 9<<20+12345)
	for name, file := range map[string][]byte{
		"one member":   member(t, want, 0),
		"many members": bytes.Join([][]byte{member(t, want[:2500000], 0), member(t, want[2500000:2500001], 8), member(t, want[2500001:7<<20], 0), member(t, want[7<<20:], 4)}, nil),
	} {
		t.Run(name, func(t *testing.T) {
			d, err := open(ctx, device(t, file), formats.OpenOptions{Memory: 2 << 20})
			check(t, err)
			r := rand.New(rand.NewPCG(4, 4))
			for range rounds(60) {
				off := r.IntN(len(want))
				p := make([]byte, r.IntN(min(len(want)-off, 2<<20)+1))
				check(t, d.Read(ctx, p, int64(off)))
				if !bytes.Equal(p, want[off:off+len(p)]) {
					t.Fatalf("%d bytes at %d differ", len(p), off)
				}
			}
			ext, err := d.Extents(ctx, block.Map{}, 0, d.Size(), nil)
			check(t, err)
			var zeros int64
			for _, e := range ext {
				if e.Flags&block.ExtZero != 0 {
					zeros += e.Len
					if !block.IsZero(want[e.Off:e.End()]) {
						t.Fatalf("extent %+v is not zero", e)
					}
				}
			}
			if zeros == 0 {
				t.Fatal("no zeros found")
			}
			check(t, d.Close())
		})
	}
}

func TestPlanIsReadBack(t *testing.T) {
	want := text(5, 6<<20)
	p, err := plan(ctx, device(t, want), formats.CreateOptions{Values: map[string]string{"level": "3"}})
	check(t, err)
	file := block.NewMemory(0)
	_, err = segment.Write(ctx, segment.ToDevice(file), p, segment.Options{})
	check(t, err)
	d, err := open(ctx, file, formats.OpenOptions{})
	check(t, err)
	if _, ours := d.(*gzipmod.Device); !ours {
		t.Fatal("our own file is read as a foreign one")
	}
	got := make([]byte, d.Size())
	check(t, d.Read(ctx, got, 0))
	if !bytes.Equal(got, want) {
		t.Fatal("the content differs")
	}
	if _, err := plan(ctx, d, formats.CreateOptions{Values: map[string]string{"level": "10"}}); err == nil {
		t.Fatal("level 10 was taken")
	}
}

// rounds returns how often to try: less often with -short, which the race detector runs.
func rounds(n int) int {
	if testing.Short() {
		return n/12 + 1
	}
	return n
}

// TestPeersFiles reads what the programs write that people compress images with.
func TestPeersFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("nothing runs concurrently here")
	}
	want := text(6, 5<<20)
	raw := filepath.Join(t.TempDir(), "disk.raw")
	check(t, os.WriteFile(raw, want, 0o666))
	for _, c := range [][]string{{"gzip", "-9"}, {"gzip", "-1"}, {"pigz", "-p4"}, {"pigz", "-p3", "-i"}, {"igzip", "-0"}, {"igzip", "-3"}, {"bgzip"}, {"dictzip", "-k"}, {"busybox", "gzip"}, {"7zz", "a", "-tgzip", "-so", "x.gz"}} {
		t.Run(c[0]+c[len(c)-1], func(t *testing.T) {
			args := append(c[1:len(c):len(c)], "-c", raw)
			if c[0] == "7zz" || c[0] == "dictzip" {
				args = append(c[1:len(c):len(c)], raw)
			}
			cmd := exec.Command(peers.Need(t, c[0]), args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			file, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %v\n%s", c, err, stderr.Bytes())
			}
			if c[0] == "dictzip" {
				file, err = os.ReadFile(raw + ".dz")
				check(t, err)
			}
			if got, err := decodeAll(file); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("stream: %d bytes, %v", len(got), err)
			}
			if got, err := openAll(t, file); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("device: %d bytes, %v", len(got), err)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(member(f, text(7, 3000), 4|8|16|2))
	f.Add(append(member(f, []byte("a"), 0), member(f, nil, 0)...))
	f.Add([]byte("\x1f\x8b\x08\xff\x00\x00\x00\x00\x00\xff"))
	f.Fuzz(func(t *testing.T, p []byte) {
		got, err := decodeAll(p)
		if err == nil {
			// A plain reader takes zero padding for a bad header, but gives the same bytes before that.
			var want []byte
			if z, e := gzip.NewReader(bytes.NewReader(p)); e == nil {
				want, _ = io.ReadAll(z)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%d bytes where a plain reader gives %d", len(got), len(want))
			}
		}
		if q, e := openAll(t, p); e == nil && (err != nil || !bytes.Equal(q, got)) {
			t.Fatalf("the device has %d bytes, the stream %d, %v", len(q), len(got), err)
		}
	})
}
