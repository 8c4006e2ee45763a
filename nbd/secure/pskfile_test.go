package secure

import (
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
)

func TestParsePSK(t *testing.T) {
	for _, test := range []struct {
		text string
		want map[string]string
		err  string
	}{
		{"alice:00ff\n", map[string]string{"alice": "00ff"}, ""},
		{"alice:00FF", map[string]string{"alice": "00ff"}, ""},
		{"# a comment\r\n\r\nalice:00ff\r\n  \nbob b:01 \t\n", map[string]string{"alice": "00ff", "bob b": "01"}, ""},
		{"#616c3a6963:00ff\n", map[string]string{"al:ic": "00ff"}, ""},
		{"# see also: the manual\na:01", map[string]string{"a": "01"}, ""},
		{"#:01\na:01", map[string]string{"a": "01"}, ""},
		{"", nil, "there is no key"},
		{"#\n", nil, "there is no key"},
		{"a:01\nalice\n", nil, "line 2: there is no colon"},
		{"a:01\n\n:c0ffee\n", nil, "line 3: there is no identity"},
		{"a:c0ffee5\n", nil, `line 1: the key of "a" is not hexadecimal`},
		{"a:c0ffeesecret\n", nil, `line 1: the key of "a" is not hexadecimal`},
		{"a:c0ffee:c0ffee\n", nil, `line 1: the key of "a" is not hexadecimal`},
		{"a:\n", nil, `line 1: the key of "a" is empty`},
		{"a:c0ffee\nb:01\na:01\n", nil, `line 3: identity "a" has a key on line 1 already`},
		{"a:" + strings.Repeat("c0ffee", 1000), nil, "longer than 1024 bytes"},
		{strings.Repeat("a", 2000) + ":c0ffee", nil, "longer than 1024 bytes"},
	} {
		keys, err := parsePSK([]byte(test.text))
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%.40q: got %v, want an error with %q", test.text, err, test.err)
			} else if strings.Contains(err.Error(), "c0") {
				t.Errorf("%.40q: the error shows the key: %v", test.text, err)
			}
			continue
		}
		got := map[string]string{}
		for identity, key := range keys {
			got[identity] = fmt.Sprintf("%x", key)
		}
		if err != nil || !maps.Equal(got, test.want) {
			t.Errorf("%.40q: got %v, %v, want %v", test.text, got, err, test.want)
		}
	}
}

// TestPsktool reads what psktool writes.
func TestPsktool(t *testing.T) {
	name := filepath.Join(t.TempDir(), "keys")
	for _, identity := range []string{"alice", "with:colon", "with space", "ümlaut"} {
		peers.Run(t, "psktool", "-u", identity, "-s", "24", "-p", name)
		keys, err := readPSK(name)
		if err != nil || len(keys[identity]) != 24 {
			t.Errorf("%q has a key of %d bytes, %v", identity, len(keys[identity]), err)
		}
	}
	if _, err := readPSK(name + "x"); err == nil || !strings.Contains(err.Error(), name+"x") {
		t.Errorf("a file that is missing: %v", err)
	}
}

func FuzzParsePSK(f *testing.F) {
	f.Add([]byte("# c\r\nalice:00ff\n#6162:01\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := parsePSK(data)
		if (err == nil) != (len(keys) > 0) {
			t.Fatalf("%d keys and error %v", len(keys), err)
		}
		for identity, key := range keys {
			if identity == "" || len(key) == 0 {
				t.Fatalf("identity %q has a key of %d bytes", identity, len(key))
			}
		}
	})
}
