package qemuimg

import (
	"errors"
	"math/big"
	"strings"
)

// What can be wrong with a size.
var (
	errNotSize   = errors.New("not a size")
	errSizeRange = errors.New("out of range")
)

// parseSize returns the bytes that a size of qemu-img stands for: decimal digits, perhaps with a fraction, or 0x and hexadecimal ones, and perhaps one
// letter of b k m g t p e in either case, for powers of 1024. What a fraction leaves below a byte is dropped.
func parseSize(text string) (int64, error) {
	s := strings.TrimPrefix(strings.TrimLeft(text, " \t\n"), "+")
	digits, base := "0123456789", 10
	if rest, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		s, digits, base = rest, "0123456789abcdef", 16
	}
	whole := s[:len(s)-len(strings.TrimLeft(s, digits))]
	s = s[len(whole):]
	if whole == "" || len(whole) > 64 {
		return 0, errNotSize
	}
	n, _ := new(big.Int).SetString(whole, base)
	value := new(big.Rat).SetInt(n)
	fraction := ""
	if base == 10 && strings.HasPrefix(s, ".") {
		fraction = s[1 : len(s)-len(strings.TrimLeft(s[1:], digits))]
		s = s[1+len(fraction):]
	}
	if len(fraction) > 64 {
		return 0, errNotSize
	}
	if fraction != "" {
		f, _ := new(big.Rat).SetString("0." + fraction)
		value.Add(value, f)
	}
	shift := 0
	if s != "" {
		shift = strings.IndexByte("bkmgtpe", s[0]|0x20)
	}
	switch {
	case len(s) > 1, shift < 0, base == 16 && s != "", shift == 0 && !value.IsInt():
		return 0, errNotSize
	}
	value.Mul(value, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), uint(10*shift))))
	bytes := new(big.Int).Quo(value.Num(), value.Denom())
	if !bytes.IsInt64() {
		return 0, errSizeRange
	}
	return bytes.Int64(), nil
}

// sizeOf returns a size that is called name in errors.
func sizeOf(name, text string) (int64, error) {
	n, err := parseSize(text)
	switch {
	case errors.Is(err, errSizeRange):
		return 0, wrong("Invalid %s specified. Must be between 0 and 9223372036854775807.", name)
	case err != nil:
		return 0, wrong("Invalid %s specified. You may use k, M, G, T, P or E suffixes for\n"+
			"qemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.", name)
	}
	return n, nil
}
