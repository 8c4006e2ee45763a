package inflate

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"hash/adler32"
	"hash/crc32"
	"io"
	"math/bits"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/imgtool/imgtool/internal/peers"
	kflate "github.com/klauspost/compress/flate"
)

// maker writes streams bit by bit, right or wrong.
type maker struct {
	out       []byte
	n         int // bits
	lit, dist []uint8
}

// put appends the n low bits of v, lowest first.
func (m *maker) put(v, n int) *maker {
	for i := range n {
		if m.n%8 == 0 {
			m.out = append(m.out, 0)
		}
		m.out[len(m.out)-1] |= byte(v>>i&1) << (m.n % 8)
		m.n++
	}
	return m
}

func (m *maker) align() *maker {
	m.n = len(m.out) * 8
	return m
}

// fixed begins a block with fixed codes.
func (m *maker) fixed(final int) *maker {
	m.lit, m.dist = nil, bytes.Repeat([]byte{5}, 32)
	for i, n := range []int{144, 112, 24, 8} {
		m.lit = append(m.lit, bytes.Repeat([]byte{[]byte{8, 9, 7, 8}[i]}, n)...)
	}
	return m.put(final, 1).put(1, 2)
}

// plainCodes begins a dynamic block up to the code lengths: each of the lengths 0 to 15 has a code of 4 bits.
func (m *maker) plainCodes(final, nlit, ndist int) *maker {
	m.put(final, 1).put(2, 2).put(nlit-257, 5).put(ndist-1, 5).put(19-4, 4)
	for _, i := range lensOrder {
		if i < 16 {
			m.put(4, 3)
		} else {
			m.put(0, 3)
		}
	}
	return m
}

// dynamic begins a block with these code lengths.
func (m *maker) dynamic(final int, lit, dist []uint8) *maker {
	m.lit, m.dist = lit, dist
	m.plainCodes(final, len(lit), len(dist))
	for _, n := range append(bytes.Clone(lit), dist...) {
		m.code(bytes.Repeat([]byte{4}, 16), int(n))
	}
	return m
}

// code writes the code of a symbol, its first bit first.
func (m *maker) code(lens []uint8, symbol int) *maker {
	code := 0
	for n := uint8(1); n < lens[symbol]; n++ {
		code = (code + bytes.Count(lens, []byte{n})) << 1
	}
	code += bytes.Count(lens[:symbol], []byte{lens[symbol]})
	n := int(lens[symbol])
	return m.put(int(bits.Reverse64(uint64(code))>>(64-n)), n)
}

func (m *maker) literals(s string) *maker {
	for _, v := range []byte(s) {
		m.code(m.lit, int(v))
	}
	return m
}

func (m *maker) end() *maker { return m.code(m.lit, endOfBlock) }

// lens returns n code lengths of which some are not 0.
func lens(n int, some map[int]uint8) []uint8 {
	p := make([]uint8, n)
	for i, v := range some {
		p[i] = v
	}
	return p
}

// outcome is what decoding a stream came to.
type outcome struct {
	out []byte
	err string
}

func (o outcome) String() string {
	return fmt.Sprintf("%d bytes (CRC %08x), %q", len(o.out), crc32.ChecksumIEEE(o.out), o.err)
}

func (o outcome) equal(p outcome) bool { return bytes.Equal(o.out, p.out) && o.err == p.err }

func result(out []byte, err error) outcome {
	if err != nil {
		return outcome{out, err.Error()}
	}
	return outcome{out, ""}
}

// readers holds Readers with their buffers made.
var readers = sync.Pool{New: func() any { return new(Reader) }}

// outcomes decodes src in every form, fails where they differ, and returns what they came to.
func outcomes(t testing.TB, src []byte, f Framing) outcome {
	t.Helper()
	z := readers.Get().(*Reader)
	defer readers.Put(z)
	out, err := readWith(z, bytes.NewReader(src), f)
	first := result(out, err)
	taken := z.InputOffset()
	for name, r := range map[string]io.Reader{
		"single bytes":    iotest.OneByteReader(bytes.NewReader(src)),
		"small pieces":    &pieces{r: bytes.NewReader(src)},
		"data with error": iotest.DataErrReader(bytes.NewReader(src)),
	} {
		if name == "single bytes" && len(src) > 1<<16 {
			continue
		}
		out, err := readWith(z, r, f)
		if o := result(out, err); !o.equal(first) || z.InputOffset() != taken {
			t.Fatalf("from %s: %v; at once: %v", name, o, first)
		}
	}
	z.Reset(bytes.NewReader(src))
	if _, err := z.Begin(f); err == nil {
		out, err := fillAll(z, 1+len(first.out)%500)
		if o := result(out, err); !o.equal(first) {
			t.Fatalf("Fill: %v; Read: %v", o, first)
		}
	} else if err.Error() != first.err {
		t.Fatalf("Begin: %v then %v", first.err, err)
	}

	var d Decoder
	decoded(t, &d, src, f, first, taken)
	d.c.portable = true
	decoded(t, &d, src, f, first, taken)
	z.c.portable = true
	defer func() { z.c.portable = false }()
	out, err = readWith(z, bytes.NewReader(src), f)
	if o := result(out, err); !o.equal(first) || z.InputOffset() != taken {
		t.Fatalf("portable: %v, %d bytes; else: %v, %d bytes", o, z.InputOffset(), first, taken)
	}
	return first
}

