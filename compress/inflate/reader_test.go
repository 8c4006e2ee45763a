package inflate

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/imgtool/imgtool/internal/peers"
)

// TestPeers decodes what every compressor at hand makes, in one member or many.
func TestPeers(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	var data []byte
	for _, k := range kinds {
		data = append(data, k.make(r, 200000)...)
	}
	for _, c := range [][]string{
		{"gzip", "-1"}, {"gzip", "-9"}, {"pigz", "-6"}, {"pigz", "-i", "-p", "2"}, {"pigz", "-11"}, {"igzip", "-0"}, {"igzip", "-3"},
		{"libdeflate-gzip", "-1"}, {"libdeflate-gzip", "-12"}, {"bgzip", "-c"}, {"7zz", "a", "-an", "-tgzip", "-mx9", "-si", "-so"},
	} {
		t.Run(c[0]+c[1], func(t *testing.T) {
			data, args := data, c[1:]
			if c[1] == "-11" { // zopfli takes its time
				data = data[:len(data)/30]
			}
			if c[0] != "7zz" && c[0] != "bgzip" {
				args = append(args, "-c")
			}
			cmd := peers.Command(t, c[0], args...)
			cmd.Stdin = bytes.NewReader(data)
			src, err := cmd.Output()
			check(t, err)
			for _, portable := range []bool{false, true} {
				z := NewReader(bytes.NewReader(src))
				z.c.portable = portable
				got, err := readMembers(z)
				if err != nil || !bytes.Equal(got, data) || z.InputOffset() != int64(len(src)) {
					t.Errorf("portable %v: %d of %d bytes, %v", portable, len(got), len(data), err)
				}
			}
		})
	}
}

// readMembers decodes all members of a gzip file.
func readMembers(z *Reader) ([]byte, error) {
	var out []byte
	for {
		if _, err := z.Begin(Gzip); err == io.EOF {
			return out, nil
		} else if err != nil {
			return out, err
		}
		p, err := io.ReadAll(z)
		out = append(out, p...)
		if err != nil {
			return out, err
		}
	}
}

// TestBetween looks at the input between streams.
func TestBetween(t *testing.T) {
	data := new(maker).fixed(1).literals("abc").end().out
	src := append(bytes.Clone(data), "between"...)
	src = append(src, data...)
	for name, r := range map[string]io.Reader{"all": bytes.NewReader(src), "single bytes": iotest.OneByteReader(bytes.NewReader(src))} {
		z := NewReader(r)
		if _, err := z.Next(); err == nil {
			t.Error("Next before Begin")
		}
		p, err := z.Peek(3)
		if err != nil || !bytes.Equal(p, src[:3]) || z.InputOffset() != 0 {
			t.Errorf("%s: Peek: %x, %v", name, p, err)
		}
		_, err = z.Begin(Raw)
		check(t, err)
		if _, err := z.Peek(1); err == nil {
			t.Error("Peek inside a stream")
		}
		if err := z.Discard(1); err == nil {
			t.Error("Discard inside a stream")
		}
		got, err := io.ReadAll(z)
		if err != nil || string(got) != "abc" || z.InputOffset() != int64(len(data)) {
			t.Errorf("%s: %q, %v, stands at %d", name, got, err, z.InputOffset())
		}
		if p, err = z.Peek(7); err != nil || string(p) != "between" {
			t.Errorf("%s: Peek: %q, %v", name, p, err)
		}
		check(t, z.Discard(7))
		_, err = z.Begin(Raw)
		check(t, err)
		got, err = io.ReadAll(z)
		if err != nil || string(got) != "abc" || z.InputOffset() != int64(len(src)) {
			t.Errorf("%s: %q, %v, stands at %d", name, got, err, z.InputOffset())
		}
		if p, err := z.Peek(1); err != io.EOF || len(p) != 0 {
			t.Errorf("%s: Peek at the end: %x, %v", name, p, err)
		}
		if err := z.Discard(1); err != io.EOF {
			t.Errorf("%s: Discard at the end: %v", name, err)
		}
		if _, err := z.Peek(inputSize + 1); err != bufio.ErrBufferFull {
			t.Errorf("%s: Peek of too much: %v", name, err)
		}
	}
	z := NewReader(bytes.NewReader(make([]byte, inputSize+5)))
	check(t, z.Discard(3))
	if p, err := z.Peek(inputSize); err != nil || len(p) != inputSize {
		t.Errorf("Peek of a whole buffer: %d bytes, %v", len(p), err)
	}
	check(t, z.Discard(inputSize+2))
}

