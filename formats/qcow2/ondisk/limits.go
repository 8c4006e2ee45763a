package ondisk

// Limits of what is accepted. They are those of QEMU, so that what opens here opens there.
const (
	MinClusterBits = 9
	MaxClusterBits = 21

	MaxL1Bytes            = 32 << 20 // of one L1 table
	MaxRefcountTableBytes = 8 << 20
	MaxRefcountOrder      = 6 // 64 bits

	MaxNameLen = 1023 // of a backing file or a bitmap, in bytes

	MaxSnapshots          = 65536
	MaxSnapshotTableBytes = 64 << 20
	MaxSnapshotExtra      = 1024

	MaxBitmaps               = 65535
	MaxBitmapDirectoryBytes  = MaxBitmaps * 1024
	MinBitmapGranularityBits = 9
	MaxBitmapGranularityBits = 31
	MaxBitmapTableBytes      = 32 << 20 // of one bitmap's table
)