// decoded fails where d comes to something else than first, which a Reader came to.
func decoded(t testing.TB, d *Decoder, src []byte, f Framing, first outcome, taken int64) {
	t.Helper()
	const guard = 7
	dst := bytes.Repeat([]byte{guard}, len(first.out)+2*Slop)
	exact := dst[:len(first.out)]
	used, err := d.Decode(exact, src, f)
	switch {
	case first.err == "":
		if err != nil || !bytes.Equal(exact, first.out) || int64(used) != taken {
			t.Fatalf("Decode: %v, %d bytes; Read: %v, %d bytes", err, used, first, taken)
		}
	case err == ErrLong && first.err == io.ErrUnexpectedEOF.Error(): // a stored block promises more
	case err == nil || err.Error() != first.err && first.err != "EOF":
		t.Fatalf("Decode: %v; Read: %v", err, first)
	}
	if len(bytes.Trim(dst[len(exact):], string(rune(guard)))) > 0 {
		t.Fatal("Decode wrote behind dst")
	}
	if first.err != "" {
		if _, err := d.Decode(dst, src, f); err == nil || err.Error() != first.err && f == Raw {
			t.Fatalf("Decode with room: %v; Read: %v", err, first)
		}
	}
}

// pieces yields 1, 2, 3, ... bytes at a time.
type pieces struct {
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	p.n = p.n%97 + 1
	return p.r.Read(b[:min(p.n, len(b))])
}

// peersAgree fails where compress/flate or klauspost's decoder come to something else than o. Which damage they see does not matter.
func peersAgree(t testing.TB, src []byte, o outcome) {
	t.Helper()
	for name, r := range map[string]io.Reader{"compress/flate": flate.NewReader(bytes.NewReader(src)), "klauspost": kflate.NewReader(bytes.NewReader(src))} {
		out, err := io.ReadAll(r)
		if (err == nil) != (o.err == "") || err == nil && !bytes.Equal(out, o.out) {
			t.Errorf("%s: %v; here: %v", name, result(out, err), o)
		}
	}
}

// nearest is a literal/length code with end of block, two literals and the shortest length.
var nearest = lens(258, map[int]uint8{'a': 2, 'b': 2, 256: 2, 257: 2})

