// Package sizes reads and prints numbers of bytes the way people write them.
//
// [ParseSize] and [FormatSize] are pure functions, safe for concurrent use.
package sizes

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// units are the suffixes of a size. Single letters are powers of 1024, as in qemu-img; KiB and KB are what they say.
var units = map[string]int64{
	"": 1, "b": 1, "B": 1,
	"k": 1 << 10, "K": 1 << 10, "KiB": 1 << 10, "kB": 1e3, "KB": 1e3,
	"m": 1 << 20, "M": 1 << 20, "MiB": 1 << 20, "MB": 1e6,
	"g": 1 << 30, "G": 1 << 30, "GiB": 1 << 30, "GB": 1e9,
	"t": 1 << 40, "T": 1 << 40, "TiB": 1 << 40, "TB": 1e12,
	"p": 1 << 50, "P": 1 << 50, "PiB": 1 << 50, "PB": 1e15,
	"e": 1 << 60, "E": 1 << 60, "EiB": 1 << 60, "EB": 1e18,
}

// maxText bounds what ParseSize looks at: no size that fits is longer, short of pointless zeros.
const maxText = 64

// ParseSize returns the number of bytes that s names: digits, perhaps a fraction, then perhaps a unit.
//
//	4096, 512b      bytes
//	64k 1M 5G 2T    powers of 1024 (k K m M g G t T p P e E), and so are KiB MiB GiB TiB PiB EiB
//	1kB 10MB 5GB    powers of 1000 (kB KB MB GB TB PB EB)
//	1.5G            a fraction, where the result is a whole number of bytes
//
// The result is never negative. Anything else, sectors ("100s") and sizes of 8 EiB and more included, is an error that quotes s.
func ParseSize(s string) (int64, error) {
	if len(s) > maxText {
		return 0, fmt.Errorf("size %q...: too long", s[:maxText])
	}
	number := strings.TrimRight(s, "bBkKmMgGtTpPeEi ")
	unit, ok := units[strings.TrimLeft(s[len(number):], " ")]
	if !ok || !isDecimal(number) {
		return 0, fmt.Errorf("size %q: expected a number of bytes, perhaps with a unit such as k, M, G (powers of 1024) or KB, MB, GB (powers of 1000)", s)
	}
	value, _ := new(big.Rat).SetString(number)
	value.Mul(value, new(big.Rat).SetInt64(unit))
	if !value.IsInt() {
		return 0, fmt.Errorf("size %q: not a whole number of bytes", s)
	}
	if !value.Num().IsInt64() {
		return 0, fmt.Errorf("size %q: too large, the most is 2^63-1 bytes", s)
	}
	return value.Num().Int64(), nil
}

// isDecimal reports whether s is digits, with at most one point that has digits on both sides.
func isDecimal(s string) bool {
	whole, fraction, point := strings.Cut(s, ".")
	return isDigits(whole) && (!point || isDigits(fraction))
}

func isDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// FormatSize returns n for people, rounded to two digits after the point, with the exact number behind it: "1.5 GiB (1610612736 bytes)".
// Numbers below 1024 are exact already: "512 bytes". A negative n, a difference, gets a minus sign.
func FormatSize(n int64) string {
	exact := strconv.FormatInt(n, 10) + " bytes"
	if n == 1 || n == -1 {
		exact = strconv.FormatInt(n, 10) + " byte"
	}
	v := float64(n)
	if -1024 < v && v < 1024 {
		return exact
	}
	var name string
	for _, name = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		v /= 1024
		// What would print as 1024.00 is 1 of the next unit.
		if -1023.995 < v && v < 1023.995 {
			break
		}
	}
	text := strings.TrimRight(strconv.FormatFloat(v, 'f', 2, 64), "0")
	return strings.TrimSuffix(text, ".") + " " + name + " (" + exact + ")"
}
