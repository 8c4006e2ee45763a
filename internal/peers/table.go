package peers

// packages maps each program that a test may need to the Debian package that brings it.
// The names hold for Debian 12 and later and for Ubuntu 24.04 and later.
var packages = map[string]string{
	// Disk images and NBD.
	"qemu-img":            "qemu-utils",
	"qemu-io":             "qemu-utils",
	"qemu-nbd":            "qemu-utils",
	"nbdkit":              "nbdkit",
	"nbdcopy":             "libnbd-bin",
	"nbdinfo":             "libnbd-bin",
	"nbddump":             "libnbd-bin",
	"nbdfuse":             "libnbd-bin",
	"nbdsh":               "python3-libnbd",
	"nbd-server":          "nbd-server",
	"nbd-client":          "nbd-client",
	"fio":                 "fio",
	"fusermount3":         "fuse3",
	"certtool":            "gnutls-bin",
	"psktool":             "gnutls-bin",
	"gnutls-cli":          "gnutls-bin",
	"gnutls-serv":         "gnutls-bin",
	"qemu-storage-daemon": "qemu-system-common",
	"cryptsetup":          "cryptsetup-bin",

	// Compressors and archivers.
	"gzip":              "gzip",
	"pigz":              "pigz",
	"igzip":             "isal",
	"libdeflate-gzip":   "libdeflate-tools",
	"libdeflate-gunzip": "libdeflate-tools",
	"bgzip":             "tabix",
	"dictzip":           "dictzip",
	"bzip2":             "bzip2",
	"xz":                "xz-utils",
	"zstd":              "zstd",
	"7zz":               "7zip",
	"tar":               "tar",
	"busybox":           "busybox",

	// Partition tables.
	"sgdisk": "gdisk",
	"sfdisk": "fdisk",
	"parted": "parted",
	"blkid":  "util-linux",

	// File systems.
	"mke2fs":     "e2fsprogs",
	"e2fsck":     "e2fsprogs",
	"debugfs":    "e2fsprogs",
	"dumpe2fs":   "e2fsprogs",
	"mkfs.fat":   "dosfstools",
	"fsck.fat":   "dosfstools",
	"mcopy":      "mtools",
	"mdir":       "mtools",
	"mtype":      "mtools",
	"minfo":      "mtools",
	"mksquashfs": "squashfs-tools",
	"unsquashfs": "squashfs-tools",
	"mkfs.xfs":   "xfsprogs",
	"mkfs.btrfs": "btrfs-progs",

	// Around a test.
	"python3": "python3",
	"openssl": "openssl",
	"strace":  "strace",
	"mkswap":  "util-linux",

	// For `make soak` alone, see soak.
	"qemu-system-x86_64": "qemu-system-x86",
}

// soak holds the programs that only `make soak` uses: `make test` does not install them, because they are large.
var soak = map[string]bool{
	"qemu-system-x86_64": true,
}

// SoakOnly reports whether only `make soak` uses a program.
func SoakOnly(program string) bool { return soak[program] }
