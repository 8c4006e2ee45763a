package partition

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
)

// sfdiskTable is what sfdisk --json prints.
type sfdiskTable struct {
	PartitionTable struct {
		Label, ID  string
		SectorSize int64
		Partitions []struct {
			Node, Type, UUID, Name string
			Start, Size            int64
			Bootable               bool
		}
	}
}

// numberOf returns the digits at the end of a device's name.
var numberOf = regexp.MustCompile(`[0-9]+$`)

// compareSfdisk compares what Read and sfdisk say about a disk with sectors of 512 bytes: sfdisk takes every file for one.
func compareSfdisk(t *testing.T, path string, table *Table) {
	t.Helper()
	var want sfdiskTable
	out := peers.Run(t, "sfdisk", "--json", path)
	if err := json.Unmarshal(out, &want); err != nil {
		t.Fatal(err)
	}
	w := want.PartitionTable
	scheme := map[string]string{"gpt": GPT, "dos": MBR}[w.Label]
	if table.Scheme != scheme || table.DiskGUID+table.DiskSignature != w.ID || len(table.Partitions) != len(w.Partitions) {
		t.Fatalf("%+v\nsfdisk has\n%s", table, out)
	}
	for i, p := range table.Partitions {
		s := w.Partitions[i]
		number, _ := strconv.Atoi(numberOf.FindString(s.Node))
		kind := strings.ToUpper(s.Type)
		if scheme == MBR {
			kind = fmt.Sprintf("0x%02s", kind)
		}
		if p.Number != number || p.Start != s.Start*table.SectorSize || p.Size != s.Size*table.SectorSize || p.TypeID != kind ||
			p.Name != s.Name || !strings.EqualFold(p.GUID, s.UUID) || scheme == MBR && p.Bootable != s.Bootable {
			t.Errorf("partition %+v\nsfdisk has %+v", p, s)
		}
	}
}

// blank returns a new file of zeros.
func blank(t *testing.T, size int64) string {
	t.Helper()
	return newMemory(size).file(t)
}

// script runs sfdisk with commands on its input.
func script(t *testing.T, path, commands string) {
	t.Helper()
	cmd := peers.Command(t, "sfdisk", path)
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
}

func TestSfdiskMBR(t *testing.T) {
	path := blank(t, 200<<20)
	script(t, path, `label: dos
label-id: 0x1234abcd
start=2048, size=20480, type=c, bootable
start=24576, size=40960, type=83
size=200000, type=5
size=20480, type=82
size=30000, type=83
size=10000, type=8e
size=10000, type=fd
type=ef
`)
	table := mustRead(t, openDisk(t, path))
	wantProblems(t, table)
	compareSfdisk(t, path, table)
	if last := table.Partitions[len(table.Partitions)-1]; last.Number != 8 && last.Number != 9 {
		t.Errorf("the last partition is %+v", last)
	}
	// Deleting a logical partition renumbers those behind it.
	peers.Run(t, "sfdisk", "--delete", path, "6")
	table = mustRead(t, openDisk(t, path))
	compareSfdisk(t, path, table)
}

func TestSfdiskGPT(t *testing.T) {
	path := blank(t, 200<<20)
	script(t, path, `label: gpt
label-id: 11111111-2222-4333-8444-555555555555
size=10MiB, type=uefi, name="EFI system"
size=20MiB, type=linux, name="boot", attrs="LegacyBIOSBootable GUID:60"
size=30MiB, type=swap
type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name="größe"
`)
	table := mustRead(t, openDisk(t, path))
	wantProblems(t, table)
	compareSfdisk(t, path, table)
	if p := table.Partitions[1]; p.Attributes != 1<<60|attrLegacyBoot || !p.Bootable {
		t.Errorf("%+v", p)
	}
}

