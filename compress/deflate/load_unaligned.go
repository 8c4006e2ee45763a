//go:build amd64 || arm64

package deflate

import "unsafe"

// The loads of a matcher are its inner loop, and their bounds checks cost it a tenth of its speed. These two functions read unchecked:
// 0 <= i and i+4, or i+8, <= len(s) is for the caller to see to.

func load32(s []byte, i int) uint32 {
	return *(*uint32)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(s)), i))
}

func load64(s []byte, i int) uint64 {
	return *(*uint64)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(s)), i))
}
