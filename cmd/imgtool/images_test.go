package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
)

// realDisk is a disk NAME.raw in the folder IMGTOOL_IMAGES, with its partitions in NAME.json. /boot is the ext4 partition named boot; text in one of
// its files is changed to another of the same length.
type realDisk struct {
	name     string
	file     string // in /boot; a pattern
	old, new string
	kernel   string // the command line of its kernel, where there is no boot loader on the disk
	serial   string // what the serial line shows after the change and did not before; "" for nothing
}

var realDisks = []realDisk{
	{name: "small", file: "/config-*", old: "DO NOT EDIT", new: "was changed",
		kernel: "root=UUID=44444444-0000-4000-8000-000000000003 ro console=ttyS0 quiet init=/usr/local/sbin/imgtest-init"},
	// A kernel that is no longer told to be quiet prints its command line.
	{name: "debian", file: "/grub/grub.cfg", old: " quiet ", new: " aloud ", serial: " aloud imgtest"},
}

// TestImages makes modifiable images of real disks, changes files in their /boot, and asks other programs whether disks, file systems and gzip
// files are still what they should be. With IMGTOOL_SOAK=1 it takes the big disk as well, and boots what came out.
func TestImages(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	dir := peers.Images(t)
	soak := os.Getenv("IMGTOOL_SOAK") == "1"
	program := buildProgram(t)
	for _, d := range realDisks {
		if d.name == "small" || soak {
			t.Run(d.name, func(t *testing.T) { newDiskTest(t, d, dir, program).run(t, soak) })
		}
	}
}

// TestForeignAndPiped converts a real disk from a .gz that gzip made, and from a pipe.
func TestForeignAndPiped(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	dir := peers.Images(t)
	program := buildProgram(t)
	raw := filepath.Join(dir, "small.raw")
	want := sumFile(t, raw)
	out := t.TempDir()

	foreign := filepath.Join(out, "foreign.raw")
	timed(t, exec.Command(program, "convert", filepath.Join(dir, "small.raw.gz"), foreign))
	if sumFile(t, foreign) != want {
		t.Error("small.raw.gz converts to something else than small.raw")
	}
	sameRoom(t, foreign, raw)

	f, err := os.Open(raw)
	check(t, err)
	defer f.Close()
	piped := filepath.Join(out, "piped.raw.gz")
	cmd := exec.Command(program, "convert", "-", piped)
	cmd.Stdin = struct{ io.Reader }{f} // which makes it a pipe
	timed(t, cmd)
	timed(t, exec.Command(program, "mod", "verify", piped))
	agree(t, piped, want)
}

// diskTest is a run of TestImages over one disk.
type diskTest struct {
	realDisk
	program string
	raw     string // the disk as it was
	copied  string // a copy of it, changed by means of our own
	gz      string // the modifiable image
	boot    string // what is in the image's partition boot
	start   int64  // of the partition boot, in bytes
	seek    int64  // where in the partition the text is, in bytes
	extra   []byte // the content of a file that is added
}

const extraName = "/imgtool-test.bin"

func newDiskTest(t *testing.T, d realDisk, dir, program string) *diskTest {
	out := t.TempDir()
	x := &diskTest{
		realDisk: d, program: program, raw: filepath.Join(dir, d.name+".raw"),
		copied: filepath.Join(out, "copied.raw"), gz: filepath.Join(out, "disk.raw.gz"), boot: filepath.Join(out, "boot.img"),
		extra: make([]byte, 300_001), start: -1,
	}
	r := rand.New(rand.NewPCG(7, 7))
	for i := range x.extra {
		x.extra[i] = byte(r.Uint32())
	}
	p, err := os.ReadFile(filepath.Join(dir, d.name+".json"))
	check(t, err)
	type table struct {
		Partitions []struct {
			Name  string
			Start int64
		}
	}
	for _, p := range decode[table](t, p).Partitions {
		if p.Name == "boot" {
			x.start = p.Start
		}
	}
	if x.start < 0 {
		t.Fatalf("%s.json lists no partition named boot", d.name)
	}
	return x
}