func TestDamage(t *testing.T) {
	one := lens(1, map[int]uint8{0: 1})
	two := []uint8{1, 1}
	for _, c := range []struct {
		name string
		m    *maker
		want string // the error, or what it decodes to behind "="
	}{
		{"empty", new(maker).fixed(1).end(), "="},
		{"fixed literal", new(maker).fixed(1).literals("a").end(), "=a"},
		{"two blocks", new(maker).fixed(0).literals("a").end().fixed(1).literals("b").end(), "=ab"},
		{"stored", new(maker).put(1, 3).align().put(2, 16).put(0xfffd, 16).literalBytes("hi"), "=hi"},
		{"match", new(maker).fixed(1).literals("ab").code(lens285(), 258).code(dist5(), 1).end(), "=ababab"},
		{"dynamic", new(maker).dynamic(1, nearest, two).literals("ab").code(nearest, 257).code(two, 1).end(), "=ababa"},
		{"length 258 as code 284 with extra 31", new(maker).fixed(1).literals("a").code(lens285(), 284).put(31, 5).code(dist5(), 0).end(), "=" + strings.Repeat("a", 259)},

		{"block type", new(maker).put(7, 3), `deflate block header at byte 0: reserved block type 3`},
		{"block type later", new(maker).fixed(0).literals("aaaa").end().put(6, 3), `deflate block header at byte 5: reserved block type 3`},
		{"stored length", new(maker).put(1, 3).align().put(2, 16).put(2, 16), `deflate stored block at byte 1: LEN and NLEN do not match`},
		{"HLIT", new(maker).put(5, 3).put(30, 5).put(0, 9).put(0, 64), `deflate code lengths at byte 0: HLIT promises more than 286 codes`},
		{"HDIST", new(maker).put(5, 3).put(0, 5).put(30, 5).put(0, 64), `deflate code lengths at byte 0: HDIST promises more than 30 codes`},
		{"code length code of nothing", new(maker).put(5, 3).put(0, 14).put(0, 80), `deflate code lengths at byte 0: incomplete code`},
		{"code length code of one", new(maker).put(5, 3).put(0, 14).put(1, 3).put(0, 80), `deflate code lengths at byte 0: incomplete code`},
		{"code length code incomplete", new(maker).put(5, 3).put(0, 14).put(1, 3).put(2, 3).put(0, 80), `deflate code lengths at byte 0: incomplete code`},
		{"code length code over-subscribed", new(maker).put(5, 3).put(0, 14).put(0b001001001001, 12).put(0, 80), `deflate code lengths at byte 0: over-subscribed code`},
		{"repeat of nothing", new(maker).put(5, 3).put(0, 14).put(0b000000001001, 12).put(0, 80), `deflate code lengths at byte 3: a length is to be repeated before there is one`},
		{"too many lengths", new(maker).put(5, 3).put(0, 14).put(0b000001000001, 12).put(-1, 60), `deflate code lengths at byte 4: more lengths than HLIT and HDIST promise`},
		{"no end", new(maker).dynamic(1, lens(257, map[int]uint8{'a': 1, 'b': 1}), one), `deflate code lengths at byte 0: end of block has no code`},
		{"literals over-subscribed", new(maker).dynamic(1, lens(257, map[int]uint8{'a': 1, 'b': 1, 256: 1}), one), `deflate code lengths at byte 0: over-subscribed code`},
		{"literals incomplete", new(maker).dynamic(1, lens(257, map[int]uint8{'a': 1, 256: 2}), one), `deflate code lengths at byte 0: incomplete code`},
		{"literals incomplete, one of 2 bits", new(maker).dynamic(1, lens(257, map[int]uint8{256: 2}), one), `deflate code lengths at byte 0: incomplete code`},
		{"distances over-subscribed", new(maker).dynamic(1, nearest, []uint8{1, 1, 1}), `deflate code lengths at byte 0: over-subscribed code`},
		{"distances incomplete", new(maker).dynamic(1, nearest, []uint8{2, 2, 2}), `deflate code lengths at byte 0: incomplete code`},
		{"distances incomplete, one of 2 bits", new(maker).dynamic(1, nearest, []uint8{2}), `deflate code lengths at byte 0: incomplete code`},

		{"end alone", new(maker).dynamic(1, lens(257, map[int]uint8{256: 1}), one).end(), "="},
		{"end alone, other bit", new(maker).dynamic(1, lens(257, map[int]uint8{256: 1}), one).put(1, 1), `deflate literal/length code at byte 138: bits that are no code`},
		{"no distances", new(maker).dynamic(1, nearest, []uint8{0}).literals("ab").end(), "=ab"},
		{"no distances, used", new(maker).dynamic(1, nearest, []uint8{0}).literals("ab").code(nearest, 257).put(0, 1), `deflate distance at byte 139: bits that are no code`},
		{"one distance", new(maker).dynamic(1, nearest, one).literals("ab").code(nearest, 257).code(one, 0).end(), "=abbbb"},
		{"one distance, other bit", new(maker).dynamic(1, nearest, one).literals("ab").code(nearest, 257).put(1, 1), `deflate distance at byte 139: bits that are no code`},

		{"length symbol 286", new(maker).fixed(1).code(lens285(), 286), `deflate literal/length code at byte 0: reserved length symbol`},
		{"length symbol 287", new(maker).fixed(1).code(lens285(), 287), `deflate literal/length code at byte 0: reserved length symbol`},
		{"distance symbol 30", new(maker).fixed(1).literals("a").code(lens285(), 257).code(dist5(), 30), `deflate distance at byte 1: reserved distance symbol`},
		{"distance symbol 31", new(maker).fixed(1).literals("a").code(lens285(), 257).code(dist5(), 31), `deflate distance at byte 1: reserved distance symbol`},
		{"before the start", new(maker).fixed(1).literals("a").code(lens285(), 257).code(dist5(), 1), `deflate distance at byte 1: reaches before the start of the output`},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := outcomes(t, c.m.out, Raw)
			if got := o.err; got == "" && c.want != "="+string(o.out) || got != "" && got != c.want {
				t.Errorf("got %v, want %q", o, c.want)
			}
			peersAgree(t, c.m.out, o)

			// The same behind so much that the fast loops meet it, and with so much behind it.
			front := stored(bytes.Repeat([]byte("a"), 3)) // a stored block of 8 bytes
			src := append(bytes.Clone(front), c.m.out...)
			if o.err != "" {
				src = append(src, make([]byte, 400)...)
			}
			moved := outcomes(t, src, Raw)
			want := o.err
			if i := strings.Index(want, "byte "); i >= 0 {
				var off int
				_, err := fmt.Sscanf(want[i:], "byte %d:", &off)
				check(t, err)
				want = strings.Replace(want, fmt.Sprintf("byte %d:", off), fmt.Sprintf("byte %d:", off+len(front)), 1)
			}
			if c.name != "before the start" && moved.err != want {
				t.Errorf("moved: %q, want %q", moved.err, want)
			}
		})
	}
}

