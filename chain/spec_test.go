package chain

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	layer := func(name, arg string, kv ...string) Layer {
		l := Layer{Name: name, Arg: arg}
		for i := 0; i < len(kv); i += 2 {
			l.Options = append(l.Options, Option{kv[i], kv[i+1]})
		}
		return l
	}
	for _, c := range []struct {
		text   string
		source string
		layers []Layer
	}{
		{`disk.qcow2`, `disk.qcow2`, nil},
		{`-`, `-`, nil},
		{`https://host/rhel.ova.xz::xz::ova=disk1.vmdk::vmdk`, `https://host/rhel.ova.xz`,
			[]Layer{layer("xz", ""), layer("ova", "disk1.vmdk"), layer("vmdk", "")}},
		{`disk.raw.gz::gz::part=2::luks,key-file=k`, `disk.raw.gz`, []Layer{layer("gz", ""), layer("part", "2"), layer("luks", "", "key-file", "k")}},
		{`d::part=name=root,strict=on`, `d`, []Layer{layer("part", "name=root", "strict", "on")}},
		{`d::window,offset=1M,size=`, `d`, []Layer{layer("window", "", "offset", "1M", "size", "")}},
		{`C:\images\disk.img`, `C:\images\disk.img`, nil},
		{`C:\images\disk.img::raw`, `C:\images\disk.img`, []Layer{layer("raw", "")}},
		{`\\.\PhysicalDrive0::raw`, `\\.\PhysicalDrive0`, []Layer{layer("raw", "")}},
		{`d::luks,key-file=C:\k`, `d`, []Layer{layer("luks", "", "key-file", `C:\k`)}},
		{`nbd://[::1]:10809/x::qcow2`, `nbd://[::1]:10809/x`, []Layer{layer("qcow2", "")}},
		{`[ nbdkit file x::y,z ]::raw`, `[ nbdkit file x::y,z ]`, []Layer{layer("raw", "")}},
		{`[a [b::c] d]::raw`, `[a [b::c] d]`, []Layer{layer("raw", "")}},
		{`a[b::raw`, `a[b`, []Layer{layer("raw", "")}},
		{`a]b::raw`, `a]b`, []Layer{layer("raw", "")}},
		{`a\::b`, `a::b`, nil},
		{`a\::b::raw`, `a::b`, []Layer{layer("raw", "")}},
		{`a,b::raw`, `a,b`, []Layer{layer("raw", "")}},
		{`a\,b`, `a\,b`, nil},
		{`d::part=name=a\,b,x=c\::d`, `d`, []Layer{layer("part", "name=a,b", "x", "c::d")}},
		{`d::x=[a,b],y=[::]`, `d`, []Layer{layer("x", "[a,b]", "y", "[::]")}},
		{`a:::raw`, `a:`, []Layer{layer("raw", "")}},
		{`a:::::raw`, `a:::`, []Layer{layer("raw", "")}},
	} {
		got, err := Parse(c.text)
		want := Spec{c.source, c.layers}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", c.text, got, err, want)
			continue
		}
		if again, err := Parse(got.String()); err != nil || !reflect.DeepEqual(again, want) {
			t.Errorf("%q prints as %q, which reads as %+v, %v", c.text, got, again, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                 "names no image",
		"::raw":                            "names no image",
		"a::":                              `"" is not the name of a layer`,
		"a::b c":                           `"b c" is not the name`,
		"a::gz=":                           "nothing after its =",
		"a::=x":                            `"" is not the name`,
		"a::window,offset":                 `option "offset" is not of the form`,
		"a::window,=1":                     `option "=1" is not of the form`,
		"a::window,":                       `option "" is not of the form`,
		"a::window,size=1,size=2":          "size is given twice",
		strings.Repeat("a", maxText+1):     "more than 65536",
		strings.Repeat("[", maxText) + ":": "more than 65536",
	} {
		_, err := Parse(text)
		var u *UsageError
		if !errors.As(err, &u) || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.40q) = %v; want a usage error with %q", text, err, want)
		}
	}
}

// FuzzParse checks that what is parsed prints as a text that parses to the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`disk.raw.gz::gz::part=2::luks,key-file=k`, `a\::b:::raw`, `[a::b]::x=[,],y=\,`, `a[\::]b\\::c`, `C:\x::raw`, `a[::x=]`, `d::x=[[a],b=]`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			var u *UsageError
			if !errors.As(err, &u) {
				t.Fatalf("%v is not a usage error", err)
			}
			return
		}
		printed := s.String()
		again, err := Parse(printed)
		if len(printed) > maxText {
			return // escapes have made it longer
		}
		if err != nil || !reflect.DeepEqual(s, again) {
			t.Fatalf("%q is %+v, prints as %q, which is %+v, %v", text, s, printed, again, err)
		}
	})
}
