package main

import (
	"maps"
	"math"
	"testing"
)

func TestParseOptions(t *testing.T) {
	values, help, err := parseOptions([]string{"a=b,c=d,,e=f", "a=,g=h"})
	if want := map[string]string{"a": "", "c": "d,e=f", "g": "h"}; err != nil || help || !maps.Equal(values, want) {
		t.Errorf("%v, %v, %v", values, help, err)
	}
	for _, list := range []string{"help", "?", "a=b,help"} {
		if _, help, err := parseOptions([]string{list}); err != nil || !help {
			t.Errorf("%s: %v, %v", list, help, err)
		}
	}
	for _, list := range []string{"", "a", "=b", "a=b,", ",a=b"} {
		if _, _, err := parseOptions([]string{list}); err == nil {
			t.Errorf("%q is accepted", list)
		}
	}
}

func TestParseChange(t *testing.T) {
	for text, want := range map[string][2]int64{"1M": {0, 1 << 20}, "+1k": {1, 1024}, "-3": {-1, 3}} {
		if sign, n, err := parseChange(text); err != nil || sign != want[0] || n != want[1] {
			t.Errorf("%s: %d, %d, %v", text, sign, n, err)
		}
	}
	for _, text := range []string{"", "+", "--1", "+-1", "x", "-8E"} {
		if _, _, err := parseChange(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// TestShortSize has what qemu-img prints.
func TestShortSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "0.977 KiB", 1023: "0.999 KiB", 1536: "1.5 KiB", 200 << 20: "200 MiB", 1234567890: "1.15 GiB", math.MaxInt64: "8 EiB",
	} {
		if got := shortSize(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// TestPrintable keeps what an image says of itself from steering the terminal.
func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"base.qcow2": "base.qcow2", "a b": "a b", "Bär": "Bär", "\x1b[2J": `"\x1b[2J"`, "a\nb": `"a\nb"`, "\xff": `"\xff"`, "\u202e": `"\u202e"`,
	} {
		if got := printable(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
