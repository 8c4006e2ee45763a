package chain

import (
	"fmt"
	"strings"
)

// maxText bounds the length of a chain, in bytes. No path is longer.
const maxText = 64 << 10

// The signs that part a chain, and with a backslash in front stand for themselves.
const (
	betweenLayers  = "::"
	betweenOptions = ","
)

// Spec is a chain as written, taken apart.
type Spec struct {
	Source string  // a path or another kind of source, without escapes
	Layers []Layer // from the source outward
}

// Layer is one layer of a Spec.
type Layer struct {
	Name    string   // letters, digits, - and _
	Arg     string   // what follows = directly; "" where nothing does
	Options []Option // in written order; no key comes twice
}

// Option is one key=value of a Layer. The value may be empty.
type Option struct{ Key, Value string }

// UsageError says that a chain is written wrongly, or asks for what does not exist.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// usage returns a UsageError whose cause is formatted as by fmt.Errorf.
func usage(format string, args ...any) error { return &UsageError{Err: fmt.Errorf(format, args...)} }

// Parse takes text apart. It knows the grammar only, not which sources and layers there are. Every error is a *UsageError.
func Parse(text string) (Spec, error) {
	if len(text) > maxText {
		return Spec{}, usage("the name of an image has %d bytes, more than %d", len(text), maxText)
	}
	var s Spec
	source, rest, more := cutProgram(text)
	if source != "" {
		s.Source = source
	} else if source, rest, more = cut(text, betweenLayers); source != "" {
		s.Source = unescape(source, betweenLayers)
	} else {
		return Spec{}, usage("%q names no image", text)
	}
	for more {
		var part string
		part, rest, more = cut(rest, betweenLayers)
		l, err := parseLayer(part)
		if err != nil {
			return Spec{}, fmt.Errorf("%q: %w", text, err)
		}
		s.Layers = append(s.Layers, l)
	}
	return s, nil
}

// parseLayer takes one layer apart.
func parseLayer(text string) (Layer, error) {
	head, rest, more := cut(text, betweenOptions)
	name, arg, hasArg := strings.Cut(head, "=")
	if !isName(name) {
		return Layer{}, usage("%q is not the name of a layer; a :: inside a name is written \\::", name)
	}
	if hasArg && arg == "" {
		return Layer{}, usage("layer %s has nothing after its =", name)
	}
	l := Layer{Name: name, Arg: unescape(arg, betweenLayers, betweenOptions)}
	for more {
		var part string
		part, rest, more = cut(rest, betweenOptions)
		key, value, ok := strings.Cut(part, "=")
		if !ok || !isName(key) {
			return Layer{}, usage("layer %s: option %q is not of the form key=value; a comma inside a value is written \\,", name, part)
		}
		if _, twice := l.option(key); twice {
			return Layer{}, usage("layer %s: option %s is given twice", name, key)
		}
		l.Options = append(l.Options, Option{Key: key, Value: unescape(value, betweenLayers, betweenOptions)})
	}
	return l, nil
}

// option returns the value of an option, and whether it is given.
func (l Layer) option(key string) (string, bool) {
	for _, o := range l.Options {
		if o.Key == key {
			return o.Value, true
		}
	}
	return "", false
}

// values returns the options as a map.
func (l Layer) values() map[string]string {
	m := make(map[string]string, len(l.Options)+1)
	for _, o := range l.Options {
		m[o.Key] = o.Value
	}
	return m
}

// String returns a text that Parse reads as s, if s came from Parse.
func (s Spec) String() string {
	var b strings.Builder
	if isProgram(s.Source) {
		b.WriteString(s.Source)
	} else {
		b.WriteString(escape(s.Source, betweenLayers))
	}
	for _, l := range s.Layers {
		b.WriteString(betweenLayers)
		b.WriteString(l.String())
	}
	return b.String()
}

// String returns the layer as it stands in a chain.
func (l Layer) String() string {
	var b strings.Builder
	b.WriteString(l.Name)
	if l.Arg != "" {
		b.WriteString("=" + escape(l.Arg, betweenLayers, betweenOptions))
	}
	for _, o := range l.Options {
		b.WriteString(betweenOptions + o.Key + "=" + escape(o.Value, betweenLayers, betweenOptions))
	}
	return b.String()
}

// cut returns what stands before and after the first sep that parts text: one that has no backslash before it and does not stand inside
// brackets. Of more than two colons in a row the last two part, so that a name may end in a colon.
func cut(text, sep string) (before, after string, found bool) {
	for i := 0; i < len(text); {
		switch {
		case text[i] == '[':
			i += bracketed(text[i:])
		case strings.HasPrefix(text[i:], `\`+sep):
			i += 1 + len(sep)
		case !strings.HasPrefix(text[i:], sep):
			i++
		case sep == betweenLayers && strings.HasPrefix(text[i+1:], sep):
			i++
		default:
			return text[:i], text[i+len(sep):], true
		}
	}
	return text, "", false
}

// bracketed returns how many bytes at the start of text, which is a [, reach to the ] that belongs to it; 1 where none does.
func bracketed(text string) int {
	depth := 0
	for i := range len(text) {
		switch text[i] {
		case '[':
			depth++
		case ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 1
}

// unescape removes the backslashes that escape puts before seps.
func unescape(text string, seps ...string) string {
	return rewrite(text, func(rest string) (string, int) {
		for _, sep := range seps {
			if strings.HasPrefix(rest, `\`+sep) {
				return sep, 1 + len(sep)
			}
		}
		return rest[:1], 1
	})
}

// escape puts a backslash before every sep in text.
func escape(text string, seps ...string) string {
	return rewrite(text, func(rest string) (string, int) {
		for _, sep := range seps {
			if strings.HasPrefix(rest, sep) {
				return `\` + sep, len(sep)
			}
		}
		return rest[:1], 1
	})
}

// rewrite replaces pieces of text outside brackets: f returns what stands for the first bytes of what it is given, and for how many.
func rewrite(text string, f func(rest string) (string, int)) string {
	var b strings.Builder
	for i := 0; i < len(text); {
		if text[i] == '[' {
			n := bracketed(text[i:])
			b.WriteString(text[i : i+n])
			i += n
			continue
		}
		s, n := f(text[i:])
		b.WriteString(s)
		i += n
	}
	return b.String()
}

// isName reports whether s can be the name of a layer or of an option.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return s != ""
}
