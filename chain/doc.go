// Package chain turns text into devices: what users write wherever a command takes an image.
//
//	SOURCE[::LAYER[=ARG][,key=value]...]...
//
// It is read from left to right, from the bytes outward. The source says where bytes come from; every layer is put over what stands to
// the left of it. [Open] opens such a text, [Create] makes what a text names as a target, [Parse] only reads it.
//
//	disk.img                        a file; its format is found by its bytes
//	disk.img.gz                     the image inside the gzip, found in the same way
//	disk.img.gz::raw                the bytes of the gzip
//	disk.img.gz::gz::part=2         partition 2 of the disk in a gzip, every layer named
//	disk.img::window,offset=1M,size=64M
//	-                               standard input
//	null:1G pattern:64M memory:1G   devices without a file
//
// # Sniffing
//
// Formats that are not written are found by the first bytes, in the order of the registry. That goes on only through transport wrappers
// (gz, xz, tar ...). The first disk format or raw ends it, because what lies inside a disk is written by its guest, who must not
// choose how the host reads it. A format that is written is applied to what stands to the left of it, with nothing guessed in between; after
// a view of a disk (part, window) nothing is sniffed either.
//
// # Text that holds the signs of the grammar
//
// What stands inside [...] is never split. \:: stands for :: and, in a layer, \, for a comma; elsewhere a backslash is itself, so
// that Windows paths work. Of more than two colons in a row the last two split. A file whose name looks like another kind of source
// is written as ./name.
package chain
