// Package wire holds the NBD protocol's numbers, names and frames, in the words of its specification (doc/proto.md of the NBD project).
// It has no behaviour: the server and the client stand on it, and so do tests that send what neither would.
//
// All numbers on the wire are big-endian. A frame type has Put, which fills the first bytes of a slice that is long enough, and a Parse function,
// which reads them from one and checks nothing but magic numbers; both panic where the slice is too short, which is the caller's mistake.
package wire