// What WriteGPT writes is a table in good order to others.
func TestOthersReadWriteGPT(t *testing.T) {
	d := sampleDisk(t, 512)
	path := d.file(t)
	compareSfdisk(t, path, mustRead(t, d))
	out := peers.Run(t, "sfdisk", "--verify", path)
	if strings.Contains(string(out), "corrupt") || strings.Contains(string(out), "invalid") {
		t.Errorf("sfdisk --verify:\n%s", out)
	}
	if out := string(peers.Run(t, "sgdisk", "--verify", path)); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk --verify:\n%s", out)
	}
	if out := string(peers.Run(t, "parted", "-s", "-m", path, "unit", "B", "print")); !strings.Contains(out, "\n2:9437184B:26214399B:16777216B:") {
		t.Errorf("parted:\n%s", out)
	}
}

func TestSgdisk(t *testing.T) {
	if testing.Short() {
		t.Skip("sgdisk waits for the disk after each change")
	}
	path := blank(t, 64<<20)
	peers.Run(t, "sgdisk", "-o", "-n", "1:2048:+4M", "-t", "1:ef00", "-c", "1:esp", "-n", "5:0:+8M", "-t", "5:8300", "-n", "128:0:0", "-t", "128:8e00",
		"-U", diskGUID, "-A", "5:set:2", path)
	table := mustRead(t, openDisk(t, path))
	wantProblems(t, table)
	compareSfdisk(t, path, table)

	// Grown, and the backup moved by sgdisk.
	if err := os.Truncate(path, 80<<20); err != nil {
		t.Fatal(err)
	}
	wantProblems(t, mustRead(t, openDisk(t, path)), "has been grown")
	peers.Run(t, "sgdisk", "-e", path)
	wantProblems(t, mustRead(t, openDisk(t, path)))

	// A bigger table: 256 entries.
	peers.Run(t, "sgdisk", "-S", "256", path)
	table = mustRead(t, openDisk(t, path))
	wantProblems(t, table)
	if want := (Range{80<<20 - 33*512 - 16384, 33*512 + 16384}); table.Metadata[1] != want {
		t.Errorf("metadata %v, want %v at the end", table.Metadata, want)
	}

	// A hybrid.
	peers.Run(t, "sgdisk", "-h", "1", path)
	wantProblems(t, mustRead(t, openDisk(t, path)), "hybrid")
}

// Every type that has a short name is known to sfdisk too.
func TestTypesAreKnown(t *testing.T) {
	for label, ids := range map[string][]string{"gpt": gptIDs(), "dos": mbrIDs()} {
		known := strings.ToUpper(string(peers.Run(t, "sfdisk", "--label", label, "--list-types")))
		for _, id := range ids {
			if !regexp.MustCompile(`(?m)^ *` + id + ` `).MatchString(known) {
				t.Errorf("%s type %s is not known to sfdisk", label, id)
			}
		}
	}
	seen := map[string]bool{}
	for id, name := range gptTypes {
		if seen[name] {
			t.Errorf("two GUIDs are called %s", name)
		}
		seen[name] = true
		if g, err := typeGUID(name); err != nil || g.String() != id {
			t.Errorf("%s is %s, not %s: %v", name, g, id, err)
		}
	}
}

func gptIDs() (ids []string) {
	for id := range gptTypes {
		ids = append(ids, id)
	}
	return ids
}

func mbrIDs() (ids []string) {
	for id := range mbrTypes {
		ids = append(ids, fmt.Sprintf("%X", id))
	}
	return ids
}

