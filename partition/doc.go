// Package partition reads partition tables, GPT and MBR, and says what is in the partitions.
//
// [Read] is the beginning: it returns the [Table] of a disk, or [ErrNone]. [Table.Window] is a partition as a device of its own.
// [Table.ProbeFileSystems] looks at the start of each partition for the type, label and UUID of a file system, which costs reads, so that Read
// does not do it; [Probe] does the same for one device. A [Selector] is how people name partitions and ranges ("2", "name=boot",
// "range=1M+64k"), and [Table.Select] finds what it means on a disk. [WriteGPT] builds the table of a new disk.
//
// A disk is not trusted, and may be damaged. Read is strict about what it uses and survives the rest: what is wrong but does not hide the
// partitions is told in Table.Problems, the backup copy of a GPT steps in for a damaged primary, chains are bounded, and a partition that
// leaves the disk is listed but gets no window. Read touches few bytes, the first 34 sectors of a GPT and the last 33, because a disk may
// be compressed; the cost of Probe is told there.
//
// All offsets and sizes are in bytes. A Table that nobody changes may be read by many goroutines.
//
// References: UEFI Specification 2.10 section 5 (GPT and MBR); the Discoverable Partitions Specification of the UAPI group (type GUIDs).
//
// Tables are parsed here rather than by go-diskfs, because it gives up on the damaged tables that this package is asked to explain.
package partition
