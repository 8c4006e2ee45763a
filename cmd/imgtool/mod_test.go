package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/gzipmod/mark"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/source/file"
)

// poke FILE OFFSET HEX: overwrites bytes of a file; a negative offset counts from its end.
func poke(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: poke file offset hex")
	}
	path := ts.MkAbs(args[0])
	p, err := os.ReadFile(path)
	ts.Check(err)
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	if at < 0 {
		at += len(p)
	}
	b, err := hex.DecodeString(args[2])
	ts.Check(err)
	copy(p[at:], b)
	ts.Check(os.WriteFile(path, p, 0o666))
}

// cut FILE LENGTH: cuts a file off, or appends zeros.
func cut(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: cut file length")
	}
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_CREATE|os.O_WRONLY, 0o666)
	ts.Check(err)
	ts.Check(errors.Join(f.Truncate(n), f.Close()))
}

// tidy: no command has left a temporary file or a mark behind.
func tidy(ts *testscript.TestScript, neg bool, args []string) {
	left, err := leftovers(ts.Getenv("WORK"))
	ts.Check(err)
	if neg || len(args) > 0 || len(left) > 0 {
		ts.Fatalf("left behind: %v", left)
	}
}

// leftovers returns the temporary files and marks below a folder.
func leftovers(dir string) (left []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if strings.Contains(d.Name(), ".imgtool-") || strings.HasPrefix(d.Name(), "imgtool-patch-") {
			left = append(left, path)
		}
		return err
	})
	return left, err
}

// modVerbs are the commands that take a modifiable image, with FILE for its name.
var modVerbs = []string{
	"info FILE", "verify FILE", "index FILE", "repair FILE", "patch FILE --part 1 --from x.bin", "patch FILE --offset 0 --from x.bin",
	"clone FILE refused.gz", "clone FILE refused.gz --part 1 --from x.bin",
}

// refused CODE FILE PATTERN [VERB...]: all of modVerbs, or those named, end with the code and a message that fits the pattern, say the same in JSON, and leave the
// file, and the folder, as they were.
func refused(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: refused code file pattern [verb...]")
	}
	name := args[1]
	message, err := regexp.Compile(`^imgtool: ` + regexp.QuoteMeta(name) + `: ` + args[2])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("x.bin"), []byte("x"), 0o666))
	before, _ := os.ReadFile(ts.MkAbs(name)) // there may be none
	for _, verb := range modVerbs {
		words := strings.Fields(strings.ReplaceAll(verb, "FILE", name))
		if only := args[3:]; len(only) > 0 && !strings.Contains(" "+strings.Join(only, " ")+" ", " "+words[0]+" ") {
			continue
		}
		exits(ts, false, append([]string{args[0], "imgtool", "mod"}, words...))
		text := ts.ReadFile("stderr")
		if !message.MatchString(text) {
			ts.Fatalf("mod %s says %q, want %v", verb, text, message)
		}
		if strings.Contains(text, "EOF") || strings.Contains(text, "range at byte") {
			ts.Fatalf("mod %s says %q, which is for programmers", verb, text)
		}
		exits(ts, false, append([]string{args[0], "imgtool", "--json", "mod"}, words...))
		if text := ts.ReadFile("stderr"); !regexp.MustCompile(`^\{"error":\{"message":".*"exit":`+args[0]+`\}\}\n$`).MatchString(text) && ts.ReadFile("stdout") == "" {
			ts.Fatalf("--json mod %s says %q", verb, text)
		}
		if after, _ := os.ReadFile(ts.MkAbs(name)); !bytes.Equal(before, after) {
			ts.Fatalf("mod %s changed the file", verb)
		}
		if _, err := os.Stat(ts.MkAbs("refused.gz")); err == nil {
			ts.Fatalf("mod %s made a file", verb)
		}
	}
}

// imgtool runs the program and returns its exit code and what it printed.
func imgtool(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return runCommand(t, exec.Command("imgtool", args...))
}

