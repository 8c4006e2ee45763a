// Package deflate writes the DEFLATE format of RFC 1951: raw, as zlib (RFC 1950) and as gzip (RFC 1952).
//
// An [Encoder] compresses pieces that lie in memory, each on its own or after a dictionary: the chunks of an image, the clusters of a
// virtual disk. A [Writer] compresses a stream of any length. [Zeros] gives the form of any number of zero bytes without making them.
//
// The output depends on the input and the [Options] alone: not on what was compressed before, nor on the machine. Nothing is shared
// between encoders; each is for one goroutine at a time.
//
// Inside, a matcher (one for each class of levels) turns bytes into tokens, each a run of literals and a match; the tokens of a part of
// the input are cut into blocks where their statistics change; each block is written in the smallest of the three forms there are.
package deflate
