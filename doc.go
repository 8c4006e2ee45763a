// Package imgtool is the root of a toolkit for disk images. It holds no code: this page says what the concepts are, and where each lives.
//
// # The device
//
// Every image, be it a local file, raw or compressed, a partition of a disk, or any nesting of these, is opened as one thing: a sparse block
// device, [github.com/imgtool/imgtool/block.Device]. It has a size, it reads and perhaps writes at any byte, and it knows where it holds data.
// What imgtool does to images is written over that interface, and so works on every kind of image and on every nesting of them. A program that
// wants more than the command line offers starts there as well.
//
//   - A source brings bytes: a local file, a disk, standard input. These are the packages below source.
//   - A format gives bytes a meaning: raw, gz. Package formats says what a driver is; each driver has its folder there.
//   - A partition, found by package partition, is a window onto a device.
//   - A chain, parsed and opened by package chain, is text that names all of these, from the bytes outward.
//   - Package convert copies any device to any target.
//   - Package segment writes what is planned from front to back, on all processors.
//
// # Modifiable images
//
// A compressed image is read-only to most tools. Package gzipmod makes files that every gzip program reads, and in which chosen
// partitions or ranges can be changed in place, in the time that the change takes and not in that of compressing the image.
//
// # Chains
//
// Wherever a command takes an image it takes a chain, read from left to right:
//
//	SOURCE[::LAYER[=ARG][,KEY=VALUE]...]...
//
//	disk.raw.gz                                    opened by what its bytes are
//	disk.raw.gz::gz::raw                           every layer named
//	disk.raw.gz::gz::part=2                        the second partition
//	disk.raw.gz::gz::part=name=boot                the partition named boot
//	disk.raw::window,offset=1M,size=64k            any range of a disk
//	-                                              standard input or output
//
// What is not named is found by looking at the bytes, through compression and archives only. The first disk format ends the search, raw among them: what
// lies inside a disk was written by whoever uses the disk, and must not choose how it is opened. Inside brackets nothing is split, and
// `\::` stands for two colons in a name.
//
// # Trust
//
// An image is never trusted. Sizes are checked before memory is taken for them, loops are bounded, damage is reported with the
// structure and the byte where it was found ([github.com/imgtool/imgtool/block.CorruptError]), and other files that an image refers to
// are opened only where a policy allows it.
//
// # Stability
//
// Before version 1 the Go interfaces may change with each minor version, and the changelog says how. Three things stay from the first release on: every file
// that a released imgtool has written can be read by later ones; output depends on its input and options only, never on the number of
// processors; and names and meanings of exit codes, of flags and of the fields of --json do not change, though new ones are added.
package imgtool
