package testimages

import (
	"encoding/binary"
	"math/rand/v2"
)

// kind says what a file's content looks like, and with it how well it compresses.
type kind uint8

const (
	literal kind = iota // written out in the catalog
	text                // prose and scripts
	records             // JSON
	program             // like an ELF file: instructions, strings, tables, padding
	packed              // as compressed or encrypted: no compressor finds anything
)

// chunkSize is the unit in which content is made: each chunk depends on the file's seed and its own number alone.
const chunkSize = 64 << 10

// content makes the bytes of one file.
type content struct {
	kind  kind
	seed  uint64
	size  int64
	magic string // what the file starts with
	bytes []byte // all of it, for a literal
}

// append appends the n bytes from off to b. off is a multiple of chunkSize, and off+n too, or the end of the file.
func (c *content) append(w *words, b []byte, off, n int64) []byte {
	if c.kind == literal {
		return append(b, c.bytes[off:off+n]...)
	}
	start := len(b)
	for end := off + n; off < end; off += chunkSize {
		k := int(min(chunkSize, end-off))
		at := len(b)
		r := newRandom(c.seed, uint64(off/chunkSize))
		switch c.kind {
		case text:
			b = appendText(w, r, b, at+k)
		case records:
			b = appendRecords(w, r, b, at+k)
		case program:
			b = c.appendProgram(w, r, b, at+k, off)
		case packed:
			b = appendPacked(r, b, at+k)
		}
		// Makers stop at the first word, record or page that reaches the end.
		b = b[:at+k]
		if off == 0 {
			copy(b[start:], c.magic)
		}
	}
	return b
}

// appendPacked appends random bytes until b has end bytes.
func appendPacked(r *random, b []byte, end int) []byte {
	var key [32]byte
	for i := 0; i < len(key); i += 8 {
		binary.LittleEndian.PutUint64(key[i:], r.pcg.Uint64())
	}
	at := len(b)
	b = append(b, make([]byte, end-at)...)
	rand.NewChaCha8(key).Read(b[at:]) // never fails
	return b
}

const lineWidth = 72 // where lines of prose break

// appendText appends sentences of words and phrases, in lines, until b has at least end bytes.
func appendText(w *words, r *random, b []byte, end int) []byte {
	line := len(b) // where it starts
	for len(b) < end {
		x := r.next16()
		if x%4 == 0 {
			b = append(b, w.phrase[w.phraseOf[r.next16()]]...)
		} else {
			b = append(b, w.word[w.wordOf[r.next16()]]...)
		}
		switch {
		case x>>2%16 == 0:
			b = append(b, ".\n\n    "...)
			line = len(b) - 4
		case len(b)-line >= lineWidth:
			b = append(b, '\n')
			line = len(b)
		default:
			b = append(b, ' ')
		}
	}
	return b
}

// appendRecords appends lines of JSON until b has at least end bytes.
func appendRecords(w *words, r *random, b []byte, end int) []byte {
	const digits = "0123456789abcdef"
	word := func() string { return w.word[w.wordOf[r.next16()]] }
	for len(b) < end {
		b = append(b, `{"name": "`...)
		b = append(b, word()...)
		b = append(b, '-')
		b = append(b, word()...)
		b = append(b, `", "version": "`...)
		x := r.next16()
		b = append(b, digits[x%8], '.', digits[x>>3%10], '.', digits[x>>7%10])
		b = append(b, `", "digest": "`...)
		for range 2 {
			x := r.next16()
			b = append(b, digits[x%16], digits[x>>4%16], digits[x>>8%16], digits[x>>12])
		}
		b = append(b, `", "enabled": `...)
		if x>>12 == 0 {
			b = append(b, "false"...)
		} else {
			b = append(b, "true"...)
		}
		b = append(b, `, "summary": "`...)
		b = append(b, w.phrase[w.phraseOf[r.next16()]]...)
		b = append(b, "\", \"files\": [\"/usr/lib/"...)
		b = append(b, word()...)
		b = append(b, "/default.conf\"]}\n"...)
	}
	return b
}

const pageSize = 4096 // bytes; the parts of a program are made in pages

// appendProgram appends pages until b has at least end bytes. Where a page lies in the file, off being that of the first, says what is in it.
func (c *content) appendProgram(w *words, r *random, b []byte, end int, off int64) []byte {
	pages := (c.size + pageSize - 1) / pageSize
	for ; len(b) < end; off += pageSize {
		page := len(b) + pageSize
		switch part := off / pageSize * 16 / pages; {
		case part < 10:
			b = appendCode(w, r, b, page)
		case part < 12:
			b = appendStrings(w, r, b, page)
		case part < 14:
			b = appendTable(r, b, page, off)
		case part < 15:
			b = appendText(w, r, b, page)
		default:
			b = append(b, make([]byte, pageSize)...)
		}
		b = b[:page]
	}
	return b
}

// appendCode appends what looks like machine instructions until b has at least end bytes: common byte patterns, some with an operand of 32 bits.
func appendCode(w *words, r *random, b []byte, end int) []byte {
	for len(b) < end {
		x := r.next16()
		b = append(b, w.insn[w.insnOf[x]]...)
		switch x % 16 {
		case 0: // a call or a jump far away
			y := r.next16()
			b = append(b, byte(y), byte(y>>8), 0xff, 0xff)
		case 1, 2: // a small number
			b = append(b, byte(r.next16()%32*8), 0, 0, 0)
		case 3, 4: // a field of a structure
			b = append(b, byte(r.next16()%16*8))
		}
	}
	return b
}

// appendStrings appends names, each ended by a zero byte, until b has at least end bytes.
func appendStrings(w *words, r *random, b []byte, end int) []byte {
	for len(b) < end {
		b = append(b, w.word[w.wordOf[r.next16()]]...)
		b = append(b, '_')
		b = append(b, w.word[w.wordOf[r.next16()]]...)
		b = append(b, 0)
	}
	return b
}

// appendTable appends relocations as an ELF file has them (address, type, addend) until b has at least end bytes.
func appendTable(r *random, b []byte, end int, address int64) []byte {
	for len(b) < end {
		address += 8
		b = binary.LittleEndian.AppendUint64(b, uint64(address))
		b = binary.LittleEndian.AppendUint64(b, 8)
		b = binary.LittleEndian.AppendUint64(b, uint64(r.next16()*16))
	}
	return b
}
