package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// shown is text from elsewhere that may go to a terminal: what steers terminals is escaped, in JSON as well.
type shown string

// String returns the text with Go's escapes in place of what cannot be printed.
func (s shown) String() string {
	return s.replace(func(b *strings.Builder, r rune, raw string) {
		if r == utf8.RuneError {
			fmt.Fprintf(b, `\x%02x`, raw)
			return
		}
		quoted := fmt.Sprintf("%+q", r)
		b.WriteString(quoted[1 : len(quoted)-1])
	})
}

// quoted returns the text as JSON.
func (s shown) quoted() string {
	text := shown(strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(string(s)))
	return `"` + text.replace(func(b *strings.Builder, r rune, _ string) {
		for _, u := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(b, `\u%04x`, u)
		}
	}) + `"`
}

// MarshalJSON escapes more than JSON asks for.
func (s shown) MarshalJSON() ([]byte, error) { return []byte(s.quoted()), nil }

// replace returns the text with what f writes in place of every rune that cannot be printed, and of every byte that is in none.
func (s shown) replace(f func(b *strings.Builder, r rune, raw string)) string {
	var b strings.Builder
	for i, n := 0, 0; i < len(s); i += n {
		var r rune
		r, n = utf8.DecodeRuneInString(string(s[i:]))
		if raw := string(s[i : i+n]); unicode.IsPrint(r) && (r != utf8.RuneError || n > 1) {
			b.WriteString(raw)
		} else {
			f(&b, r, raw)
		}
	}
	return b.String()
}

// The colors, as arguments of the terminal's control sequence.
const (
	colorNone   = "0"
	colorDim    = "22;90"
	colorBold   = "1"
	colorRed    = "22;31"
	colorGreen  = "22;32"
	colorBlue   = "1;34"
	colorLetter = "1;31"
	colorSign   = "1;35"
)

// painter prints lines, in colors where it is on.
type painter struct {
	w  *bufio.Writer
	on bool
}

// printf prints a line in a color.
func (p painter) printf(color, format string, args ...any) {
	if p.on && color != colorNone {
		fmt.Fprintf(p.w, "\x1b[%sm"+format+"\x1b[0m\n", append([]any{color}, args...)...)
		return
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}

// colorFlag adds --color to a command that prints in colors on a terminal.
func colorFlag(c *cobra.Command, when *string) {
	c.Flags().StringVar(when, "color", "auto", "use colors: auto, which is on a terminal, always or never")
	c.Flags().Lookup("color").NoOptDefVal = "always"
}

// painter returns what prints in colors, or does not, for a value of --color.
func (a *app) painter(when string) (painter, error) {
	switch when {
	case "always":
		return painter{a.out, true}, nil
	case "never":
		return painter{a.out, false}, nil
	case "auto":
		return painter{a.out, isTerminal(a.stdout)}, nil
	}
	return painter{}, usagef("--color=%s: say auto, always or never", when)
}

// isTerminal reports whether f is one.
func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
