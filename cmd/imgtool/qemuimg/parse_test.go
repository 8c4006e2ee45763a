package qemuimg

import (
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/formats"
)

// qcow2Options are options as the qcow2 driver has them.
type qcow2Options struct {
	Backing       string `option:"backing_file"`
	BackingFormat string `option:"backing_fmt"`
	ClusterSize   int64  `option:"cluster_size"`
	Compat        string `option:"compat"`
	DataFile      string `option:"data_file"`
	Lazy          bool   `option:"lazy_refcounts"`
	RefcountBits  int    `option:"refcount_bits"`
}

type rawOptions struct {
	Preallocation string `option:"preallocation"`
}

// registry lists formats of which the parser needs no more than names and options.
func registry() formats.Registry {
	return formats.Registry{{Name: "qcow2", Options: &qcow2Options{}, Compresses: true}, {Name: "vmdk"}, {Name: "raw", Options: &rawOptions{}}}
}

// TestParse pins what imgtool is called with for command lines that programs and people use. Words are separated by blanks.
func TestParse(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"info a", "info -- a"},
		{"info --output=json a", "info --json -- a"},
		{"info --output json -U a", "info --json --force-share -- a"},
		{"info --ou=json --force-sh --b a", "info --json --force-share --backing-chain -- a"},
		{"info -Uf raw a", "info --force-share --format=raw -- a"},
		{"info -fraw a", "info --format=raw -- a"},
		{"info -f=raw a", "Could not open 'a': Unknown driver '=raw'"},
		{"info a -f raw", "info --format=raw -- a"},
		{"info -- -x", "info -- -x"},
		{"info -", "info -- ./-"},
		{"info file:a", "info -- a"},
		{"info file:b:c", "info -- ./b:c"},
		{"info file:nbd://x", "info -- ./nbd://x"},
		{"info /x/a::gz", `info -- /x/a\::gz`},
		{"info ./a::part=2", `info -- ./a\::part=2`},
		{"info [sh]", "info -- ./[sh]"},
		{"info nbd+unix:///?socket=/s", "info -- nbd+unix://?socket=/s"},
		{"info nbd+unix:///x/y?socket=/s", "info -- nbd+unix:///x/y?socket=/s"},
		{"info nbd://h", "info -- nbd://h:10809"},
		{"info nbds://u@[::1]/x::raw", `info -- nbds://u@[::1]:10809/x\::raw`},
		{"info nbd:h:10", "info -- nbd://h:10"},
		{"info nbd:[::1]:10:exportname=a:b", "info -- nbd://[::1]:10/a:b"},
		{"info nbd:unix:/s", "info -- nbd+unix://?socket=/s"},
		{"info nbd:unix:/s&t:exportname=x?y", "info -- nbd+unix:///x%3Fy?socket=/s%26t"},
		{`info json:{"driver":"qcow2","file":{"driver":"nbd","host":"h"}}`, "info --format=qcow2 -- nbd://h:10809"},
		{`info json:{"driver":"nbd","server":{"type":"unix","path":"/s"},"export":"x"}`, "info --format=raw -- nbd+unix:///x?socket=/s"},
		{"info --image-opts driver=raw,offset=512,file.driver=nbd,file.server.type=inet,file.server.host=h,file.server.port=10",
			"info --format=raw -- nbd://h:10::window,offset=512"},
		{"info https://h/x.qcow2", "info -- https://h/x.qcow2"},
		{"info --image-opts driver=qcow2,file.filename=x", "info --format=qcow2 -- x"},
		{"info --image-opts driver=qcow2,file.driver=file,file.filename=x,,y,node-name=n", "info --format=qcow2 -- x,y"},
		{"info --image-opts file.filename=x", "info -- x"},
		{"info --object secret,id=s,file=/k --image-opts driver=qcow2,encrypt.format=aes,encrypt.key-secret=s,file.filename=x", "info -- x::qcow2,key-file=/k"},
		{"info --object secret,id=s,data=k --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=x",
			"Could not open 'driver=qcow2,encrypt.key-secret=s,file.filename=x': secret 's' is not a file as it is: keys are read from files only, so say file=PATH"},
		{"info --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=x",
			"Could not open 'driver=qcow2,encrypt.key-secret=s,file.filename=x': No secret with id 's'"},
		{"info --image-opts file.filename=x,file.locking=off", "info --force-share -- x"},
		{"info --image-opts driver=raw,offset=1k,size=2k,file.filename=x", "info --format=raw -- x::window,offset=1024,size=2048"},
		{`info json:{"driver":"qcow2","file":{"driver":"file","filename":"x"}}`, "info --format=qcow2 -- x"},
		{`info json:{"file.filename":"x","file.driver":"file"}`, "info -- x"},
		{`info json:{"driver":"vmdk","file":{"driver":"raw","offset":512,"file":{"filename":"x"}}}`, "info --format=vmdk -- x::window,offset=512"},
		{`info json:{"driver":"file","filename":"x"}`, "info --format=raw -- x"},
		{"check -r all a", "check --repair=all -- a"},
		{"check --re leaks -T none --output=json -f qcow2 -q a", "check --json -q --repair=leaks --format=qcow2 -- a"},
		{"compare -p -s a b", "compare --progress --strict -- a b"},
		{"compare -pq -f raw -F qcow2 a b", "compare -q --format=raw --second-format=qcow2 -- a b"},
		{"map -s 64k --max-length=1M a", "map --start-offset=65536 --max-length=1048576 -- a"},
		{"measure --size 1.5G -O qcow2", "measure --output-format=qcow2 --size=1610612736 --"},
		{"measure --output json -l s1 -O qcow2 -o cluster_size=2M a", "measure --json --output-format=qcow2 --options=cluster_size=2097152 --snapshot=s1 -- a"},
		{"measure -l snapshot.name=s1 a", "measure --output-format=raw --snapshot=snapshot.name=s1 -- a"},
		{"resize a 2G", "resize -- a 2147483648"},
		{"resize a -1", "resize -- a -1"},
		{"resize --shrink -q -f raw a +1k", "resize -q --shrink --format=raw -- a +1024"},
		{"resize --prea=falloc a 1M", "resize --preallocation=falloc -- a 1048576"},
		{"rebase -u -F raw -b b a", "rebase --unsafe --backing=b --backing-format=raw -- a"},
		{"rebase -U -b x -F raw -p -t none -T writeback a", "rebase --progress --backing=x --backing-format=raw -- a"},
		{"commit -b x -d -p -r 1M a", "commit --progress --base=x --keep -- a"},
		{"snapshot -l a", "snapshot --list -- a"},
		{"snapshot a", "snapshot --list -- a"},
		{"snapshot -c s1 a", "snapshot --create=s1 -- a"},
		{"snapshot -a s1 a", "snapshot --apply=s1 -- a"},
		{"snapshot -d s1 a", "snapshot --delete=s1 -- a"},
		{"bitmap --add -g 64k --disable a b", "bitmap --add --disable --granularity=65536 -- a b"},
		{"bitmap --merge x --merge y -b c -F qcow2 a b", "bitmap --merge=x --merge=y --source=c --source-format=qcow2 -- a b"},
		{"bitmap --clear --merge x --disable --add a b", "bitmap --clear --merge=x --disable --add -- a b"},
		{"amend -o help a", "amend --options=help -- a"},
		{"amend -o compat=0.10 -o lazy_refcounts a", "amend --options=compat=0.10 --options=lazy_refcounts=on -- a"},
		{"dd -f raw -O qcow2 bs=1M count=2 if=a of=b", "dd --format=raw --output-format=qcow2 -- bs=1048576 count=2 if=a of=b"},
		{"create a 1M", "create --format=raw -- a 1048576"},
		{"create -q -f qcow2 -o cluster_size=128k,data_file=x,,y a 1M", "create -q --format=qcow2 --options=cluster_size=131072 --options=data_file=x,,y -- a 1048576"},
		{"create -f qcow2 -b b -F raw a", "create --format=qcow2 --backing=b --backing-format=raw -- a"},
		{"create -f qcow2 -o backing_file=b,backing_fmt=raw,size=1M a", "create --format=qcow2 --backing=b --backing-format=raw -- a 1048576"},
		{"create -u -f qcow2 -b b -F raw a 1M", "create --format=qcow2 --unchecked --backing=b --backing-format=raw -- a 1048576"},
		{"convert a b", "convert --output-format=raw -- a b"},
		{"convert -pn -O raw -m16 -W -t none -T none -S 0 a b", "convert --progress --sparse=0 --output-format=raw --no-create --cache=none -- a b"},
		{"convert -C -U -c -O qcow2 a b", "Cannot enable copy offloading when -c is used"},
		{"convert -f raw -O qcow2 -B x -F raw -r 1M a b c", "convert --rate=1048576 --format=raw --output-format=qcow2 --backing=x --backing-format=raw -- a b c"},
		{"convert -n --target-is-zero --salvage a b", "convert --output-format=raw --no-create --target-is-zero --salvage -- a b"},
		{"convert --bitmaps --skip-b -O qcow2 a b", "convert --output-format=qcow2 --bitmaps --skip-broken-bitmaps -- a b"},
		{"convert --image-opts --target-image-opts -n driver=raw,file.filename=a driver=qcow2,file.filename=b",
			"convert --format=raw --output-format=qcow2 --no-create -- a b"},
		{"--trace x info a", "--trace is not supported: imgtool has no trace events"},
		{"info nbd:", "Could not open 'nbd:': NBD server address missing"},
		{"info nbd:h", "Could not open 'nbd:h': NBD server address missing"},
		{"info --image-opts driver=nbd,host=h,path=/s", "Could not open 'driver=nbd,host=h,path=/s': path and host may not be used at the same time"},
		{"info --image-opts driver=nbd,export=x", "Could not open 'driver=nbd,export=x': NBD server address missing"},
		{"info --image-opts driver=nbd,host=h,tls-creds=t", "Could not open 'driver=nbd,host=h,tls-creds=t': Block format 'raw' does not support the option 'tls-creds'"},
		{"convert -l snapshot.id=1,snapshot.name=b a b", "convert --output-format=raw --snapshot=snapshot.id=1,snapshot.name=b -- a b"},
	} {
		call, err := Parse(strings.Fields(c.line), registry())
		got := strings.Join(call.Args, " ")
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.line, got, c.want)
		}
	}
}

