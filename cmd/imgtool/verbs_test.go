package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
)

// call is a command line that both imgtool and qemu-img understand, with --json for the other's --output=json. It is run by each in a
// folder of its own with the same images in it; the exit codes have to be the same, and in JSON all fields that both print.
type call struct {
	line  string
	code  int      // what imgtool ends with where it has codes of its own: for wrong usage, and for what is refused
	made  []string // images that the call makes or changes: they have to hold the same bytes, to be described the same, and to be clean
	free  []string // fields of JSON that may differ
	looks bool     // the call changes nothing
}

const asTheirs = -1

// verbsImages makes the images that calls work on.
func verbsImages(t *testing.T, dir string) {
	run := func(program, line string) {
		cmd := peers.Command(t, program, fields(line)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", program, line, err, out)
		}
	}
	for _, line := range []string{
		"img create -q -f qcow2 base.qcow2 10M",
		"io -c 'write -P 1 0 1M' -c 'write -P 2 3000k 200k' -c 'write -z 4M 1M' base.qcow2",
		"img create -q -f qcow2 other.qcow2 12M",
		"io -c 'write -P 1 0 512k' -c 'write -P 9 3M 300k' -c 'write -P 4 11M 64k' other.qcow2",
		"img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2",
		"io -c 'write -P 5 512k 100k' -c 'write -P 6 5M 64k' -c 'write -z 128k 64k' over.qcow2",
		"img create -q -f qcow2 -b over.qcow2 -F qcow2 top.qcow2 20M",
		"io -c 'write -P 7 15M 64k' -c 'write -P 8 1M 64k' top.qcow2",
		"img create -q -f qcow2 -b base.qcow2 -F qcow2 short.qcow2 2M",
		"img create -q -f qcow2 -b short.qcow2 -F qcow2 long.qcow2 10M",
		"io -c 'write -P 7 1M 64k' long.qcow2",
		"img create -q -f raw raw.img 4M",
		"io -f raw -c 'write -P 1 1M 1M' raw.img",
		"img create -q -f qcow2 -b raw.img -F raw rawover.qcow2 8M",
		"io -c 'write -P 3 5M 64k' -c 'write -z 6M 64k' rawover.qcow2",
		"img create -q -f qcow2 -o compat=0.10 v2.qcow2 4M",
		"io -c 'write -P 3 1M 1M' v2.qcow2",
		"img create -q -f qcow2 -o extended_l2=on,cluster_size=128k ext.qcow2 4M",
		"io -c 'write -P 3 1M 20k' -c 'write -z 2M 20k' ext.qcow2",
		"img convert -c -O qcow2 base.qcow2 comp.qcow2",
		"img convert -c -O qcow2 -o compression_type=zstd base.qcow2 zstd.qcow2",
		"img create -q -f qcow2 -o preallocation=metadata meta.qcow2 1M",
		"img create -q -f qcow2 -o preallocation=falloc falloc.qcow2 4M",
		"img create -q -f qcow2 -o preallocation=metadata sparse.qcow2 32M",
		"io -c 'write -P 3 1M 100k' sparse.qcow2",
		"img create -q -f qcow2 parts.qcow2 1M",
		"io -c 'write -P 3 0 12k' -c 'write -P 3 512k 12k' parts.qcow2",
		"img create -q -f qcow2 -o data_file=partdata.bin partdata.qcow2 1M",
		"io -c 'write -P 3 0 12k' partdata.qcow2",
		"img create -q -f qcow2 -o lazy_refcounts=on,refcount_bits=1 lazy.qcow2 1M",
		"img create -q -f qcow2 -o data_file=data.bin,data_file_raw=on data.qcow2 1M",
		"img create -q -f qcow2 snap.qcow2 4M",
		"io -c 'write -P 1 0 1M' snap.qcow2",
		"img snapshot -c one snap.qcow2",
		"io -c 'write -P 2 512k 1M' snap.qcow2",
		"img snapshot -c two snap.qcow2",
		"img snapshot -c two snap.qcow2",
		"io -c 'write -P 3 2M 64k' snap.qcow2",
		"img create -q -f qcow2 -o cluster_size=512 tiny.qcow2 1M",
		"io -c 'write -P 1 0 100k' tiny.qcow2",
		"img create -q -f qcow2 -o cluster_size=512 tinysnap.qcow2 1M",
		"io -c 'write -P 1 0 100k' tinysnap.qcow2",
		"img snapshot -c one tinysnap.qcow2",
		"img create -q -f qcow2 bits.qcow2 4M",
		"img bitmap --add bits.qcow2 b0",
		"img bitmap --add -g 32k bits.qcow2 b1",
		"io -c 'write -P 3 2M 64k' bits.qcow2",
		"img bitmap --disable bits.qcow2 b1",
		"io -c 'write -P 3 1M 64k' bits.qcow2",
		"img create -q -f qcow2 leak.qcow2 4M",
		"io -c 'write -P 3 2M 64k' leak.qcow2",
		"img create -q -f qcow2 gone.qcow2 1M",
		"img create -q -f qcow2 -b gone.qcow2 -F qcow2 orphan.qcow2",
	} {
		program, rest, _ := strings.Cut(line, " ")
		run("qemu-"+program, rest)
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.Remove(path("gone.qcow2")),
		os.WriteFile(path("text"), bytes.Repeat([]byte("hello"), 512), 0o666),
		os.Mkdir(path("folder"), 0o777),
		os.Symlink("linked.img", path("link")), // which does not exist
		copyFile(path("leak.qcow2"), path("bad.qcow2")),
		os.Truncate(path("leak.qcow2"), 10<<16),
		pokeRefcount(path("leak.qcow2"), 8, 1), // nothing points there
		pokeRefcount(path("bad.qcow2"), 5, 0),  // its data
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// pokeRefcount sets the count of a cluster in the first refcount block, of an image of 64 KiB clusters and 16-bit counts.
func pokeRefcount(path string, cluster int64, count uint16) error {
	const firstBlock = 2 << 16
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(binary.BigEndian.AppendUint16(nil, count), firstBlock+2*cluster)
	return errors.Join(err, f.Close())
}

func copyFile(from, to string) error {
	p, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return writeSparse(to, p)
}

// fields cuts a line at spaces, except inside single quotes.
func fields(line string) (words []string) {
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			words = append(words, part)
		} else {
			words = append(words, strings.Fields(part)...)
		}
	}
	return words
}

