package qemuimg

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
)

// mistakes are command lines that qemu-img refuses before it opens an image. Words are separated by blanks; ” is an empty one.
const mistakes = `
nosuch
--foo
-x
info
info --foo a.raw
info -z a.raw
info -f
info --output
info --output=xml a.raw
info --output= a.raw
info --o=json a.raw
info --backing-chain=x a.raw
info -U- a.raw
info a.raw b.raw
info -- a.raw -f raw
info foo:bar
info ''
info -f nosuch a.raw
info -f=raw a.raw
check -f nosuch a.raw
compare -f nosuch a.raw a.raw
compare -F nosuch a.raw a.raw
map -f nosuch a.raw
resize -f nosuch a.raw 2M
measure -O nosuch --size 1M
measure -O qcow2 -o bla=2M --size 1G
rebase -F nosuch -b a.raw a.qcow2
dd -O nosuch if=a.raw of=x
dd -f nosuch if=a.raw of=x
create -f nosuch x.q 1M
create -f qcow2 -b a.raw -F nosuch x.q
create -f qcow2 -o foo=3 x.q 1M
create -f raw -o cluster_size=64k x.q 1M
create -f qcow2 -o lazy_refcounts=foo x 1M
create -f qcow2 -o cluster_size=64k,,x x 1M
create -f qcow2 -o cluster_size=64kk x 1M
create -f qcow2 -o refcount_bits=x x 1M
create -f qcow2 -o size=x x
convert -O nosuch a.raw x
convert -f nosuch a.raw x
convert -O qcow2 -o bla=foo a.raw x
convert -o cluster_size=64k a.raw x
info --image-opts -f raw a.raw
info --image-opts driver=qcow2,file.driver=file,file.filename=a.qcow2,bla=x
info --image-opts filename=a.raw
info --image-opts a.raw
create -F raw x 1M
convert -F raw a.raw x
info json:{}
info json:{"filename":"a.raw"}
info json:{"driver":"qcow2","file":{"filename":"a.qcow2"},"bla":1}
info --object x a.raw
info --object secret a.raw
info --object secret,id=s,dta=x a.raw
info --object secret,id=s a.raw
info --object secret,id=s,data=x,file=y a.raw
info --object secret,id=s,data=x,format=y a.raw
info --object secret,id=s,data=x --object secret,id=s,data=x a.raw
check
check a.raw b.raw
check -r foo a.qcow2
bench
bench a.raw b.raw
bench -c x a.raw
bench -c 1k a.raw
bench -d -1 a.raw
bench --pattern 300 a.raw
bench -w --flush-interval=x a.raw
bench --flush-interval=10 a.raw
bench -w --flush-interval=2 a.raw
bench -i foo a.raw
bench -t foo a.raw
bench -s 1T a.raw
bench -o -1 a.raw
bench -S x a.raw
bench --image-opts -f raw a.raw
check --f qcow2 a.qcow2
check --output=x a.qcow2
check -T foo a.qcow2
check -U -r all a.qcow2
compare a.raw
compare a b c
compare -T foo a.raw a.raw
compare a.raw foo:x
compare --image-opts -f raw a b
map
map --start-offset=x a.raw
map -l x a.raw
map --max-length=8E a.raw
measure
measure --size x
measure --size 8E
measure --size 1M a.raw
measure -f raw --size 1M
measure a b
measure -l snapshot.foo=1 a.qcow2
resize
resize x
resize a.raw 1Q
resize a.raw +-1
resize a.raw 1.5
resize -f raw a.raw 0
resize -f raw a.raw 8E
resize -f raw a.raw 1M --shrink
resize -f raw a.raw 1M extra
resize -z a.raw 1M
resize --preallocation=foo a.raw 2M
rebase
rebase a.qcow2
rebase a b -b c
rebase -t foo -b '' a.qcow2
rebase -T foo -b '' a.qcow2
commit
commit -t foo a.qcow2
commit -r x a.qcow2
snapshot
snapshot -l -c x a.qcow2
snapshot -c x -c y a.qcow2
snapshot -f qcow2 -l a.qcow2
snapshot -U -c x a.qcow2
bitmap
bitmap a.qcow2 b
bitmap --remove a.qcow2 b x
bitmap --add a.qcow2
bitmap -b a.qcow2 --add a.qcow2 z
bitmap -F qcow2 --merge b a.qcow2 z
bitmap -g 64k --clear a.qcow2 b
bitmap -g x --add a.qcow2 z
amend
amend a.qcow2
amend -o help
amend -o compat=1.1 a b
amend -o compat=1.1 -t foo a.qcow2
amend -o '' a.qcow2
amend -o backing_file=x a.qcow2
amend -o backing_fmt=x a.qcow2
dd
dd if=a.raw
dd of=x
dd if=a.raw of=x bs=x
dd if=a.raw of=x bs=0
dd if=a.raw of=x bs=3000000000
dd if=a.raw of=x count=x
dd if=a.raw of=x seek=1
dd if=a.raw of=x foo
dd -n if=a.raw of=x
create
create x
create x 1M y
create x 1Q
create x 8E
create -f qcow2 -o '' x 1M
create -f qcow2 -o ,a x 1M
create -f qcow2 -o a, x 1M
create -e x 1M
create -u -f qcow2 -b nosuch x 1M
create -u -f qcow2 -b nosuch -F raw x
create -f raw -b a.raw -F raw x
create -f qcow2 -b x -F qcow2 x
create -f qcow2 -o size=3M x 1M
create -f qcow2 foo:x 1M
convert
convert a.raw
convert -s x a.raw x
convert -O qcow2 -m 0 a.raw x
convert -O qcow2 -m 17 a.raw x
convert -O qcow2 -m x a.raw x
convert -O qcow2 -S x a.raw x
convert -O qcow2 -S 100 a.raw x
convert -O qcow2 -S 32M a.raw x
convert -O qcow2 -t foo a.raw x
convert -O qcow2 -T foo a.raw x
convert -r x a.raw x
convert -c -C a.raw x
convert -C -S 4k a.raw x
convert --salvage -C a.raw x
convert -n -o preallocation=off -O raw a.raw x
convert --target-is-zero -O raw a.raw x
convert --skip-broken-bitmaps a.qcow2 -O qcow2 x
convert --image-opts -f raw a.raw x
convert --target-image-opts a.raw driver=raw,file.filename=x
convert --target-image-opts -n -O raw a.raw driver=raw,file.filename=x
convert -l snapshot.foo=1 -O raw a.qcow2 x
convert -B a.raw a.raw x
convert -O qcow2 -B a.raw a.raw x
convert -O qcow2 -o backing_file=a.raw a.raw x
convert -O qcow2 -F raw a.raw x
convert -O raw a.raw foo:x
convert --ta a.raw x
convert --bit=x a.raw x
`