// run is the whole life of an image, step by step.
func (x *diskTest) run(t *testing.T, soak bool) {
	original := sumFile(t, x.raw)
	x.imgtool(t, "mod", "make", "--keep", "name=boot", "--keep", "gpt", x.raw, x.gz)
	made := sumFile(t, x.gz)
	t.Run("made", func(t *testing.T) { agree(t, x.gz, original) })
	x.extract(t)
	x.find(t)
	copySparse(t, x.copied, x.raw)

	x.patchText(t)
	x.checkChanged(t)
	x.checkVariant(t, made, original)
	x.addFile(t)
	x.checkChanged(t)
	if got := debugfs(t, x.boot, "cat "+extraName); !bytes.Equal(got, x.extra) {
		t.Errorf("%s has %d bytes, or others, of the %d written", extraName, len(got), len(x.extra))
	}

	changed := sumFile(t, x.copied)
	if changed == original {
		t.Fatal("nothing has changed")
	}
	t.Run("changed", func(t *testing.T) { agree(t, x.gz, changed) })
	unpacked := filepath.Join(filepath.Dir(x.gz), "unpacked.raw")
	x.imgtool(t, "convert", x.gz, unpacked)
	if sumFile(t, unpacked) != changed {
		t.Error("convert unpacks something else than was written")
	}
	sameRoom(t, unpacked, x.raw)
	if soak {
		check(t, os.Remove(x.copied)) // room
		t.Run("boot", func(t *testing.T) { x.checkBoot(t, unpacked) })
	}
}

// imgtool runs the program.
func (x *diskTest) imgtool(t *testing.T, args ...string) string {
	t.Helper()
	return timed(t, exec.Command(x.program, args...))
}

// extract writes the partition boot of the image to a file.
func (x *diskTest) extract(t *testing.T) {
	t.Helper()
	x.imgtool(t, "convert", x.gz+"::gz::part=name=boot", x.boot)
}

// find completes the name of the file, and sets where in the partition its text is.
func (x *diskTest) find(t *testing.T) {
	t.Helper()
	folder, pattern := path.Split(x.file)
	x.file = folder + match(t, x.boot, folder, pattern)
	size, err := strconv.ParseInt(find(t, `(?m)^Block size:\s+(\d+)$`, debugfs(t, x.boot, "stats -h")), 10, 64)
	check(t, err)
	at := int64(bytes.Index(debugfs(t, x.boot, "cat "+x.file), []byte(x.old)))
	if at < 0 || at%size+int64(len(x.old)) > size || len(x.old) != len(x.new) {
		t.Fatalf("%s: %q is at byte %d; it must be there, within a block, and as long as %q", x.file, x.old, at, x.new)
	}
	n, err := strconv.ParseInt(find(t, `^(\d+)\s*$`, debugfs(t, x.boot, fmt.Sprintf("bmap %s %d", x.file, at/size))), 10, 64)
	check(t, err)
	x.seek = n*size + at%size
	t.Logf("%s: %q is at byte %d of the partition", x.file, x.old, x.seek)
}

// patchText changes the text, in the image and in the copy of the disk.
func (x *diskTest) patchText(t *testing.T) {
	cmd := exec.Command(x.program, "mod", "patch", x.gz, "--part", "name=boot", "--seek", fmt.Sprint(x.seek))
	cmd.Stdin = strings.NewReader(x.new)
	timed(t, cmd)
	overwrite(t, x.copied, x.start+x.seek, strings.NewReader(x.new))
}

// addFile adds a file to /boot, by way of a copy of the whole partition, and writes that copy to the image and to the copy of the disk.
func (x *diskTest) addFile(t *testing.T) {
	from := filepath.Join(t.TempDir(), "extra")
	check(t, os.WriteFile(from, x.extra, 0o666))
	peers.Run(t, "debugfs", "-w", "-R", "write "+from+" "+extraName, x.boot)
	x.imgtool(t, "mod", "patch", x.gz, "--part", "name=boot", "--from", x.boot)
	f, err := os.Open(x.boot)
	check(t, err)
	defer f.Close()
	overwrite(t, x.copied, x.start, f)
}

// checkChanged checks an image and its /boot after a change.
func (x *diskTest) checkChanged(t *testing.T) {
	t.Helper()
	x.imgtool(t, "mod", "verify", x.gz)
	if out := x.imgtool(t, "compare", x.gz, x.copied); out != "Images are identical.\n" {
		t.Errorf("compare says %q", out)
	}
	if _, err := os.Stat(x.gz + ".imgtool-mark"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the mark of the change is still there: %v", err)
	}
	x.extract(t)
	peers.Run(t, "e2fsck", "-fn", x.boot)
	if p := debugfs(t, x.boot, "cat "+x.file); !bytes.Contains(p, []byte(x.new)) || bytes.Contains(p, []byte(x.old)) {
		t.Errorf("%s does not hold %q in place of %q", x.file, x.new, x.old)
	}
}

