// Package gzipmod makes, reads and changes modifiable gzipped images.
//
// A modifiable image is an ordinary .gz file: one member, readable by every program that reads RFC 1952. Chosen ranges of the image, its
// kept ranges, lie in it as stored blocks, byte for byte. So they can be changed in place, and since CRC-32 is linear the checksums are put
// right from the old bytes, the new bytes and the distance to the end, whatever the size of the image. An index in the header's extra
// field makes the rest readable at random as well. docs/gzipmod.md describes the file byte by byte.
//
// Make a file with [NewLayout] and [Layout.Plan], which package segment writes. [Open] it: the Device that it returns reads everything
// and writes to the kept ranges. [Verify] checks every byte, [Repair] puts the checksums right after a crash in the middle of a change, and
// [Rebuild] makes the index of a file that was written to a pipe.
package gzipmod