func runCommand(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// expect runs the program, and demands an exit code and a piece of what it prints.
func expect(t *testing.T, code int, piece string, args ...string) {
	t.Helper()
	got, stdout, stderr := imgtool(t, args...)
	if text := stdout + stderr; got != code || !strings.Contains(text, piece) {
		t.Errorf("imgtool %q ends with %d and prints %q; want %d and %q", args, got, text, code, piece)
	}
}

// newImage makes a modifiable image of 4 MiB, of which 1 MiB from 1 MiB is kept, and returns its path, in a folder of its own.
func newImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	raw, gz := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.raw.gz")
	output(t, "convert", "pattern:4M", raw)
	output(t, "mod", "make", "-k", "range=1M+1M", raw, gz)
	return gz
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func writeFile(t *testing.T, path string, p []byte) {
	t.Helper()
	if err := os.WriteFile(path, p, 0o666); err != nil {
		t.Fatal(err)
	}
}

// crashed makes an image whose change was interrupted: bytes were written and the checksums were not. It returns the image, and what stands
// in its kept range.
func crashed(t *testing.T) (path string, text []byte) {
	t.Helper()
	path = newImage(t)
	copied := filepath.Join(t.TempDir(), "crashed.gz")
	ctx := context.Background()
	f, err := file.Open(ctx, path, file.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	d, err := gzipmod.Open(ctx, f, gzipmod.OpenOptions{Write: true, Mark: mark.File(path)})
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Repeat([]byte("crash"), 20000)
	if err := d.Write(ctx, text, 1<<20+70000, 0); err != nil {
		t.Fatal(err)
	}
	// What the files hold now is what a crash would leave.
	writeFile(t, copied, readFile(t, path))
	writeFile(t, copied+mark.Suffix, readFile(t, path+mark.Suffix))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return copied, text
}

// TestModCrash repairs an image after a change was interrupted, and looks at what everybody says before.
func TestModCrash(t *testing.T) {
	path, text := crashed(t)
	journal := path + mark.Suffix
	other := filepath.Join(t.TempDir(), "other.gz")
	const dirty = "a change was interrupted, the checksums may be wrong\nhint: imgtool mod repair puts them right\n"
	expect(t, exitDone, "a change was interrupted; run imgtool mod repair "+path, "mod", "info", path)
	expect(t, exitDone, `"dirty": true`, "--json", "mod", "info", path)
	expect(t, exitCorrupt, dirty, "mod", "verify", path)
	expect(t, exitFailed, dirty, "mod", "patch", path, "--offset", "1M", "--from", path)
	expect(t, exitFailed, dirty, "mod", "index", path)
	expect(t, exitFailed, dirty, "mod", "clone", path, other)
	expect(t, exitFailed, `"hint":"imgtool mod repair puts them right","exit":1`, "--json", "mod", "clone", path, other)

	// The same is seen under another name.
	link := filepath.Join(t.TempDir(), "link.gz")
	if os.Symlink(path, link) == nil {
		expect(t, exitCorrupt, dirty, "mod", "verify", link)
	}

	// A mark of another image is refused.
	stranger := newImage(t)
	writeFile(t, stranger+mark.Suffix, readFile(t, journal))
	before := readFile(t, stranger)
	output(t, "mod", "make", "-k", "range=1M+512k", strings.TrimSuffix(stranger, ".gz"), other)
	writeFile(t, other+mark.Suffix, readFile(t, journal))
	expect(t, exitFailed, other+": the mark does not belong to this file: ", "mod", "repair", other)
	expect(t, exitFailed, "hint: if the file was replaced after the interruption, remove the mark beside it", "mod", "repair", other)
	// Who replaces an image removes the mark of the old one.
	output(t, "mod", "make", "-k", "range=1M+1M", strings.TrimSuffix(stranger, ".gz"), stranger)
	if !bytes.Equal(readFile(t, stranger), before) {
		t.Error("the same image is not the same file")
	}
	output(t, "mod", "verify", stranger)
	writeFile(t, stranger+mark.Suffix, readFile(t, journal))
	output(t, "mod", "clone", newImage(t), stranger)
	output(t, "mod", "verify", stranger)

	type repaired struct {
		Filename string `json:"filename"`
		Marked   bool   `json:"marked"`
		Bytes    int64  `json:"bytes-read"`
		Changed  int    `json:"blocks-changed"`
	}
	// 100000 bytes from byte 70000 lie in two stored blocks of 61440 bytes.
	if got, want := decode[repaired](t, output(t, "--json", "mod", "repair", path)), (repaired{path, true, 2 * gzipmod.StoredLen, 2}); got != want {
		t.Errorf("repair: %+v, want %+v", got, want)
	}
	output(t, "mod", "verify", path)
	expect(t, exitDone, path+": nothing to repair\n", "mod", "repair", path)
	if got := output(t, "convert", path+"::gz::window,offset=1118576,size=100000", "-"); !bytes.Equal(got, text) {
		t.Error("the content is not what the crash left")
	}
	if left, err := leftovers(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestModTornMarks gives marks that a crash or a stranger left.
func TestModTornMarks(t *testing.T) {
	path, _ := crashed(t)
	journal := path + mark.Suffix
	whole, image := readFile(t, journal), readFile(t, path)
	sound := readFile(t, newImage(t))

	// The crash came while the mark was written: nothing had been changed.
	for _, p := range [][]byte{{}, []byte("garbage"), whole[:10], whole[:60], bytes.Repeat([]byte{0}, 5000)} {
		writeFile(t, path, sound)
		writeFile(t, journal, p)
		expect(t, exitCorrupt, "a change was interrupted", "mod", "verify", path)
		expect(t, exitDone, ": repaired; read 0 bytes, 0 blocks had changed\n", "mod", "repair", path)
		if !bytes.Equal(readFile(t, path), sound) {
			t.Error("a mark that is not whole changed the file")
		}
		output(t, "mod", "verify", path)
	}
	// The mark names blocks that the file does not have.
	foreign := bytes.Clone(whole)
	records := foreign[len(foreign)-4-4-2*12:]
	binary.LittleEndian.PutUint32(records[4:], 1000)
	binary.LittleEndian.PutUint32(records[len(records)-4:], crc32.ChecksumIEEE(records[:len(records)-4]))
	writeFile(t, path, image)
	writeFile(t, journal, foreign)
	expect(t, exitFailed, path+": the mark ", "mod", "repair", path)
	// A mark that is not whole, and a file that is not either.
	bad := bytes.Clone(sound)
	bad[len(bad)-8]++
	writeFile(t, path, bad)
	writeFile(t, journal, whole[:60])
	expect(t, exitCorrupt, path+": its mark is not whole, which tells that no change had begun, but gz: corrupt trailer at byte ", "mod", "repair", path)
	if !bytes.Equal(readFile(t, path), bad) || !bytes.Equal(readFile(t, journal), whole[:60]) {
		t.Error("a repair that failed changed something")
	}
	// Something else has the mark's name.
	if err := errors.Join(os.Remove(journal), os.Mkdir(journal, 0o777)); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, sound)
	for _, verb := range []string{"info", "verify", "index", "repair"} {
		expect(t, exitFailed, "hint: something else has this name: move it away\n", "mod", verb, path)
	}
}

// TestModContradiction gives files whose index says one thing and whose content another, all checksums of the index being right.
func TestModContradiction(t *testing.T) {
	path := newImage(t)
	sound := readFile(t, path)
	// docs/gzipmod.md: the index begins at byte 16; its CRC-32 is at 4, the regions, of 20 bytes, are at 36, and chunks of 8 bytes follow.
	le, index := binary.LittleEndian, 16
	regions := int(le.Uint32(sound[index+28:]))
	n := int(le.Uint16(sound[index-2:]))
	change := func(at int, b byte) {
		p := bytes.Clone(sound)
		p[at] ^= b
		x := p[index : index+n]
		le.PutUint32(x[4:], 0)
		le.PutUint32(x[4:], crc32.ChecksumIEEE(x))
		writeFile(t, path, p)
	}
	change(index+36+20*regions+4, 1) // CRC of the first chunk
	expect(t, exitCorrupt, "imgtool: "+path+": gz: corrupt chunk 0 at byte ", "mod", "verify", path)
	type verified struct {
		Problems []string `json:"problems"`
	}
	code, stdout, stderr := imgtool(t, "--json", "mod", "verify", path)
	if v := decode[verified](t, []byte(stdout)); code != exitCorrupt || stderr != "" || len(v.Problems) != 1 || !strings.HasPrefix(v.Problems[0], "gz: corrupt chunk 0 at byte ") {
		t.Errorf("code %d, %q, problems %q", code, stderr, v.Problems)
	}
	expect(t, exitCorrupt, path+": gz: corrupt chunk 0 at byte ", "convert", path, filepath.Join(t.TempDir(), "x.raw"))
	change(index+36+16, 1) // CRC of the first region
	expect(t, exitCorrupt, path+": gz: corrupt trailer at byte ", "mod", "info", path)
	expect(t, exitCorrupt, path+": gz: corrupt trailer at byte ", "mod", "patch", path, "--offset", "1M", "--from", strings.TrimSuffix(path, ".gz"))
	change(index+36+8, 1) // where the first region lies
	expect(t, exitCorrupt, path+": gz: corrupt index at byte 52: region 0 is said to lie at byte ", "mod", "verify", path)
	change(index+0, 3)
	expect(t, exitCorrupt, path+": gz: corrupt index at byte 16: version 2 is not known; a newer imgtool may read it\n", "mod", "info", path)
	change(index+8, 1)
	expect(t, exitCorrupt, path+": gz: corrupt index at byte ", "mod", "info", path)
}

// TestModLongName reads and changes an image whose name leaves no room for that of a mark.
func TestModLongName(t *testing.T) {
	path := newImage(t)
	long := filepath.Join(filepath.Dir(path), strings.Repeat("n", 250)+".gz")
	if err := os.Rename(path, long); err != nil {
		t.Log(err) // a file system with shorter names
		return
	}
	output(t, "mod", "verify", long)
	before := readFile(t, long)
	cmd := exec.Command("imgtool", "mod", "patch", long, "--offset", "1M")
	cmd.Stdin = strings.NewReader("text")
	if code, _, stderr := runCommand(t, cmd); code != exitFailed || !strings.Contains(stderr, "hint: while an image is changed a small file lies beside it: ") {
		t.Errorf("code %d, %q", code, stderr)
	}
	if !bytes.Equal(readFile(t, long), before) {
		t.Error("the image has changed")
	}
}

// TestModSeveral selects partitions of which there are several.
func TestModSeveral(t *testing.T) {
	dir := t.TempDir()
	raw, gz, text := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.gz"), filepath.Join(dir, "text")
	writeFile(t, raw, nil)
	if err := os.Truncate(raw, 8<<20); err != nil {
		t.Fatal(err)
	}
	peers.Run(t, "sgdisk", "-n", "1:0:+1M", "-c", "1:data", "-n", "2:0:+1M", "-c", "2:other", "-n", "3:0:+1M", "-c", "3:data", raw)
	expect(t, exitDone, "; 2 MiB (2097152 bytes) kept in 2 ranges\n", "mod", "make", "-k", "name=data", raw, gz)
	writeFile(t, text, []byte("text"))
	before := readFile(t, gz)
	expect(t, exitFailed, "imgtool: "+gz+": name=data means 2 ranges, and a patch goes into one: choose from 1, 3\n", "mod", "patch", gz, "--part", "name=data", "--from", text)
	if !bytes.Equal(readFile(t, gz), before) {
		t.Error("the image has changed")
	}
	expect(t, exitDone, ": 4 of 4 bytes at byte 3145728 changed", "mod", "patch", gz, "--part", "3", "--from", text)
	output(t, "mod", "verify", gz)
}