// checkVariant makes a variant in which the text is what it was before: it has to be the same file as was made first, and the image it is
// a variant of has to stay as it is.
func (x *diskTest) checkVariant(t *testing.T, made, original [sha256.Size]byte) {
	before := sumFile(t, x.gz)
	if before == made {
		t.Error("the change left the file as it was")
	}
	variant := filepath.Join(filepath.Dir(x.gz), "variant.raw.gz")
	old := filepath.Join(t.TempDir(), "old")
	check(t, os.WriteFile(old, []byte(x.old), 0o666))
	x.imgtool(t, "mod", "clone", x.gz, variant, "--part", "name=boot", "--seek", fmt.Sprint(x.seek), "--from", old)
	if sumFile(t, variant) != made {
		t.Error("changed and changed back, the file is another")
	}
	if sumFile(t, x.gz) != before {
		t.Error("the change of the variant changed the image too")
	}
	if got, err := oneMember(variant); err != nil || got != original {
		t.Errorf("the variant holds something else: %v", err)
	}
	check(t, os.Remove(variant))
}

// bootLimit is how long a disk may take to boot and power off before it counts as stuck. An emulated processor takes about a minute.
const bootLimit = 15 * time.Minute

// checkBoot boots the disk as it was, and as it is after the change: both have to say the same.
func (x *diskTest) checkBoot(t *testing.T, changed string) {
	before, quiet := x.bootDisk(t, x.raw)
	after, serial := x.bootDisk(t, changed)
	t.Logf("before the change: %s\nafter: %s", before, after)
	if before != after || !strings.Contains(after, " bad=0 ") {
		t.Error("the disk does not boot as before")
	}
	if x.serial != "" && (strings.Contains(quiet, x.serial) || !strings.Contains(serial, x.serial)) {
		t.Errorf("%q is to be on the serial line after the change, and not before:\n%s", x.serial, serial)
	}
}

