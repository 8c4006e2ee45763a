//go:build !amd64 && !arm64

package deflate

import "encoding/binary"

func load32(s []byte, i int) uint32 { return binary.LittleEndian.Uint32(s[i:]) }
func load64(s []byte, i int) uint64 { return binary.LittleEndian.Uint64(s[i:]) }
