package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
)

// qemuCall is a command line of qemu-img. It is run by qemu-img and by imgtool under its name, each in a folder of its own with the same images
// in it: the exit codes, what is printed on both outputs, and the images that are made or changed have to be the same.
type qemuCall struct {
	line string
	made []string // images that it makes or changes, as in call
	why  string   // why texts differ, and what does; "" where they are the same
	free []string // fields of JSON that may differ: why says why
	ends bool     // the exit codes differ too
}

// TestUnderTheNameQemuImg runs the calls in both programs: of those of people every third, with IMGTOOL_SOAK=1 all.
func TestUnderTheNameQemuImg(t *testing.T) {
	if testing.Short() {
		t.Skip("so many starts of a program take long under the race detector")
	}
	peers.Need(t, "qemu-img")
	images := t.TempDir()
	verbsImages(t, images)
	people := callsOfPeople()
	if os.Getenv("IMGTOOL_SOAK") != "1" {
		i := 0
		people = slices.DeleteFunc(people, func(qemuCall) bool { i++; return i%3 != 0 })
	}
	for _, c := range slices.Concat(callsOfPrograms(), people, mistakenCalls()) {
		t.Run(strings.ReplaceAll(c.line, "/", "_"), func(t *testing.T) {
			t.Parallel()
			ours, theirs := runQemuCall(t, images, c, true), runQemuCall(t, images, c, false)
			if ours.code != theirs.code && !c.ends {
				t.Fatalf("ends with %d, qemu-img with %d\n%s\nqemu-img: %s", ours.code, theirs.code, ours.stderr, theirs.stderr)
			}
			if ours.code == 0 || !strings.HasPrefix(c.line, "create") { // qemu-img says what it makes before it looks whether it can
				samePrint(t, c, "standard output", ours.stdout, theirs.stdout)
			}
			samePrint(t, c, "standard error", ours.stderr, theirs.stderr)
			for _, name := range c.made {
				sameImage(t, call{line: c.line}, name, ours.dir, theirs.dir)
			}
			if x, y := fileNames(t, ours.dir), fileNames(t, theirs.dir); !slices.Equal(x, y) && ours.code == 0 {
				t.Errorf("leaves %v, qemu-img %v", x, y)
			}
		})
	}
}

