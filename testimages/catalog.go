package testimages

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// entry is a file to be made.
type entry struct {
	content
	part int // index of its partition
	path string
	mode uint16
	link string // what it points to, for a symbolic link
}

// catalog lists the files of a disk, in order of partition and path.
type catalog struct {
	words *words
	rng   *random // names and sizes
	seeds *random // of content
	files []*entry
	data  int64 // bytes of content so far
}

// newCatalog decides which files there are: first those of the boot partitions, then as many on the root as make up o.Data.
func newCatalog(w *words, o DiskOptions, parts []Partition) *catalog {
	c := &catalog{words: w, rng: newRandom(o.Seed, streamCatalog), seeds: newRandom(o.Seed, streamSeeds)}
	c.esp(o)
	c.boot(o, parts)
	c.root(o, parts)
	slices.SortStableFunc(c.files, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.part, b.part), strings.Compare(a.path, b.path))
	})
	return c
}

// in returns the files of a partition.
func (c *catalog) in(part int) []*entry {
	from, _ := slices.BinarySearchFunc(c.files, part, func(f *entry, part int) int { return cmp.Compare(f.part, part) })
	to, _ := slices.BinarySearchFunc(c.files, part+1, func(f *entry, part int) int { return cmp.Compare(f.part, part) })
	return c.files[from:to]
}

// add lists a file of made-up content.
func (c *catalog) add(part int, path string, k kind, size int64, magic string) {
	mode := uint16(0o644)
	if k == program {
		mode = 0o755
	}
	c.put(&entry{part: part, path: path, mode: mode, content: content{kind: k, seed: c.seeds.pcg.Uint64(), size: size, magic: magic}})
}

// write lists a file whose content is given.
func (c *catalog) write(part int, path, text string) {
	c.put(&entry{part: part, path: path, mode: 0o644, content: content{kind: literal, size: int64(len(text)), bytes: []byte(text)}})
}

// symlink lists a symbolic link.
func (c *catalog) symlink(part int, path, target string) {
	c.put(&entry{part: part, path: path, link: target})
}

func (c *catalog) put(f *entry) {
	c.files = append(c.files, f)
	c.data += f.size
}

// What files start with, so that tools tell them apart.
const (
	magicELF  = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x3e\x00\x01\x00\x00\x00"
	magicPE   = "MZ\x00\x00"
	magicGzip = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03"
	magicXZ   = "\xfd7zXZ\x00\x00\x04"
	magicZstd = "\x28\xb5\x2f\xfd"
	magicPNG  = "\x89PNG\r\n\x1a\n"
)

const kernelVersion = "6.12.0-1-amd64"

// esp lists the files of the EFI system partition.
func (c *catalog) esp(o DiskOptions) {
	size := min(o.Data/256, 3*mib)
	c.add(espPart, "EFI/BOOT/BOOTX64.EFI", program, size, magicPE)
	c.add(espPart, "EFI/BOOT/FBX64.EFI", program, 84*kib, magicPE)
	c.add(espPart, "EFI/LINUX/GRUBX64.EFI", program, size, magicPE)
	c.add(espPart, "EFI/LINUX/MMX64.EFI", program, size/4, magicPE)
	c.write(espPart, "EFI/LINUX/GRUB.CFG", "search.fs_label boot root\nset prefix=($root)/grub\nconfigfile $prefix/grub.cfg\n")
	c.write(espPart, "EFI/LINUX/BOOTX64.CSV", "shimx64.efi,Linux,,made for tests\n")
}

// boot lists the files of the boot partition.
func (c *catalog) boot(o DiskOptions, parts []Partition) {
	c.add(bootPart, "vmlinuz-"+kernelVersion, packed, min(max(o.Data/64, 1*mib), 14*mib), magicPE)
	c.add(bootPart, "initrd.img-"+kernelVersion, packed, min(max(o.Data/32, 2*mib), 40*mib), magicZstd)
	c.add(bootPart, "System.map-"+kernelVersion, text, min(o.Data/512, 4*mib), "")
	c.add(bootPart, "config-"+kernelVersion, text, 120*kib, "")
	c.add(bootPart, "grub/fonts/unicode.pf2", packed, 64*kib, "FILE")
	for _, name := range []string{"boot", "ext2", "fat", "gzio", "linux", "normal", "part_gpt", "search", "test"} {
		c.add(bootPart, "grub/x86_64-efi/"+name+".mod", program, c.rng.between(2*kib, 64*kib), magicELF)
	}
	c.symlink(bootPart, "vmlinuz", "vmlinuz-"+kernelVersion)
	c.symlink(bootPart, "initrd.img", "initrd.img-"+kernelVersion)
	root := parts[rootPart].UUID
	c.write(bootPart, "grub/grub.cfg", grubConfig(root))
	c.write(bootPart, "loader/entries/linux-1.conf", loaderEntry("Linux "+kernelVersion, root, ""))
	c.write(bootPart, "loader/entries/linux-0-rescue.conf", loaderEntry("Linux "+kernelVersion+" (rescue)", root, " systemd.unit=rescue.target"))
}

