package chain

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestProgram(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"[ nbdkit memory 1G ]", []string{"nbdkit", "memory", "1G"}},
		{"[nbdkit\tmemory  1G]", []string{"nbdkit", "memory", "1G"}},
		{`[ a 'b  c' "d e" f\ g ]`, []string{"a", "b  c", "d e", "f g"}},
		{`[ a '' "" x'y'"z" ]`, []string{"a", "", "", "xyz"}},
		{`[ a "\"\\\n'" '\"' \'\" ]`, []string{"a", `"\\n'`, `\"`, `'"`}},
		{`[ a '[' "]" \] ]`, []string{"a", "[", "]", "]"}},
		{"[ nbdkit nbd nbd://[::1]:10809/x ]", []string{"nbdkit", "nbd", "nbd://[::1]:10809/x"}},
		{"[ a $HOME * # ]", []string{"a", "$HOME", "*", "#"}},
	} {
		s, err := Parse(c.text + "::raw")
		if err != nil || s.Source != c.text || len(s.Layers) != 1 || s.String() != c.text+"::raw" {
			t.Errorf("%s: %+v, %v", c.text, s, err)
		}
		if got, err := ProgramWords(c.text); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, %v; want %q", c.text, got, err, c.want)
		}
		text := Program(c.want)
		if got, err := ProgramWords(text); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: %s: %q, %v", c.want, text, got, err)
		}
	}
	for _, text := range []string{"[]", "[ ]", "[ '' x ]", "[ a [ ]", "[ a ] ]", "[ a 'b ]", `[ a "b ]`, `[ a \]`, "[ a ] [ b ]", "[ a \x00 ]", "[" + strings.Repeat(" a", maxWords+1) + "]"} {
		if got, err := ProgramWords(text); !errors.As(err, new(*UsageError)) {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
}

// FuzzProgram: words come back as they were, and what is taken apart is taken apart the same way again.
func FuzzProgram(f *testing.F) {
	for _, text := range []string{"[ a b ]", `[ 'a"' "b'" \] ]::raw`, "[[]]", "[ a [ b ] ]"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !isProgram(text) {
			return
		}
		words, err := ProgramWords(text)
		if err != nil {
			return
		}
		again, err := ProgramWords(Program(words))
		if err != nil || !slices.Equal(words, again) {
			t.Fatalf("%q: %q, then %q, %v", text, words, again, err)
		}
	})
}

func TestNBDURI(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"nbd:host:10", "nbd://host:10"},
		{"nbd:host:10:exportname=", "nbd://host:10"},
		{"nbd:host:10:exportname=a/b c", "nbd://host:10/a/b%20c"},
		{"nbd:[::1]:10", "nbd://[::1]:10"},
		{"nbd:unix:/run/s:exportname=x", "nbd+unix:///x?socket=/run/s"},
		{"nbd:unix:/run/a b", "nbd+unix://?socket=/run/a%20b"},
		{"nbd:unix:", ""}, {"nbd:", ""}, {"nbd:host", ""}, {"nbd:host:", ""}, {"nbd::10", ""}, {"nbd://host:10", ""}, {"nbd", ""}, {"x:host:10", ""},
	} {
		if uri, ok := NBDURI(c.name); ok != (c.want != "") || ok && uri != c.want {
			t.Errorf("%s: %s, %v; want %s", c.name, uri, ok, c.want)
		}
	}
}
