// Package crcmath computes with CRC-32 values as what they are: polynomials modulo P.
//
// The CRC of A followed by B, of a billion zeros, or of a long text of which a few bytes changed, follows from CRCs and lengths alone, in
// microseconds and without the bytes. Everything here is for the polynomial of RFC 1952 (hash/crc32's IEEE table), reflected: bit 31 of a
// value is the coefficient of x^0.
package crcmath

import "hash/crc32"

// one is the polynomial 1.
const one = 1 << 31

// Operator is x^(8n) modulo P: it moves a CRC across n bytes.
type Operator uint32

// powers holds x^(2^k) mod P for k = 0..31. The order of x divides 2^32-1, so that x^(2^32) is x again and the table repeats.
var powers = func() (t [32]uint32) {
	p := uint32(one >> 1)
	for k := range t {
		t[k] = p
		p = multiply(p, p)
	}
	return t
}()

// multiply returns a*b mod P.
func multiply(a, b uint32) uint32 {
	var product uint32
	for m := uint32(one); m != 0; m >>= 1 {
		if a&m != 0 {
			product ^= b
			if a&(m-1) == 0 {
				break
			}
		}
		carry := b & 1
		b >>= 1
		b ^= crc32.IEEE & -carry
	}
	return product
}

// Across returns the operator that moves a CRC across n bytes, n >= 0.
func Across(n int64) Operator {
	p := uint32(one)
	for k := 3; n > 0; k, n = k+1, n>>1 {
		if n&1 != 0 {
			p = multiply(powers[k%32], p)
		}
	}
	return Operator(p)
}

// Shift returns delta moved across the operator's bytes. A delta is the XOR of the CRCs of two texts of the same length; moved
// across n bytes it is the XOR of the CRCs of the two texts when the same n bytes follow each.
func (o Operator) Shift(delta uint32) uint32 { return multiply(uint32(o), delta) }

// Combine returns the CRC-32 of A followed by B, where B is n bytes long.
func Combine(a, b uint32, n int64) uint32 { return Across(n).Shift(a) ^ b }

// Zeros returns the CRC-32 of n zero bytes.
func Zeros(n int64) uint32 { return ^Across(n).Shift(^uint32(0)) }
