// Package gzindex reads foreign gzip files (RFC 1952) at random, as disks.
//
// DEFLATE can be entered only where the decoder's state is known. A [Scanner] decodes a file once from front to back and notes that state at
// points some distance apart: the next bit, the bytes before it that are still referred to, the code of the block. They make an [Index]. A
// [Device] reads at random by decoding from the nearest point on; what lies between two points is a span.
//
// [Open] makes the Device: at once where there is an index already or the file holds a table of its own (BGZF, dictzip, see package
// gzindex/tables), after one pass else, or on trust in a probable size ([GuessSize]) with the index growing as far as reads go.
//
// An Index is kept in a file with [Index.WriteTo] and read with [ReadIndex]; docs/gzindex.md describes that file byte by byte.
//
// # What is promised
//
// A span's content is checked the first time that it is decoded, before any byte of it is given out: against the CRC-32 that the scan
// computed, or the checksum of the members in it, or for dictzip (which has none) the place where the next piece begins. Later reads
// of a part of it decode that part only. So an index that was damaged, belongs to another file or lies gives errors, not wrong bytes.
//
// Memory is bounded by the options, whatever the file says.
package gzindex