// TestVerbs runs every third of the calls in both programs; with IMGTOOL_SOAK=1 all.
func TestVerbs(t *testing.T) {
	if testing.Short() {
		t.Skip("so many starts of a program take long under the race detector")
	}
	peers.Need(t, "qemu-img")
	images := t.TempDir()
	verbsImages(t, images)
	soak := os.Getenv("IMGTOOL_SOAK") == "1"
	for i, c := range slices.Concat(lookingCalls(), changingCalls(), makingCalls(), convertCalls()) {
		if !soak && i%3 != 0 {
			continue
		}
		t.Run(strings.ReplaceAll(c.line, "/", "_"), func(t *testing.T) {
			t.Parallel()
			ours, theirs := runCall(t, images, c, "imgtool"), runCall(t, images, c, "qemu-img")
			want := theirs.code
			if c.code != asTheirs {
				want = c.code
			}
			if ours.code != want {
				t.Errorf("ends with %d, want %d (qemu-img: %d)\n%s\nqemu-img: %s", ours.code, want, theirs.code, ours.stderr, theirs.stderr)
				return
			}
			if ours.code != 0 && !isCheck(c) {
				for _, name := range c.made {
					sameBytes(t, filepath.Join(images, name), filepath.Join(ours.dir, name))
				}
				return
			}
			if theirs.code != 0 && !isCheck(c) {
				return
			}
			if strings.Contains(c.line, "--json") {
				sameFields(t, c, ours.stdout, theirs.stdout)
			}
			for _, name := range c.made {
				sameImage(t, c, name, ours.dir, theirs.dir)
			}
		})
	}
}

// outcome is what a program has done.
type outcome struct {
	dir            string
	code           int
	stdout, stderr []byte
}

// below are the files that images of a call need besides those that it names.
var below = map[string][]string{
	"over.qcow2": {"base.qcow2"}, "top.qcow2": {"over.qcow2", "base.qcow2"}, "rawover.qcow2": {"raw.img"}, "short.qcow2": {"base.qcow2"}, "long.qcow2": {"short.qcow2", "base.qcow2"}, "data.qcow2": {"data.bin"},
}