// bootDisk boots a disk. It returns the line that the guest prints when it has checked its files, and all that is on its serial line.
func (x *diskTest) bootDisk(t *testing.T, disk string) (marker, serial string) {
	args := []string{"-accel", "tcg", "-cpu", "max", "-m", "1024", "-smp", "2", "-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "stdio", "-no-reboot", "-drive", "file=" + disk + ",format=raw,if=virtio,snapshot=on,cache=unsafe"}
	if x.kernel != "" {
		dir := t.TempDir()
		for _, name := range []string{"vmlinuz", "initrd.img"} {
			debugfs(t, x.boot, "dump /"+match(t, x.boot, "/", name+"-*")+" "+filepath.Join(dir, name))
		}
		args = append(args, "-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd.img"), "-append", x.kernel)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	start := time.Now()
	out, err := exec.CommandContext(ctx, peers.Need(t, "qemu-system-x86_64"), args...).CombinedOutput()
	serial = strings.ReplaceAll(string(out), "\r", "")
	t.Logf("%s: %v of emulation", filepath.Base(disk), time.Since(start).Round(time.Millisecond))
	if err != nil {
		t.Fatalf("%s: %v\n%s", disk, err, serial)
	}
	return find(t, `(IMGTEST-BOOT-OK .*)`, out), serial
}

// gzipReaders are programs that unpack a gzip file to standard output.
var gzipReaders = []struct {
	name string
	args []string
}{
	{"gzip", []string{"gzip", "-dc"}},
	{"pigz", []string{"pigz", "-dc"}},
	{"igzip", []string{"igzip", "-dc"}},
	{"libdeflate", []string{"libdeflate-gunzip", "-c"}},
	{"bgzip", []string{"bgzip", "-dc"}},
	{"7zz", []string{"7zz", "x", "-so"}},
	{"busybox", []string{"busybox", "gunzip", "-c"}},
	{"python-gzip", []string{"python3", "-c", "import gzip,shutil,sys; shutil.copyfileobj(gzip.open(sys.argv[1]), sys.stdout.buffer, 1 << 20)"}},
	// A reader of one member, which fails on whatever follows it.
	{"python-zlib", []string{"python3", "-c", `import sys,zlib
d = zlib.decompressobj(31)
with open(sys.argv[1], 'rb') as f:
    while p := f.read(1 << 20):
        sys.stdout.buffer.write(d.decompress(p))
sys.exit(0 if d.eof and not d.unused_data else 3)`}},
}

// agree checks that every reader unpacks file to what has this SHA-256.
func agree(t *testing.T, file string, want [sha256.Size]byte) {
	t.Run("readers", func(t *testing.T) {
		for _, r := range gzipReaders {
			t.Run(r.name, func(t *testing.T) {
				t.Parallel()
				cmd := peers.Command(t, r.args[0], append(r.args[1:len(r.args):len(r.args)], file)...)
				h := sha256.New()
				var stderr bytes.Buffer
				cmd.Stdout, cmd.Stderr = h, &stderr
				if err := cmd.Run(); err != nil {
					t.Fatalf("%v\n%s", err, stderr.Bytes())
				}
				if [sha256.Size]byte(h.Sum(nil)) != want {
					t.Error("it unpacks something else")
				}
			})
		}
		t.Run("gzip-t", func(t *testing.T) {
			t.Parallel()
			peers.Run(t, "gzip", "-t", file)
		})
		t.Run("go", func(t *testing.T) {
			t.Parallel()
			if got, err := oneMember(file); err != nil || got != want {
				t.Errorf("it unpacks something else: %v", err)
			}
		})
	})
}

// oneMember returns the SHA-256 of what is in the one member of a gzip file, and an error where anything follows it.
func oneMember(file string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	z, err := gzip.NewReader(in)
	if err != nil {
		return sum, err
	}
	z.Multistream(false)
	h := sha256.New()
	if _, err := io.Copy(h, z); err != nil {
		return sum, err
	}
	if _, err = in.ReadByte(); err == nil {
		return sum, errors.New("bytes after the trailer")
	} else if err != io.EOF {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// buildProgram builds imgtool as users get it, without what a test binary has in it besides.
func buildProgram(t *testing.T) string {
	program := filepath.Join(t.TempDir(), "imgtool")
	if runtime.GOOS == "windows" {
		program += ".exe"
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	timed(t, cmd)
	return program
}

// timed runs a command, logs how long it took, and returns what it prints.
func timed(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	name := filepath.Base(cmd.Path) + " " + strings.Join(cmd.Args[1:], " ")
	start := time.Now()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, &stderr)
	}
	t.Logf("%v: %s\n%s", time.Since(start).Round(time.Millisecond), name, out)
	return string(out)
}

// debugfs returns what a command of debugfs prints about a file system. Its exit code says nothing.
func debugfs(t *testing.T, device, command string) []byte {
	t.Helper()
	return peers.Run(t, "debugfs", "-R", command, device)
}

// match returns the one name in a folder of a file system that matches a pattern.
func match(t *testing.T, device, folder, pattern string) string {
	t.Helper()
	list := debugfs(t, device, "ls -p "+folder) // lines of /inode/mode/uid/gid/name/size/
	expr := strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `[^/]*`)
	return find(t, `(?m)^/(?:\d+/){4}(`+expr+`)/`, list)
}

// find returns the first group of the one match of a regular expression.
func find(t *testing.T, expr string, in []byte) string {
	t.Helper()
	all := regexp.MustCompile(expr).FindAllSubmatch(in, -1)
	if len(all) != 1 {
		t.Fatalf("%q is found %d times, not once, in:\n%s", expr, len(all), in)
	}
	return string(all[0][1])
}

// sumFile returns the SHA-256 of a file.
func sumFile(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	check(t, err)
	return [sha256.Size]byte(h.Sum(nil))
}

// sameRoom checks that a file takes hardly more room on the disk than another.
func sameRoom(t *testing.T, path, than string) {
	t.Helper()
	const slack = 1 << 20
	type facts struct {
		Actual int64 `json:"actual-size"`
	}
	room := func(p string) int64 {
		return decode[facts](t, peers.Run(t, "qemu-img", "info", "--output=json", "-f", "raw", p)).Actual
	}
	got, want := room(path), room(than)
	t.Logf("%s takes %d bytes of the disk, %s %d", filepath.Base(path), got, filepath.Base(than), want)
	if got > want+slack {
		t.Errorf("%s takes %d bytes more of the disk than %s", path, got-want, than)
	}
}

// copySparse copies a file, with holes for its zeros.
func copySparse(t *testing.T, to, from string) {
	t.Helper()
	in, err := os.Open(from)
	check(t, err)
	defer in.Close()
	out, err := os.Create(to)
	check(t, err)
	defer out.Close()
	buf := make([]byte, 64<<10)
	var off int64
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 && !block.IsZero(buf[:n]) {
			_, err := out.WriteAt(buf[:n], off)
			check(t, err)
		}
		off += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		check(t, err)
	}
	check(t, out.Truncate(off))
	check(t, out.Close())
}

// overwrite writes into a file that exists, from a byte on.
func overwrite(t *testing.T, path string, off int64, from io.Reader) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	check(t, err)
	_, err = io.Copy(io.NewOffsetWriter(f, off), from)
	check(t, errors.Join(err, f.Close()))
}

// check ends the test where something that has nothing to do with what is tested went wrong.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
