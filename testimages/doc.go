// Package testimages makes disk images for tests, demonstrations and benchmarks: the recipe is kept, not the bytes.
//
// [Disk] writes a whole disk to any device: a GPT, a FAT32 EFI system partition, an ext4 boot partition and an ext4 root partition, filled
// with generated files until it has the size, the shape and the compressibility of an installed Linux: about 3:1 by gzip -6, data in
// scattered runs, most of it unallocated. The [Manifest] it returns lists every file with its SHA-256, and where on the disk it lies.
//
// The same [DiskOptions] make the same bytes, on every system and in every release whose tests pass: a test pins the checksum. Nothing
// depends on the clock, the environment, the number of processors or the order in which they work. What is never written stays a hole, so that
// a disk of 64 TiB costs little more than its data.
//
// The file systems are written by the packages ext4 and fat below this one, rather than by go-diskfs, whose file systems are made to be
// changed: they take identifiers and time stamps from random numbers and the clock or the environment, rewrite their tables with every
// file, and have no way to say where content should lie. Ours are written once, and cost no more than what they hold.
//
// Functions of this package may be called from many goroutines, for different devices.
package testimages