// Platform is the kernel argument that every boot entry has, and that tests and demos patch.
const Platform = "ignition.platform.id=metal"

// loaderEntry returns a boot entry of the Boot Loader Specification. Spare room at the end lets arguments grow in place.
func loaderEntry(title, root, extra string) string {
	return "title " + title + "\n" +
		"version " + kernelVersion + "\n" +
		"linux /vmlinuz-" + kernelVersion + "\n" +
		"initrd /initrd.img-" + kernelVersion + "\n" +
		"options root=UUID=" + root + " ro console=tty0 console=ttyS0,115200n8 " + Platform + extra + "\n" +
		strings.Repeat("#", 255) + "\n"
}

func grubConfig(root string) string {
	return "set default=0\nset timeout=1\ninsmod part_gpt\ninsmod ext2\nsearch --no-floppy --label boot --set=root\n\n" +
		"menuentry 'Linux' {\n\tlinux /vmlinuz-" + kernelVersion + " root=UUID=" + root + " ro console=ttyS0,115200n8 " + Platform + "\n" +
		"\tinitrd /initrd.img-" + kernelVersion + "\n}\n"
}

// class is a kind of file that a root file system has many of.
type class struct {
	share     int64  // of the bytes, in thousandths
	path      string // {pkg} stands for a package's name, {name} for the file's
	kind      kind
	low, high int64 // bytes
	magic     string
}

// classes returns what a root file system consists of: by bytes more than half of it programs, and a fifteenth compressed already.
func classes() []class {
	return []class{
		{210, "usr/lib/x86_64-linux-gnu/lib{name}.so.1", program, 16 * kib, 4 * mib, magicELF},
		{140, "usr/bin/{name}", program, 8 * kib, 2 * mib, magicELF},
		{120, "usr/lib/modules/" + kernelVersion + "/kernel/{pkg}/{name}.ko", program, 8 * kib, 256 * kib, magicELF},
		{110, "usr/lib/python3/dist-packages/{pkg}/{name}.py", text, 512, 64 * kib, "#!/usr/bin/python3\n"},
		{100, "usr/share/doc/{pkg}/{name}", text, 512, 64 * kib, ""},
		{100, "var/lib/{pkg}/{name}.db", program, 64 * kib, 16 * mib, "SQLite format 3\x00"},
		{60, "var/log/{name}.log", text, 64 * kib, 4 * mib, ""},
		{98, "usr/share/{pkg}/{name}.json", records, 1 * kib, 1 * mib, ""},
		{4, "etc/{pkg}/{name}.conf", text, 64, 4 * kib, ""},
		{14, "usr/share/man/man1/{name}.1.gz", packed, 512, 16 * kib, magicGzip},
		{20, "usr/share/{pkg}/icons/{name}.png", packed, 1 * kib, 64 * kib, magicPNG},
		{24, "usr/lib/firmware/{pkg}/{name}.bin.xz", packed, 16 * kib, 2 * mib, magicXZ},
	}
}

const (
	packages = 200  // whose names occur in paths
	thousand = 1000 // what the shares of classes add up to
)

// root lists the files of the root partition, until the disk has o.Data bytes.
func (c *catalog) root(o DiskOptions, parts []Partition) {
	for _, dir := range []string{"bin", "lib"} {
		c.symlink(rootPart, dir, "usr/"+dir)
	}
	c.write(rootPart, "etc/hostname", "localhost\n")
	c.write(rootPart, "etc/os-release", "ID=imgtool\nNAME=\"imgtool test image\"\nVERSION_ID=1\n")
	c.write(rootPart, "etc/fstab", fmt.Sprintf("UUID=%s / ext4 defaults 0 1\nUUID=%s /boot ext4 defaults 0 2\nUUID=%s /boot/efi vfat umask=0077 0 2\n",
		parts[rootPart].UUID, parts[bootPart].UUID, parts[espPart].UUID))
	total := o.Data - c.data
	for _, cl := range classes() {
		left := total / thousand * cl.share
		for n := 0; left > 0; n++ {
			// A number makes the name the only one of its class.
			name := fmt.Sprintf("%s%d", c.words.word[c.rng.below(len(c.words.word))], n)
			pkg := c.words.word[c.rng.below(packages)]
			path := strings.NewReplacer("{pkg}", pkg, "{name}", name).Replace(cl.path)
			size := min(c.rng.between(cl.low, cl.high), left)
			c.add(rootPart, path, cl.kind, size, cl.magic)
			left -= size
		}
	}
	// What the divisions have left.
	c.add(rootPart, "usr/share/dict/words", text, o.Data-c.data, "")
}