// copyNamed copies the images that a line names, and those below them.
func copyNamed(t *testing.T, from, to, line string) {
	t.Helper()
	names := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" =,", r) })
	for _, name := range slices.Clone(names) {
		names = append(names, below[name]...)
	}
	for _, name := range names {
		fi, err := os.Stat(filepath.Join(from, name))
		if err != nil {
			continue // an option, or an image that does not exist
		}
		if fi.IsDir() {
			err = os.MkdirAll(filepath.Join(to, name), 0o777)
		} else {
			err = copyFile(filepath.Join(from, name), filepath.Join(to, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// runCall runs a call in a folder of its own, or in that of the images where it makes nothing.
func runCall(t *testing.T, images string, c call, program string) outcome {
	t.Helper()
	o := outcome{dir: images}
	if !c.looks {
		o.dir = t.TempDir()
		copyNamed(t, images, o.dir, c.line)
	}
	var cmd *exec.Cmd
	if program == "qemu-img" {
		cmd = peers.Command(t, program, fields(strings.ReplaceAll(c.line, "--json", "--output=json"))...)
	} else {
		cmd = exec.CommandContext(t.Context(), program, fields(c.line)...)
	}
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = o.dir, &stdout, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	o.code, o.stdout, o.stderr = cmd.ProcessState.ExitCode(), stdout.Bytes(), stderr.Bytes()
	return o
}

// sameFields compares two texts in JSON: the fields of objects that both have, and whole lists.
func sameFields(t *testing.T, c call, ours, theirs []byte) {
	t.Helper()
	if len(theirs) == 0 {
		return
	}
	var x, y any
	if err := errors.Join(json.Unmarshal(ours, &x), json.Unmarshal(theirs, &y)); err != nil {
		t.Fatalf("%v\n%s\n%s", err, ours, theirs)
	}
	if strings.HasPrefix(c.line, "map ") {
		x, y = joined(x), joined(y)
	}
	free := append([]string{"actual-size", "date-sec", "date-nsec"}, c.free...)
	if diff := jsonDiff("", x, y, free); len(diff) > 0 {
		t.Errorf("%s\n%s\nqemu-img: %s", strings.Join(diff, "\n"), ours, theirs)
	}
}

// joined returns a map in which neighbours that tell the same are one, without the places of what is not there.
func joined(value any) any {
	list, ok := value.([]any)
	if !ok {
		return value
	}
	var result []any
	for _, e := range list {
		e := e.(map[string]any)
		if e["present"] == false {
			delete(e, "offset")
		}
		if len(result) > 0 {
			last := result[len(result)-1].(map[string]any)
			if last["depth"] == e["depth"] && last["present"] == e["present"] && last["zero"] == e["zero"] && last["offset"] == nil && e["offset"] == nil {
				last["length"] = last["length"].(float64) + e["length"].(float64)
				continue
			}
		}
		result = append(result, e)
	}
	return result
}

// jsonDiff returns where two values differ. What qemu-img has must be there.
func jsonDiff(at string, ours, theirs any, free []string) (diff []string) {
	switch y := theirs.(type) {
	case map[string]any:
		x, ok := ours.(map[string]any)
		if !ok {
			return []string{fmt.Sprintf("%s: %v, qemu-img an object", at, ours)}
		}
		for key, value := range y {
			if slices.Contains(free, key) {
				continue
			}
			_, has := x[key]
			if !has && value != 0.0 {
				diff = append(diff, fmt.Sprintf("%s.%s: missing", at, key))
			} else if has {
				diff = append(diff, jsonDiff(at+"."+key, x[key], value, free)...)
			}
		}
	case []any:
		x, ok := ours.([]any)
		if !ok || len(x) != len(y) {
			return []string{fmt.Sprintf("%s: %v, qemu-img %v", at, ours, theirs)}
		}
		for i := range y {
			diff = append(diff, jsonDiff(fmt.Sprintf("%s[%d]", at, i), x[i], y[i], free)...)
		}
	default:
		if ours != theirs {
			diff = append(diff, fmt.Sprintf("%s: %v, qemu-img %v", at, ours, theirs))
		}
	}
	return diff
}

// isCheck reports whether a call has results beside success and failure.
func isCheck(c call) bool { return strings.HasPrefix(c.line, "check ") }

// sameBytes fails where a file is not what it was before a call that failed.
func sameBytes(t *testing.T, before, after string) {
	t.Helper()
	p, was := os.ReadFile(before)
	q, is := os.ReadFile(after)
	if (was == nil) != (is == nil) || !bytes.Equal(p, q) {
		t.Errorf("%s was changed by what failed: %v, %v", filepath.Base(after), was, is)
	}
}

// sameImage compares an image in two folders, as qemu-img sees it.
func sameImage(t *testing.T, c call, name, ours, theirs string) {
	t.Helper()
	run := func(dir string, args ...string) ([]byte, int) {
		cmd := peers.Command(t, "qemu-img", args...)
		cmd.Dir = dir
		out, err := cmd.Output() // the code is looked at
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return out, cmd.ProcessState.ExitCode()
	}
	x, y := filepath.Join(ours, name), filepath.Join(theirs, name)
	if strings.Contains(c.line, "data") { // the data file is looked for from the working folder
		for dir, path := range map[string]*string{ours: &x, theirs: &y} {
			*path += ".copy"
			if out, code := run(dir, "convert", "-O", "qcow2", name, *path); code != 0 {
				t.Fatalf("%s: %s", name, out)
			}
		}
	}
	if out, code := run("/", "compare", x, y); code != 0 {
		t.Errorf("%s: %s", name, out)
	}
	if out, code := run(ours, "check", name); code != 0 && code != checkUnsupported {
		t.Errorf("%s: %s", name, out)
	}
	said, _ := run(ours, "info", "--output=json", name)
	want, _ := run(theirs, "info", "--output=json", name)
	sameFields(t, call{}, said, want)
}
