package sizes

import (
	"math"
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	good := map[string]int64{
		"0": 0, "1": 1, "007": 7, "512b": 512, "512B": 512,
		"1k": 1024, "1K": 1024, "1KiB": 1024, "1kB": 1000, "1KB": 1000,
		"64 k": 65536, "5G": 5368709120, "5g": 5368709120, "5GiB": 5368709120, "5GB": 5000000000,
		"1.5G": 1610612736, "0.5k": 512, "1.50MB": 1500000, "2T": 2 << 40, "1TB": 1e12, "3P": 3 << 50, "3PB": 3e15, "7E": 7 << 60, "9EB": 9e18,
		"9223372036854775807": math.MaxInt64,
	}
	for s, want := range good {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	bad := map[string]string{
		"": "expected", "k": "expected", "-1": "expected", "+1": "expected", "1s": "expected", "1.": "expected", ".5k": "expected",
		"1e3": "expected", "0x10": "expected", "1 2": "expected", "1kk": "expected", "1mb": "expected", "1Mb": "expected", "1iB": "expected",
		"1_000": "expected", "1/2k": "expected", " 1": "expected", "1.5": "whole", "0.3k": "whole", "7.999E": "whole",
		"8E": "too large", "9223372036854775808": "too large", "10EB": "too large", "99999999999999999999999G": "too large",
		strings.Repeat("0", 100): "too long",
	}
	for s, want := range bad {
		if got, err := ParseSize(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSize(%q) = %d, %v; want an error with %q", s, got, err, want)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 bytes", 1: "1 byte", -1: "-1 byte", 1023: "1023 bytes",
		1024: "1 KiB (1024 bytes)", 1536: "1.5 KiB (1536 bytes)", -1536: "-1.5 KiB (-1536 bytes)",
		5368709120: "5 GiB (5368709120 bytes)", 307090472: "292.86 MiB (307090472 bytes)",
		1<<20 - 1: "1 MiB (1048575 bytes)", 100 << 20: "100 MiB (104857600 bytes)",
		math.MaxInt64: "8 EiB (9223372036854775807 bytes)", math.MinInt64: "-8 EiB (-9223372036854775808 bytes)",
	} {
		if got := FormatSize(n); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", n, got, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1.5G", "5 GiB", "9EB", "-1", "1s", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("ParseSize(%q) = %d", s, n)
		}
		// What is printed names the same number.
		text := FormatSize(n)
		if i := strings.IndexByte(text, '('); i >= 0 {
			text = strings.TrimSuffix(text[i+1:], ")")
		}
		digits, _, _ := strings.Cut(text, " ")
		if again, err := ParseSize(digits); err != nil || again != n {
			t.Fatalf("FormatSize(%d) = %q, which reads as %d, %v", n, text, again, err)
		}
	})
}
