package testimages

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// guid is an identifier in the order in which it is read aloud (RFC 9562).
type guid [16]byte

// guid returns a random one, of version 4.
func (r *random) guid() (g guid) {
	binary.BigEndian.PutUint64(g[:], r.pcg.Uint64())
	binary.BigEndian.PutUint64(g[8:], r.pcg.Uint64())
	g[6] = g[6]&0x0f | 0x40
	g[8] = g[8]&0x3f | 0x80
	return g
}

// String returns the guid in upper case, as partition tables print it.
func (g guid) String() string {
	return fmt.Sprintf("%X-%X-%X-%X-%X", g[0:4], g[4:6], g[6:8], g[8:10], g[10:16])
}

// lower returns the guid in lower case, as file systems print it.
func (g guid) lower() string { return strings.ToLower(g.String()) }

// number returns a volume serial number made from the guid.
func (g guid) number() uint32 { return binary.BigEndian.Uint32(g[:]) }

// serial returns number as it is printed for a FAT.
func (g guid) serial() string { return fmt.Sprintf("%04X-%04X", g.number()>>16, g.number()&0xffff) }