func fileNames(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func runQemuCall(t *testing.T, images string, c qemuCall, ours bool) outcome {
	t.Helper()
	o := outcome{dir: t.TempDir()}
	args := fields(c.line)
	copyImages(t, images, o.dir, c.line)
	cmd := peers.Command(t, "qemu-img", args...)
	if ours {
		env := cmd.Env
		cmd = exec.CommandContext(t.Context(), "imgtool", append([]string{qemuImgName}, args...)...)
		cmd.Env = env
	}
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = o.dir, &stdout, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	o.code, o.stdout, o.stderr = cmd.ProcessState.ExitCode(), stdout.Bytes(), stderr.Bytes()
	return o
}

// copyImages copies the images that a command line names, and those that they refer to.
func copyImages(t *testing.T, from, to, line string) {
	t.Helper()
	below := map[string]string{"over.qcow2": "base.qcow2", "top.qcow2": "over.qcow2", "rawover.qcow2": "raw.img", "data.qcow2": "data.bin", "partdata.qcow2": "partdata.bin"}
	for _, name := range fileNames(t, from) {
		if !strings.Contains(line, name) {
			continue
		}
		for ; name != ""; name = below[name] {
			if target, err := os.Readlink(filepath.Join(from, name)); err == nil {
				if err := os.Symlink(target, filepath.Join(to, name)); err != nil {
					t.Fatal(err)
				}
			} else if name == "folder" {
				if err := os.MkdirAll(filepath.Join(to, name), 0o777); err != nil {
					t.Fatal(err)
				}
			} else if err := copyFile(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// samePrint compares what two programs have printed: JSON by its values, text as it is but for progress, of which only the last line counts.
func samePrint(t *testing.T, c qemuCall, what string, ours, theirs []byte) {
	t.Helper()
	if strings.Contains(c.line, "json") && json.Valid(ours) && json.Valid(theirs) {
		var x, y any
		_, _ = json.Unmarshal(ours, &x), json.Unmarshal(theirs, &y) // both are valid
		free := append([]string{"actual-size", "date-sec", "date-nsec"}, c.free...)
		if c.why != "" && c.free == nil {
			return
		}
		if diff := append(jsonDiff("", x, y, free), jsonDiff("more than qemu-img: ", y, x, free)...); len(diff) > 0 {
			t.Errorf("%s\n%s\nqemu-img: %s", strings.Join(diff, "\n"), ours, theirs)
		}
		return
	}
	if x, y := steady(ours), steady(theirs); x != y && c.why == "" {
		t.Errorf("%s:\n%s\nqemu-img:\n%s", what, x, y)
	}
}

// steady returns a text without what differs from run to run, or is known to differ.
func steady(text []byte) string {
	var kept []string
	for line := range strings.Lines(progressText.ReplaceAllString(string(text), "")) {
		line = strings.TrimRight(line, "\r\n")
		if line != "" && !unsteady.MatchString(line) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}

// unsteady are lines that say what a file occupies; that qemu-img restricts writing to raw images which it has found by their bytes, as imgtool does not;
// and which problems a check has found one by one, for which both have their own words, while their numbers are the same.
var unsteady = regexp.MustCompile(`^(disk size: |WARNING: Image format|Run completed in |         |ERROR |Leaked |Repairing |Rebuilding )`)

// progressText is how far something is, which depends on the steps that are taken.
var progressText = regexp.MustCompile(` *\([0-9.]+/100%\)\r`)

// callsOfPrograms are calls as other programs make them: KubeVirt CDI, Lima, podman, coreos-assembler, Talos, Incus, Packer, Harvester,
// Longhorn, Forklift, kiwi, OpenStack, virt-v2v.
func callsOfPrograms() []qemuCall {
	out := []string{"out"}
	return []qemuCall{
		// KubeVirt CDI
		{line: "info --output=json base.qcow2"},
		{line: "info --output=json raw.img"},
		{line: "convert -t none -p -O raw base.qcow2 out", made: out},
		{line: "convert -t writeback -p -O raw over.qcow2 out -o preallocation=falloc", made: out},
		{line: "convert -t writeback -p -O raw over.qcow2 out -o preallocation=full", made: out},
		{line: "convert -t writeback -p -O raw over.qcow2 out -S 0", made: out},
		{line: "resize -f raw raw.img 10485760", made: []string{"raw.img"}},
		{line: "resize -f raw --preallocation=falloc raw.img 10485760", made: []string{"raw.img"}},
		{line: "create -f raw out 10485760", made: out},
		{line: "create -f raw -o preallocation=falloc out 10485760", made: out},
		{line: "rebase -p -u -F raw -b raw.img over.qcow2", made: []string{"over.qcow2"}},
		{line: "commit -p over.qcow2", made: []string{"over.qcow2", "base.qcow2"}},
		// Lima
		{line: "info --output=json --force-share snap.qcow2"},
		{line: "convert -O raw base.qcow2 out", made: out},
		{line: "resize -f qcow2 base.qcow2 20G", made: []string{"base.qcow2"}},
		{line: "create -f qcow2 out 107374182400", made: out},
		{line: "create -f qcow2 -F qcow2 -b base.qcow2 out 20G", made: out},
		{line: "snapshot -c tag snap.qcow2", made: []string{"snap.qcow2"}},
		{line: "snapshot -a two snap.qcow2", made: []string{"snap.qcow2"}},
		{line: "snapshot -d one snap.qcow2", made: []string{"snap.qcow2"}},
		// podman machine
		{line: "resize base.qcow2 100G", made: []string{"base.qcow2"}},
		// coreos-assembler
		{line: "convert -f qcow2 -O qcow2 -c base.qcow2 out", made: out},
		{line: "convert -f qcow2 -O raw -o preallocation=off base.qcow2 out", made: out},
		{line: "resize base.qcow2 +1G", made: []string{"base.qcow2"}},
		{line: "create -f qcow2 -o data_file=d.bin out 1M", made: []string{"out", "d.bin"}},
		{line: "convert -O qcow2 -o data_file=d.bin base.qcow2 out", made: []string{"out", "d.bin"}},
		// Talos imager
		{line: "convert -f raw -O qcow2 -o cluster_size=8k raw.img out", made: out},
		// Incus
		{line: "info -f qcow2 base.qcow2"},
		{line: "info -U --output=json --backing-chain top.qcow2"},
		{line: "convert -p -f raw -O qcow2 -c raw.img out", made: out},
		{line: "create -f qcow2 -o data_file=d.bin,data_file_raw=on,preallocation=metadata out 4M", made: out},
		{line: "measure --output=json -O qcow2 --size 10G"},
		{line: "rebase -u -f qcow2 -b base.qcow2 -F qcow2 top.qcow2", made: []string{"top.qcow2"}},
		{line: "commit -f qcow2 top.qcow2", made: []string{"top.qcow2", "over.qcow2"}},
		// Packer
		{line: "create -f qcow2 out 40960M", made: out},
		{line: "create -f qcow2 -b base.qcow2 -F qcow2 out 40960M", made: out},
		{line: "convert -c -O qcow2 base.qcow2 out", made: out},
		{line: "resize -f qcow2 base.qcow2 40960M", made: []string{"base.qcow2"}},
		// Harvester
		{line: "convert -t none -T none -W -m 8 -f raw raw.img -O qcow2 -c -S 4K out", made: out},
		// Longhorn
		{line: "convert -f raw -O qcow2 raw.img out", made: out},
		{line: "convert -f qcow2 -O raw -t none base.qcow2 out", made: out},
		// Forklift
		{line: "create -f qcow2 -b raw.img -F raw out", made: out},
		{line: "commit rawover.qcow2", made: []string{"rawover.qcow2"}},
		// kiwi
		{line: "convert -f raw raw.img -O qcow2 out", made: out},
		{line: "convert -c -f qcow2 base.qcow2 -O qcow2 out", made: out},
		// OpenStack
		{line: "info base.qcow2 --force-share --output=json"},
		{line: "convert -t none -O raw -f qcow2 base.qcow2 out", made: out},
		{line: "create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2,size=10485760 out", made: out},
		// virt-v2v
		{line: `info --output json 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}'`},
		{line: "convert -p -n -f raw -O raw raw.img file", made: nil},
	}
}

// callsOfPeople are calls that manuals show and people type.
func callsOfPeople() (calls []qemuCall) {
	add := func(line string, made ...string) { calls = append(calls, qemuCall{line: line, made: made}) }
	images := []string{"base.qcow2", "over.qcow2", "raw.img", "snap.qcow2", "data.qcow2", "text"}
	if os.Getenv("IMGTOOL_SOAK") == "1" {
		images = append(images, "top.qcow2", "rawover.qcow2", "v2.qcow2", "ext.qcow2", "comp.qcow2", "zstd.qcow2", "meta.qcow2", "lazy.qcow2", "bits.qcow2",
			"leak.qcow2", "orphan.qcow2", "absent", "folder")
	}
	for _, name := range images {
		add("info " + name)
		add("info --output=json " + name)
		add("info --backing-chain " + name)
		add("info --output=json --backing-chain " + name)
		add("map " + name)
		if name != "ext.qcow2" {
			add("map --output=json " + name)
		}
		if name != "orphan.qcow2" {
			add("check -q " + name)
			add("check --output=json " + name)
			add("snapshot -l " + name)
		}
		if name != "meta.qcow2" && name != "data.qcow2" {
			add("measure -O qcow2 " + name)
		}
		add("measure -O raw --output=json " + name)
	}
	for _, line := range []string{
		"check base.qcow2", "check over.qcow2", "check raw.img", "check --repair=all base.qcow2", "check comp.qcow2",
		"map --output=json meta.qcow2", "map meta.qcow2", "map --output=json falloc.qcow2", "map falloc.qcow2", "map --output=json parts.qcow2", "map parts.qcow2",
		"map --output=json sparse.qcow2", "map sparse.qcow2", "map --output=json partdata.qcow2", "map -s 64k -l 1M top.qcow2", "bench -c 20 base.qcow2", "bench -q -U -c 10 -d 2 -s 64k -S 128k -o 1M -f qcow2 base.qcow2",
		"bench -w -c 20 -d 2 --flush-interval=5 --no-drain -i threads -t writeback base.qcow2", "bench -c 3 --pattern 3 raw.img", "map --output=json --start-offset=64k --max-length=64k top.qcow2", "map --output=json --start-offset=1M raw.img",
		"compare base.qcow2 base.qcow2", "compare -q base.qcow2 other.qcow2", "compare base.qcow2 over.qcow2", "compare -s base.qcow2 other.qcow2",
		"compare -p base.qcow2 comp.qcow2", "compare -f raw -F qcow2 raw.img base.qcow2", "compare base.qcow2 absent",
		"measure --size 1G", "measure --size 1G -O qcow2", "measure --output=json --size 1T -O qcow2 -o cluster_size=2M",
		"info --image-opts driver=qcow2,file.filename=base.qcow2", "info --image-opts driver=qcow2,file.driver=file,file.filename=base.qcow2,file.locking=off",
		"info file:raw.img", "info ./raw.img", "info --output=json -f raw text", "info -f raw base.qcow2",
	} {
		add(line)
	}
	for _, line := range []string{
		"create out 1M", "create out 1.5k", "create out 100", "create -q out 1M", "create -f qcow2 out 100", "create -f qcow2 -o lazy_refcounts out 1M",
		"create -f qcow2 -o compat=0.10 out 1M", "create -f qcow2 -o cluster_size=128k -o lazy_refcounts=on out 1M",
		"create -f qcow2 -o extended_l2=on,refcount_bits=1,compression_type=zstd out 1M", "create -f qcow2 -o preallocation=falloc out 1M",
		"create -f qcow2 -b base.qcow2 -F qcow2 out", "create -u -f qcow2 -b base.qcow2 -F qcow2 out 1M", "create -f qcow2 -o size=2M out",
		"create -f qcow2 file:out 1M", "create -f qcow2 base.qcow2 1M",
		"convert base.qcow2 out", "convert -O qcow2 base.qcow2 raw.img out", "convert -O qcow2 -B base.qcow2 -F qcow2 over.qcow2 out",
		"convert -l one -O qcow2 snap.qcow2 out", "convert -l snapshot.id=2 snap.qcow2 out", "convert -l snapshot.id=3,snapshot.name=two snap.qcow2 out",
		"convert -O qcow2 -o compression_type=zstd -c base.qcow2 out", "convert -O qcow2 --bitmaps bits.qcow2 out", "convert -O raw -r 100M base.qcow2 out",
		"convert --salvage -O qcow2 base.qcow2 out", "convert -O qcow2 text out", "convert text out", "convert -C base.qcow2 out", "convert -U base.qcow2 out",
		"convert -pq -O qcow2 base.qcow2 out", "convert --image-opts -O qcow2 driver=raw,file.filename=raw.img out",
		"dd if=base.qcow2 of=out", "dd -O qcow2 if=base.qcow2 of=out bs=64k count=20", "dd if=base.qcow2 of=out bs=64k skip=1",
		"convert -O qcow2 -S 0 raw.img out", "dd bs=1000 count=3 if=base.qcow2 of=out", "dd bs=1000 skip=1 if=raw.img of=out", "convert raw.img link",
	} {
		name := "out"
		if strings.HasSuffix(line, "link") {
			name = "link"
		}
		if strings.HasSuffix(line, "base.qcow2 1M") {
			name = "base.qcow2"
		}
		add(line, name)
	}
	for _, line := range []string{
		"convert -n raw.img -O qcow2 base.qcow2", "convert -n --target-is-zero text -O qcow2 meta.qcow2", "resize base.qcow2 +1M", "resize -q base.qcow2 30M",
		"resize --shrink base.qcow2 5M", "resize base.qcow2 --shrink 5M", "rebase -b other.qcow2 -F qcow2 over.qcow2", "rebase -p -b '' over.qcow2",
		"rebase -b '' top.qcow2", "rebase -u -b '' over.qcow2", "rebase -q -b base.qcow2 -F qcow2 top.qcow2", "commit -d over.qcow2", "commit -q over.qcow2",
		"commit -b base.qcow2 top.qcow2", "snapshot -c one base.qcow2", "snapshot -a 1 snap.qcow2", "snapshot -d two snap.qcow2",
		"bitmap --add base.qcow2 b", "bitmap --add --disable -g 32k base.qcow2 b", "bitmap --remove bits.qcow2 b0", "bitmap --clear --enable bits.qcow2 b1",
		"bitmap --merge b1 bits.qcow2 b0", "bitmap --add --merge b0 -b bits.qcow2 -F qcow2 snap.qcow2 x", "bitmap --disable bits.qcow2 b0",
		"amend -o compat=1.1 v2.qcow2", "amend -o compat=0.10 base.qcow2", "amend -o lazy_refcounts=on base.qcow2", "amend -f qcow2 -p -o refcount_bits=64 snap.qcow2",
		"amend -o size=20M base.qcow2", "bench -w -c 10 -d 1 -s 64k --pattern=0x41 base.qcow2", "check -r all leak.qcow2", "check -r leaks leak.qcow2", "check -q -r all bad.qcow2",
	} {
		var made []string
		for _, word := range fields(line)[1:] {
			if strings.HasSuffix(word, ".qcow2") {
				made = append(made, word)
			}
		}
		add(line, made...)
	}
	return calls
}

// mistakenCalls fail once an image is looked at. What is wrong before that is tried in package qemuimg.
func mistakenCalls() (calls []qemuCall) {
	for _, line := range []string{
		"info absent", "bench absent", "bench -c 3 -f qcow2 raw.img", "info file:absent", "info folder", "info -f qcow2 raw.img", "info -f qcow2 file:raw.img", "info raw.img/x",
		`info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"absent"}}'`, "info --backing-chain orphan.qcow2",
		"check absent", "check -f qcow2 raw.img", "check raw.img", "check --output=json raw.img", "check bad.qcow2", "check leak.qcow2", "check -q leak.qcow2",
		"map absent", "map orphan.qcow2", "map comp.qcow2", "compare absent raw.img", "compare raw.img absent", "compare -f qcow2 raw.img raw.img",
		"measure absent", "measure -O qcow2 -l nosuch snap.qcow2",
		"resize absent 1M", "resize base.qcow2 1M", "resize -f raw raw.img 1M", "resize -f raw raw.img -1M", "resize -f raw --shrink raw.img -10M",
		"resize -f raw --preallocation=full --shrink raw.img 1M", "resize -f raw --preallocation=metadata raw.img 30M", "resize -f qcow2 raw.img 1M",
		"rebase -b base.qcow2 -F qcow2 raw.img", "rebase -u -b base.qcow2 -F qcow2 raw.img", "rebase -b base.qcow2 over.qcow2", "rebase -u -b base.qcow2 over.qcow2",
		"rebase -b absent -F raw over.qcow2", "rebase -b '' absent", "rebase -f raw -b '' base.qcow2", "rebase -b '' orphan.qcow2",
		"commit absent", "commit base.qcow2", "commit raw.img", "commit -b absent over.qcow2", "commit -b raw.img over.qcow2", "commit -f raw raw.img",
		"snapshot -c x absent", "snapshot -c x raw.img", "snapshot -a x raw.img", "snapshot -d x raw.img", "snapshot -a x snap.qcow2", "snapshot -d x snap.qcow2",
		"snapshot -d 1 snap.qcow2", "snapshot -d 3 snap.qcow2",
		"bitmap --add bits.qcow2 b0", "bitmap --remove bits.qcow2 x", "bitmap --merge x bits.qcow2 b0", "bitmap --add absent b",
		"amend -o foo=1 base.qcow2", "amend -o cluster_size=1M base.qcow2", "amend -o compat=7 base.qcow2", "amend -o refcount_bits=3 base.qcow2",
		"amend -o data_file_raw=on base.qcow2", "amend -o lazy_refcounts=x base.qcow2", "resize base.qcow2 5000001", "resize base.qcow2 20000001",
		"amend -o compat=1.1 raw.img", "amend -o compat=1.1 absent", "dd if=absent of=out", "dd -f qcow2 if=raw.img of=out",
		"create absent/out 1M", "create -f qcow2 absent/out 1M", "create -f qcow2 -b absent -F raw out",
		"create -f raw -o preallocation=metadata out 1M", "create -f raw -o preallocation=foo out 1M",
		"create -f qcow2 -o compat=2 out 1M", "create -f qcow2 -o compression_type=foo out 1M", "create -f qcow2 -o preallocation=foo out 1M",
		"convert absent out", "convert file:absent out", "convert -f qcow2 raw.img out", "convert -c raw.img out", "convert orphan.qcow2 out", "convert folder out",
		"convert raw.img absent/out", "convert -O raw raw.img file:absent/out", "convert -n raw.img absent", "convert -n base.qcow2 -O raw raw.img", "convert -n raw.img -O qcow2 text",
		"convert -l nosuch -O raw snap.qcow2 out", "convert -l a raw.img out", "convert -O raw -o preallocation=metadata raw.img out",
		"convert -O qcow2 -o preallocation=foo raw.img out", "convert --bitmaps bits.qcow2 -O raw out", "convert --bitmaps raw.img -O qcow2 out",
	} {
		calls = append(calls, qemuCall{line: line})
	}
	for _, line := range []string{
		"create -f qcow2 -o cluster_size=3 out 1M", "create -f qcow2 -o compat=0.10,lazy_refcounts=on out 1M", "create -f qcow2 -o refcount_bits=3 out 1M",
		"create -f qcow2 -o data_file_raw=on out 1M", "create -f qcow2 -o extended_l2=on,cluster_size=4k out 1M",
		"create -f qcow2 -o compat=0.10,extended_l2=on out 1M", "create -f qcow2 -o cluster_size=512 out 5T",
		"create -f qcow2 -b base.qcow2 -F qcow2 -o preallocation=full out 1M",
	} {
		calls = append(calls, qemuCall{line: line, why: "which options cannot be, or cannot be changed, is said by the format in its own words"})
	}
	return append(calls,
		qemuCall{line: "bitmap --add -g 1000 base.qcow2 b", why: "the format has its own words for a wrong granularity"},
		qemuCall{line: "snapshot -l orphan.qcow2", why: "snapshots are listed without the backing file, which qemu-img opens first", ends: true},
		qemuCall{line: "measure -O qcow2 meta.qcow2", why: "qemu-img takes holes of the file behind allocated clusters for zeros"},
		qemuCall{line: "check orphan.qcow2", why: "an image is checked without its backing file, which qemu-img opens first", ends: true},
		qemuCall{line: "map --output=json ext.qcow2", why: "qemu-img tells where subclusters would lie that are not allocated"},
		qemuCall{line: "create -f qcow2 -b base.qcow2 out", why: "qemu-img adds what the format seems to be"},
		qemuCall{line: "dd if=base.qcow2 of=out skip=100000000", made: []string{"out"}, why: "other words for skipping all"},
	)
}

// TestQemuImgNames looks at how the program learns that it is qemu-img.
func TestQemuImgNames(t *testing.T) {
	for _, c := range []struct {
		program []string
		is      bool
		args    int
	}{
		{[]string{"/usr/bin/qemu-img", "info", "x"}, true, 2},
		{[]string{"qemu-img.exe"}, true, 0},
		{[]string{"imgtool", "qemu-img", "info", "x"}, true, 2},
		{[]string{"imgtool", "info", "qemu-img"}, false, 2},
		{[]string{"imgtool"}, false, 0},
	} {
		if args, is := asQemuImg(c.program); is != c.is || len(args) != c.args {
			t.Errorf("%v: %v, %v", c.program, args, is)
		}
	}
}
