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
//	nbd://host/export               an export of an NBD server
//	[ nbdkit -r file disk.img ]     an NBD server that is started for the purpose
//
// Files, disks, exports, programs, - and null: can be targets as well, without layers. Disks and exports are written in place.
//
// # Sniffing
//
// Formats that are not written are found by the first bytes, in the order of the registry. That goes on only through transport wrappers
// (gz, xz, tar ...). The first disk format or raw ends it, because what lies inside a disk is written by its guest, who must not
// choose how the host reads it. A format that is written is applied to what stands to the left of it, with nothing guessed in between; after
// a view of a disk (part, window) nothing is sniffed either. An NBD export is sniffed as a file is: it mostly holds a raw disk, and ::raw keeps it one
// whatever a guest has written to its beginning. What it refers to then is not followed unless the gate lets everything pass, for it has no folder.
//
// # Programs
//
// [ CMD ARG... ] starts an NBD server with a listening socket, as systemd would (LISTEN_FDS), and takes its default export. The server ends when
// the image is closed, and with this process. It is no shell that reads the words: spaces part them; in '...' every sign stands for itself; in
// "..." all do but " and \, which a backslash before them makes ordinary; elsewhere a backslash does so with any sign. Brackets that
// are not in quotes come in pairs. An image never starts a program, whatever it refers to.
//
// # Text that holds the signs of the grammar
//
// What stands inside [...] is never split. \:: stands for :: and, in a layer, \, for a comma; elsewhere a backslash is itself, so
// that Windows paths work. Of more than two colons in a row the last two split. A file whose name looks like another kind of source
// is written as ./name.
package chain