// TestMistakes compares texts and exit codes of mistakes with those of qemu-img.
func TestMistakes(t *testing.T) {
	if testing.Short() {
		t.Skip("so many starts of a program take long under the race detector")
	}
	dir := t.TempDir()
	for _, args := range [][]string{{"create", "-q", "-f", "raw", "a.raw", "1M"}, {"create", "-q", "-f", "qcow2", "a.qcow2", "1M"}} {
		cmd := peers.Command(t, "qemu-img", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	}
	for _, line := range strings.Split(strings.TrimSpace(mistakes), "\n") {
		args := strings.Fields(line)
		for i := range args {
			if args[i] == "''" {
				args[i] = ""
			}
		}
		cmd := peers.Command(t, "qemu-img", args...)
		cmd.Dir = dir
		var stderr strings.Builder
		cmd.Stderr = &stderr
		_ = cmd.Run() // the code is looked at
		want := fmt.Sprintf("%sexit %d", dropWarnings(stderr.String()), cmd.ProcessState.ExitCode())
		_, err := Parse(args, registry())
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %v\nqemu-img: %s", line, err, want)
			continue
		}
		got := fmt.Sprintf("qemu-img: %s\n", e.Text)
		if e.Try {
			got += "Try 'qemu-img --help' for more information\n"
		}
		if got += fmt.Sprintf("exit %d", e.Exit); got != want {
			t.Errorf("%s:\n%s\nqemu-img:\n%s", line, got, want)
		}
	}
}

// dropWarnings removes what qemu-img says of raw images that it has found by their bytes: it restricts writing to them, and imgtool does not.
func dropWarnings(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "WARNING: Image format") && !strings.HasPrefix(line, "         ") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
