// Package file makes local files and disks block devices.
//
// [Open] opens a regular file or a disk (a block device of the operating system) in place, [New] takes one that is already open.
// [Create] writes a new file under a temporary name beside its target, and renames it when it is whole, so that nobody
// ever sees half an image under the target's name.
//
// # Holes
//
// Where the operating system tells, Extents says which ranges of a file hold data, and Zero and Discard make holes. Resize
// makes one hole of the new bytes. A disk is one run of data: whether it stores a block is not to be learned from it.
//
// # Locks
//
// A writer excludes every other program that uses the image, a reader excludes writers; readers get on with readers. On
// Linux the locks are those of QEMU: byte-range locks of the open file description from byte 100 (what the holder does) and from byte
// 200 (what it does not share with others), one byte per permission, so that qemu-img, a running virtual machine and this package
// keep out of each other's way. On other Unix systems it is flock(2), which only programs that ask for it respect.
// On Windows there are no locks: the share modes that Go opens with let everybody in. A file system that has no locks is used without.
//
// A disk that is mounted, or that another part of the kernel holds, is refused for writing, and so is a file behind a loop device.
package file