func lens285() []uint8 { return new(maker).fixed(0).lit }
func dist5() []uint8   { return new(maker).fixed(0).dist }

func (m *maker) literalBytes(s string) *maker {
	m.out = append(m.out, s...)
	return m.align()
}

// stored returns p as a block that is not the last.
func stored(p []byte) []byte {
	b := []byte{0}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(p)))
	b = binary.LittleEndian.AppendUint16(b, ^uint16(len(p)))
	return append(b, p...)
}

// TestTruncated cuts streams at every byte: what was decoded is right, and the end is unexpected.
func TestTruncated(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for _, k := range kinds {
		for _, level := range []int{-2, 0, 6} {
			want := k.make(r, 250)
			src := deflated(t, want, level)
			for n := range src {
				o := outcomes(t, src[:n:n], Raw)
				if o.err != io.ErrUnexpectedEOF.Error() || !bytes.HasPrefix(want, o.out) {
					t.Fatalf("%s level %d, %d of %d bytes: %v", k.name, level, n, len(src), o)
				}
			}
		}
	}
}

func TestFramingDamage(t *testing.T) {
	data := new(maker).fixed(1).literals("abc").end().out
	gz := func(header string) []byte {
		p := append([]byte(header), data...)
		p = binary.LittleEndian.AppendUint32(p, crc32.ChecksumIEEE([]byte("abc")))
		return binary.LittleEndian.AppendUint32(p, 3)
	}
	zl := func(header string) []byte {
		return binary.BigEndian.AppendUint32(append([]byte(header), data...), adler32.Checksum([]byte("abc")))
	}
	change := func(p []byte, off int) []byte {
		p[off]++
		return p
	}
	const plain = "\x1f\x8b\x08\x00\x01\x02\x03\x04\x00\x03"
	hcrc := "\x1f\x8b\x08\x02\x01\x02\x03\x04\x00\x03"
	sum := uint16(crc32.ChecksumIEEE([]byte(hcrc)))
	hcrc += string([]byte{byte(sum), byte(sum >> 8)})
	long := strings.Repeat("x", maxHeaderText)
	for _, c := range []struct {
		name string
		f    Framing
		src  []byte
		want string
	}{
		{"gzip", Gzip, gz(plain), ""},
		{"gzip with CRC16", Gzip, gz(hcrc), ""},
		{"gzip with long name", Gzip, gz("\x1f\x8b\x08\x18\x01\x02\x03\x04\x00\x03" + long + "\x00" + long + "\x00"), ""},
		{"gzip with too long a name", Gzip, gz("\x1f\x8b\x08\x18\x01\x02\x03\x04\x00\x03" + long + "x\x00" + long + "\x00"), "deflate header at byte 0: FNAME or FCOMMENT is longer than 65536 bytes"},
		{"gzip magic", Gzip, gz("\x1f\x8c" + plain[2:]), "deflate header at byte 0: not a gzip header"},
		{"gzip method", Gzip, gz("\x1f\x8b\x09" + plain[3:]), "deflate header at byte 0: compression method is not DEFLATE"},
		{"gzip flags", Gzip, gz("\x1f\x8b\x08\x20" + plain[4:]), "deflate header at byte 0: reserved flags are set"},
		{"gzip CRC16", Gzip, change(gz(hcrc), 10), "deflate header at byte 0: CRC16 does not match the header"},
		{"gzip CRC", Gzip, change(gz(plain), len(plain)+len(data)), "deflate trailer at byte 15: checksum does not match the data"},
		{"gzip ISIZE", Gzip, change(gz(plain), len(plain)+len(data)+4), "deflate trailer at byte 19: ISIZE does not match the data"},
		{"zlib", Zlib, zl("\x78\x9c"), ""},
		{"zlib check", Zlib, zl("\x78\x9d"), "deflate header at byte 0: not a zlib header"},
		{"zlib method", Zlib, zl("\x77\x09"), "deflate header at byte 0: compression method is not DEFLATE"},
		{"zlib window", Zlib, zl("\x88\x1c"), "deflate header at byte 0: window is larger than 32 KiB"},
		{"zlib dictionary", Zlib, zl("\x78\x20"), "deflate header at byte 0: a preset dictionary is needed"},
		{"zlib Adler", Zlib, change(zl("\x78\x9c"), 2+len(data)+3), "deflate trailer at byte 7: checksum does not match the data"},
	} {
		o := outcomes(t, c.src, c.f)
		if o.err != c.want || o.err == "" && string(o.out) != "abc" {
			t.Errorf("%s: %v, want %q", c.name, o, c.want)
		}
		if c.want == "" && len(c.src) < 1000 {
			for n := range c.src {
				want := io.ErrUnexpectedEOF.Error()
				if n == 0 {
					want = io.EOF.Error()
				}
				if o := outcomes(t, c.src[:n], c.f); o.err != want {
					t.Errorf("%s: %d bytes of it: %v", c.name, n, o)
				}
			}
		}
	}
}