// blkid asks blkid about a device of its own.
func blkid(t *testing.T, path string) FileSystem {
	t.Helper()
	cmd := peers.Command(t, "blkid", "-p", "-o", "export", path)
	out, err := cmd.Output()
	if err != nil && cmd.ProcessState.ExitCode() != 2 { // 2: nothing was found
		t.Fatalf("blkid: %v", err)
	}
	var fs FileSystem
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.ReplaceAll(value, `\`, "")
		switch key {
		case "TYPE":
			fs.Type = value
		case "LABEL":
			fs.Label = value
		case "UUID":
			fs.UUID = value
		}
	}
	return fs
}

func TestProbeLikeBlkid(t *testing.T) {
	peers.Need(t, "blkid")
	for _, c := range []struct {
		kind    string
		size    int64
		program string
		args    []string // %s is the file
	}{
		{"ext2", 4 << 20, "mke2fs", []string{"-q", "-t", "ext2", "-L", "two", "%s"}},
		{"ext2", 4 << 20, "mke2fs", []string{"-q", "-r", "0", "-O", "none", "%s"}},
		{"ext3", 16 << 20, "mke2fs", []string{"-q", "-t", "ext3", "-L", "a label of 16 ch", "%s"}},
		{"ext4", 16 << 20, "mke2fs", []string{"-q", "-t", "ext4", "-b", "4096", "-L", "four", "%s"}},
		{"ext4", 16 << 20, "mke2fs", []string{"-q", "-t", "ext4", "-O", "^has_journal", "%s"}},
		{"jbd", 16 << 20, "mke2fs", []string{"-q", "-O", "journal_dev", "-L", "log", "%s"}},
		{"vfat", 1440 << 10, "mkfs.fat", []string{"-F", "12", "-n", "FLOPPY", "%s"}},
		{"vfat", 32 << 20, "mkfs.fat", []string{"-F", "16", "-n", "SIXTEEN", "%s"}},
		{"vfat", 64 << 20, "mkfs.fat", []string{"-F", "32", "-n", "THIRTY-TWO", "-i", "0badcafe", "%s"}},
		{"vfat", 64 << 20, "mkfs.fat", []string{"-F", "32", "-S", "4096", "%s"}},
		{"vfat", 64 << 20, "mkfs.fat", []string{"--mbr=y", "%s"}},
		{"swap", 1 << 20, "mkswap", []string{"-L", "swapspace", "%s"}},
		{"crypto_LUKS", 32 << 20, "cryptsetup", []string{"luksFormat", "--batch-mode", "--type", "luks1", "--pbkdf-force-iterations", "1000", "--key-file", "doc.go", "%s"}},
		{"crypto_LUKS", 32 << 20, "cryptsetup", []string{"luksFormat", "--batch-mode", "--type", "luks2", "--label", "secret", "--pbkdf", "pbkdf2",
			"--pbkdf-force-iterations", "1000", "--key-file", "doc.go", "%s"}},
		{"xfs", 320 << 20, "mkfs.xfs", []string{"-q", "-L", "xfslabel", "%s"}},
		{"btrfs", 128 << 20, "mkfs.btrfs", []string{"-q", "-L", "a long label for btrfs", "%s"}},
		{"squashfs", 0, "mksquashfs", []string{"doc.go", "%s", "-quiet", "-no-progress"}},
	} {
		t.Run(c.kind, func(t *testing.T) {
			path := blank(t, c.size)
			args := slices.Clone(c.args)
			args[slices.Index(args, "%s")] = path
			if c.size == 0 {
				args = append(args, "-noappend")
			}
			peers.Run(t, c.program, args...)
			d := openDisk(t, path)
			got, err := Probe(t.Context(), d)
			if want := blkid(t, path); err != nil || got != want || got.Type != c.kind {
				t.Errorf("%v\n%+v, %v\nblkid: %+v", c.args, got, err, want)
			}
			if table, err := Read(t.Context(), d); err == nil {
				t.Errorf("%v: a file system alone reads as a table: %+v", c.args, table)
			}
			// Inside a disk it looks the same.
			w, err := block.NewWindow(d, 0, d.Size()/4096*4096)
			if err != nil {
				t.Fatal(err)
			}
			if inside, err := Probe(t.Context(), w); err != nil || inside.Type != got.Type {
				t.Errorf("%v in a window: %+v, %v", c.args, inside, err)
			}
		})
	}
}

// known are the types that Probe has. What else there is has to be "" rather than one of them.
var known = []string{"ext2", "ext3", "ext4", "jbd", "xfs", "btrfs", "f2fs", "erofs", "squashfs", "swap", "vfat", "exfat", "ntfs", "iso9660", "udf",
	"crypto_LUKS", "LVM2_member", "linux_raid_member", "BitLocker"}

func TestCorpus(t *testing.T) {
	if testing.Short() {
		t.Skip("it unpacks large images")
	}
	var manifest []struct {
		File, Wrap string
		Blkid      string `json:"blkid_expected"`
	}
	corpus := peers.OpenCorpus(t, &manifest)
	seen := 0
	for _, e := range manifest {
		if e.Blkid == "" || e.Wrap != "xz" {
			continue
		}
		seen++
		d := openDisk(t, corpus.Unwrap(t, e.File))
		if strings.Contains(e.Blkid, "PT:") { // tables of other kinds
			if table, err := Read(t.Context(), d); err == nil {
				t.Errorf("%s: %+v", e.File, table)
			}
			continue
		}
		var want FileSystem
		for line := range strings.Lines(e.Blkid) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "ID_FS_TYPE":
				want.Type = value
			case "ID_FS_LABEL_ENC":
				want.Label = unescape(value)
			case "ID_FS_UUID":
				want.UUID = value
			}
		}
		if !slices.Contains(known, want.Type) {
			want = FileSystem{}
		}
		if want.Type == "BitLocker" || want.Type == "udf" { // their labels and UUIDs lie far in
			want.Label, want.UUID = "", ""
		}
		if got, err := Probe(t.Context(), d); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", e.File, got, err, want)
		}
		if limit := int64(probeHead + maxDir + 4*maxChain); d.read > limit {
			t.Errorf("%s: %d bytes were read, more than %d", e.File, d.read, limit)
		}
	}
	if seen == 0 {
		t.Error("the corpus has no images that blkid knows")
	}
}

// unescape undoes the \x20 of udev.
func unescape(s string) string {
	return regexp.MustCompile(`\\x[0-9a-f]{2}`).ReplaceAllStringFunc(s, func(x string) string {
		n, _ := strconv.ParseUint(x[2:], 16, 8)
		return string([]byte{byte(n)})
	})
}

func TestImages(t *testing.T) {
	dir := peers.Images(t)
	lists, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(lists) == 0 {
		t.Fatalf("no lists of partitions in %s: %v", dir, err)
	}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		var want struct {
			Image, Label string
			SectorSize   int64 `json:"sector_size"`
			Partitions   []struct {
				Number           int
				Start, Size      int64
				Type, GUID, Name string
				FS               string
				FSLabel          string `json:"fs_label"`
				FSUUID           string `json:"fs_uuid"`
			}
		}
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		d := openDisk(t, filepath.Join(dir, want.Image))
		table := mustRead(t, d)
		wantProblems(t, table)
		if d.read > 70*table.SectorSize {
			t.Errorf("%s: Read read %d bytes", want.Image, d.read)
		}
		if err := table.ProbeFileSystems(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if table.Scheme != want.Label || table.SectorSize != want.SectorSize || len(table.Partitions) != len(want.Partitions) {
			t.Fatalf("%s: %+v", want.Image, table)
		}
		for i, w := range want.Partitions {
			kind := strings.Replace(w.FS, "fat32", "vfat", 1)
			p := table.Partitions[i]
			if p.Number != w.Number || p.Start != w.Start || p.Size != w.Size || !strings.EqualFold(p.TypeID, w.Type) ||
				!strings.EqualFold(p.GUID, w.GUID) || p.Name != w.Name || p.FS != (FileSystem{kind, w.FSLabel, w.FSUUID}) {
				t.Errorf("%s: %+v, want %+v", want.Image, p, w)
			}
		}
		if one, err := table.SelectOne(t.Context(), d, mustParse(t, "label=boot")); err != nil || one.Name != "boot" {
			t.Errorf("label=boot: %+v, %v", one, err)
		}
		compareSfdisk(t, filepath.Join(dir, want.Image), table)
	}
}
