// Package plan makes qcow2 images from front to back: [New] from a device, [NewStream] from a stream, [Empty] without data. Each returns a
// plan for segment.Write. [Measure] says how long the file gets.
//
// The file is the header's cluster, then the data in the order of the disk with the L2 tables that lead to it, at its end or after every
// tablesHeld bytes of them, with the refcount blocks that are full by then; last the L1 table, the remaining refcount blocks and the refcount table. What
// leads to data always lies behind it, so that one pass over the source makes the file, in memory that does not grow with it. Compressed
// clusters lie back to back, and those that do not shrink as they are, at a cluster boundary.
//
// The header names the places at the end. In a file it is written last. For a pipe the places have to be known first:
//
//   - Plain data: the extents of the source tell them. Zeros that the source does not know of stay data, so that it is read once.
//   - Compressed: the source is compressed twice, the first time only to learn how long everything gets. What fits into CreateOptions.Memory is
//     kept from the first time. The file is the same, byte for byte, as one that is not written to a pipe.
//
// Images do not depend on the number of workers, on memory, or on how the source cuts its extents. A source that changes while it is read gives
// an image of some mixture of its states, and an error where that does not fit what has been written already.
package plan