// TestInputErrors: what the input returns comes out as it is, after what was decoded before.
func TestInputErrors(t *testing.T) {
	broken := errors.New("broken")
	want := kinds[5].make(rand.New(rand.NewPCG(10, 10)), 3000)
	src := deflated(t, want, 6)
	for n := range src {
		got, _, err := readAll(io.MultiReader(bytes.NewReader(src[:n]), iotest.ErrReader(broken)), Raw)
		if err != broken || !bytes.HasPrefix(want, got) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	if _, _, err := readAll(iotest.ErrReader(broken), Gzip); err != broken {
		t.Errorf("header: %v", err)
	}
	if _, _, err := readAll(idle{}, Raw); err != io.ErrNoProgress {
		t.Errorf("input that yields nothing: %v", err)
	}
	z := NewReader(bytes.NewReader(src))
	_, err := z.Begin(Raw)
	check(t, err)
	if _, err := z.Fill(make([]byte, 1000+Slop-1), 1000); err != io.ErrShortBuffer {
		t.Errorf("Fill without room: %v", err)
	}
	room := make([]byte, 2*Slop)
	for _, at := range []int{-1, -Slop, math.MinInt} {
		if n, err := z.Fill(room[Slop:], at); n != 0 || err != io.ErrShortBuffer || !bytes.Equal(room, make([]byte, 2*Slop)) {
			t.Errorf("Fill at %d: %d, %v", at, n, err)
		}
	}
	if n, err := z.Fill(make([]byte, Slop), 0); n == 0 || err != nil {
		t.Errorf("Fill with just room: %d, %v", n, err)
	}
}

// TestFillEnd: Fill reads the trailer along with the last output.
func TestFillEnd(t *testing.T) {
	src := wrapped("\x1f\x8b\x08\x00\x01\x02\x03\x04\x00\x03", new(maker).fixed(1).literals("abc").end().out, "abc")
	z := NewReader(bytes.NewReader(src))
	_, err := z.Begin(Gzip)
	check(t, err)
	if n, err := z.Fill(make([]byte, 1000), 0); n != 3 || err != io.EOF || z.InputOffset() != int64(len(src)) {
		t.Errorf("%d, %v, stands at %d", n, err, z.InputOffset())
	}
}

// idle is an input that yields neither bytes nor an error.
type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

// TestAgain: a Reader that met damage is as good as new after Reset, and one that met a wrong trailer goes on behind it.
func TestAgain(t *testing.T) {
	data := deflated(t, []byte("abc"), 6)
	z := NewReader(bytes.NewReader([]byte{7}))
	_, err := z.Begin(Raw)
	check(t, err)
	for range 2 {
		if _, err := z.Next(); err == nil {
			t.Fatal("no damage")
		}
	}
	z.Reset(bytes.NewReader(data))
	if _, err := z.Next(); err == nil {
		t.Error("Next before Begin")
	}
	_, err = z.Begin(Raw)
	check(t, err)
	if got, err := io.ReadAll(z); err != nil || string(got) != "abc" {
		t.Errorf("after Reset: %q, %v", got, err)
	}
	// Left in the middle, the next stream begins at the next byte.
	z.Reset(bytes.NewReader(append(bytes.Clone(stored([]byte("xyz"))), data...)))
	_, err = z.Begin(Raw)
	check(t, err)
	z.StopAtMarks(true)
	if n, err := z.Fill(make([]byte, Slop+2), 0); n != 3 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	_, err = z.Begin(Raw)
	check(t, err)
	if got, err := io.ReadAll(z); err != nil || string(got) != "abc" {
		t.Errorf("after half a stream: %q, %v", got, err)
	}
}

func TestAllocs(t *testing.T) {
	want := kinds[5].make(rand.New(rand.NewPCG(11, 11)), 100000)
	src := deflated(t, want, 6)
	var d Decoder
	dst := make([]byte, len(want))
	z := NewReader(nil)
	in := bytes.NewReader(src)
	if n := testing.AllocsPerRun(10, func() {
		_, err := d.Decode(dst, src, Raw)
		check(t, err)
		in.Reset(src)
		z.Reset(in)
		_, err = z.Begin(Raw)
		check(t, err)
		for err == nil {
			_, err = z.Next()
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
