package main

import (
	"fmt"
	"io"

	"github.com/imgtool/imgtool/block"
)

// hexdump prints bytes in hexadecimal, sixteen in a line. Lines that are the same as the one before are held back, because a * stands for any number
// of them, and because the last line of all is shown whatever it holds.
type hexdump struct {
	w       io.Writer
	buf     []byte // lines that have not been written
	err     error  // of w
	colored bool
	color   string // that is switched on

	off    int64         // of the line that is being filled
	line   [hexLine]byte // which is filled to n
	n      int           //
	last   [hexLine]byte // the line that was printed last
	some   bool          // there is one
	folded int64         // lines since then that are the same
}

const (
	hexLine   = 16       // bytes in a line
	hexBuffer = 64 << 10 // bytes of text that are written at a time
	hexDigits = "0123456789abcdef"
)

// newHexdump returns one that begins at an offset.
func newHexdump(w io.Writer, off int64, colored bool) *hexdump {
	return &hexdump{w: w, off: off, colored: colored}
}

// bytes prints p.
func (h *hexdump) bytes(p []byte) {
	for len(p) > 0 && h.err == nil {
		const page = 4096
		if run := p[:min(page, len(p))]; block.IsZero(run) {
			h.zeros(int64(len(run)))
			p = p[len(run):]
			continue
		}
		for end := max(len(p)-page, 0); len(p) > end && h.err == nil; {
			k := copy(h.line[h.n:], p)
			h.n, p = h.n+k, p[k:]
			if h.n == hexLine {
				h.lines(1)
			}
		}
	}
}

// zeros prints n bytes that are zero.
func (h *hexdump) zeros(n int64) {
	if h.n > 0 {
		k := min(n, int64(hexLine-h.n))
		clear(h.line[h.n : h.n+int(k)])
		h.n, n = h.n+int(k), n-k
		if h.n < hexLine {
			return
		}
		h.lines(1)
	}
	if n >= hexLine {
		clear(h.line[:])
		h.lines(n / hexLine)
	}
	h.n = int(n % hexLine)
	clear(h.line[:h.n])
}

// lines prints the line that is full, so many times, and begins the next.
func (h *hexdump) lines(count int64) {
	if !h.some || h.line != h.last {
		h.fold()
		h.print(h.off, hexLine)
		h.last, h.some = h.line, true
		h.off, count = h.off+hexLine, count-1
	}
	h.folded += count
	h.off += count * hexLine
	h.n = 0
}

// fold prints what stands for lines that were held back.
func (h *hexdump) fold() {
	if h.folded == 0 {
		return
	}
	if h.buf = append(h.buf, '*', '\n'); h.colored {
		h.buf = append(h.buf[:len(h.buf)-2], "☆\n"...)
	}
	h.folded = 0
}

// end prints what is left. whole says that the image ends here. It returns the first error of the writer.
func (h *hexdump) end(whole bool) error {
	switch {
	case h.n > 0:
		h.fold()
		h.print(h.off, h.n)
	case whole && h.folded > 0: // the last line is one of those that were held back
		h.folded--
		h.fold()
		h.line = h.last
		h.print(h.off-hexLine, hexLine)
	default:
		h.fold()
	}
	h.write()
	return h.err
}

// print appends the first n bytes of the line.
func (h *hexdump) print(off int64, n int) {
	h.paint(colorGreen)
	h.buf = fmt.Appendf(h.buf, "%010x", off)
	h.paint(colorDim)
	h.buf = append(h.buf, ": "...)
	for i, c := range h.line {
		if i < n {
			h.paint(byteColor(c))
			h.buf = append(h.buf, hexDigits[c>>4], hexDigits[c&15], ' ')
		} else {
			h.buf = append(h.buf, "   "...)
		}
		if i == hexLine/2-1 {
			h.buf = append(h.buf, ' ')
		}
	}
	h.edge()
	for i, c := range h.line {
		switch {
		case i >= n:
			h.buf = append(h.buf, ' ')
		case c >= ' ' && c <= '~':
			h.paint(signColor(c))
			h.buf = append(h.buf, c)
		case h.colored:
			h.paint(colorDim)
			h.buf = append(h.buf, "·"...)
		default:
			h.buf = append(h.buf, '.')
		}
	}
	h.edge()
	h.paint(colorNone)
	if h.buf = append(h.buf, '\n'); len(h.buf) >= hexBuffer {
		h.write()
	}
}

// edge appends what stands left and right of the ASCII characters.
func (h *hexdump) edge() {
	if !h.colored {
		h.buf = append(h.buf, '|')
		return
	}
	h.paint(colorDim)
	h.buf = append(h.buf, "│"...)
}

// paint switches a color on.
func (h *hexdump) paint(color string) {
	if h.colored && h.color != color {
		h.buf = append(append(append(h.buf, "\x1b["...), color...), 'm')
		h.color = color
	}
}

// write writes what has been printed.
func (h *hexdump) write() {
	if h.err == nil {
		_, h.err = h.w.Write(h.buf)
	}
	h.buf = h.buf[:0]
}

func byteColor(c byte) string {
	if c == 0 {
		return colorDim
	}
	return colorBlue
}

func signColor(c byte) string {
	if c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' {
		return colorLetter
	}
	return colorSign
}
