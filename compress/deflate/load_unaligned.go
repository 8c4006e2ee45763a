//go:build amd64 || arm64

package deflate

import "unsafe"

// The loads of a matcher are its inner loop, and the two bounds checks of each cost a quarter of its speed. These are the only places of the
// package where memory is read unchecked: i >= 0 and i+4, or i+8, <= len(s) is for the caller to see to.

func load32(s []byte, i int) uint32 {
	return *(*uint32)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(s)), i))
}

func load64(s []byte, i int) uint64 {
	return *(*uint64)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(s)), i))
}