// TestParseSettings looks at what a command line says besides the arguments.
func TestParseSettings(t *testing.T) {
	call, err := Parse([]string{"create", "-f", "qcow2", "-o", "lazy_refcounts=on", "-b", "x", "-F", "raw", "file:a", "1M"}, registry())
	if err != nil {
		t.Fatal(err)
	}
	if call.Size != 1<<20 || call.Format != "qcow2" || !slices.Equal(call.Written, []string{"a"}) || call.Typed["a"] != "file:a" {
		t.Errorf("%+v", call)
	}
	if o := call.Options; len(o) != 3 || o["lazy_refcounts"] != "on" || o["backing_file"] != "x" || o["backing_fmt"] != "raw" {
		t.Errorf("options %v", o)
	}
	call, err = Parse([]string{"convert", "-U", "-p", "-q", "a", "b"}, registry())
	if err != nil || !call.Share || call.Progress || !call.Quiet {
		t.Errorf("%+v, %v", call, err)
	}
}

func TestHelpAndVersion(t *testing.T) {
	for line, want := range map[string]string{"-h": Help, "--help": Help, "info -h": Help, "convert x --help": Help, "resize --help": Help, "-V": Version, "--vers info": Version,
		"create -f qcow2 -o help": Options, "convert -O qcow2 -o ?": Options, "amend -f qcow2 -o help": Options, "measure -o help -O qcow2 x": Options,
	} {
		if call, err := Parse(strings.Fields(line), registry()); err != nil || call.Command != want {
			t.Errorf("%s: %+v, %v", line, call, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "0x10": 16, "0X1f": 31, " 1": 1, "+1": 1, "1b": 1, "1B": 1, "1.k": 1024, "1.5k": 1536, "1.0": 1, "007": 7, "1e": 1 << 60, "7P": 7 << 50,
		"1.00000001k": 1024, "0.00000001E": 11529215046, "9223372036854775807": 1<<63 - 1,
	} {
		if n, err := parseSize(text); n != want || err != nil {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
	for text, want := range map[string]error{
		"": errNotSize, "x": errNotSize, "1.5": errNotSize, "1kb": errNotSize, "1KiB": errNotSize, ".5k": errNotSize, "1e3": errNotSize, "inf": errNotSize,
		"0x": errNotSize, "-1": errNotSize, "-0": errNotSize, "1 k": errNotSize, "0x1k": errNotSize, "8E": errSizeRange, "18446744073709551616": errSizeRange,
		strings.Repeat("9", 1000): errNotSize, "1." + strings.Repeat("9", 1000) + "k": errNotSize,
	} {
		if n, err := parseSize(text); err != want {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
}

// FuzzParse gives the parser any command line: it must not panic, and everything that it accepts is a command of imgtool with options before --.
func FuzzParse(f *testing.F) {
	for _, line := range []string{"info -U a", "convert -pn -O raw -m16 a b", `info json:{"a":{"b":1}}`, "create -o a=b,,c x 1k", "resize a -- -1k", "dd if=a of=b"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		call, err := Parse(strings.Fields(line), registry())
		if err != nil || call.Command == Help || call.Command == Version || call.Command == Options {
			return
		}
		end := slices.Index(call.Args, "--")
		if end < 1 || call.Args[0] != call.Command {
			t.Fatalf("%q: %q", line, call.Args)
		}
		for _, arg := range call.Args[1:end] {
			if !strings.HasPrefix(arg, "-") {
				t.Errorf("%q: %q before --", line, arg)
			}
		}
	})
}