// TestAsZlib compares judgement with zlib itself: of codes of every shape, followed by any bits.
func TestAsZlib(t *testing.T) {
	python := peers.Need(t, "python3")
	r := rand.New(rand.NewPCG(4, 4))
	var script bytes.Buffer
	var srcs [][]byte
	for range 3000 {
		m := new(maker)
		if r.IntN(8) == 0 {
			m.fixed(r.IntN(2))
		} else {
			lit, dist := randomCode(r, 257+r.IntN(30)), randomCode(r, 1+r.IntN(30))
			if r.IntN(8) > 0 && lit[256] == 0 {
				i := bytes.IndexFunc(lit, func(n rune) bool { return n != 0 })
				lit[256], lit[max(i, 0)] = lit[max(i, 0)], 0
			}
			m.dynamic(r.IntN(2), lit, dist)
		}
		for range r.IntN(40) {
			m.put(int(r.Uint32()), 8)
		}
		srcs = append(srcs, m.out)
		fmt.Fprintf(&script, "%x\n", m.out)
	}
	cmd := peers.Command(t, "python3", "-c", `
import sys, zlib
for line in sys.stdin:
    z = zlib.decompressobj(-15)
    try:
        out = z.decompress(bytes.fromhex(line))
        print("ok" if z.eof else "short", out.hex())
    except zlib.error:
        print("damage")
`)
	cmd.Path, cmd.Stdin = python, &script
	out, err := cmd.Output()
	check(t, err)
	met := map[string]int{}
	for i, line := range strings.Split(strings.TrimSuffix(string(out), "\n"), "\n") {
		o := outcomes(t, srcs[i], Raw)
		got := fmt.Sprintf("ok %x", o.out)
		switch {
		case o.err == io.ErrUnexpectedEOF.Error():
			got = fmt.Sprintf("short %x", o.out)
		case o.err != "":
			got = "damage"
		}
		if got != line {
			t.Fatalf("%x: zlib: %s; here: %s (%v)", srcs[i], line, got, o)
		}
		met[strings.Fields(line)[0]]++
	}
	if met["ok"] < 50 || met["short"] < 50 || met["damage"] < 50 {
		t.Errorf("the streams are too much alike: %v", met)
	}
}

// randomCode returns the lengths of a code that is complete, or nearly.
func randomCode(r *rand.Rand, n int) []uint8 {
	p := make([]uint8, n)
	leaves := []uint8{0}
	for range r.IntN(min(n, 40)) {
		i := r.IntN(len(leaves))
		if r.IntN(3) > 0 {
			i = len(leaves) - 1
		}
		if leaves[i] < maxCode {
			leaves[i]++
			leaves = append(leaves, leaves[i])
		}
	}
	for i, at := range r.Perm(n)[:min(n, len(leaves))] {
		p[at] = leaves[i]
	}
	switch r.IntN(6) {
	case 0:
		p[r.IntN(n)] = uint8(r.IntN(16))
	case 1:
		clear(p)
		p[r.IntN(n)] = uint8(1 + r.IntN(2))
	}
	return p
}
