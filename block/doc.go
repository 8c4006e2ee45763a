// Package block defines the one thing that every image is in imgtool: a sparse block device.
//
// A [Device] is an array of bytes with a size, which knows where it holds data and where it does not. A local
// file, a partition, a compressed image, a remote export: all are Devices, and whatever is written against Device
// works over all of them and over any nesting.
//
// Start with [Device]: the comments on its methods are the contract, and package blocktest checks it. Then see the
// three types that layers embed:
//
//   - [Filter]: the same bytes at the same addresses; everything it does not override is forwarded.
//   - [Window]: a range of another device; every address is moved and clipped.
//   - [Transform]: other bytes at the same addresses; nothing can reach the lower device's bytes around it.
//
// Readers that cannot write embed [ReadOnly]. [At] gives the io.ReaderAt and io.WriterAt that other Go libraries take.
//
// [Memory], [NewNull] and [NewPattern] are devices of their own; [Concat], [NewOverlay] and [Align] are made of others. [Calls] does for
// a driver what Close asks: it waits for calls in flight, and refuses later ones.
//
// Sources that have no size and go one way only are a [Stream].
//
// # Ownership
//
// A device that wraps another owns it: Close closes the whole stack. Wrap with [NoClose] what must outlive its user.
//
// # Concurrency
//
// Every method of every Device may be called from many goroutines at once. Overlapping writes may land in either
// order, byte by byte; a device's own metadata is never damaged by them. A caller's buffer is used only until the
// call returns.
package block
