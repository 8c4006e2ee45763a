package gzipmod

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/segment"
)

// readers are programs that unpack a gzip file to standard output.
var readers = [][]string{
	{"gzip", "-dc"},
	{"pigz", "-dc"},
	{"igzip", "-dc"},
	{"libdeflate-gunzip", "-c"},
	{"bgzip", "-dc"},
	{"7zz", "x", "-so"},
	{"busybox", "gunzip", "-c"},
	{"python3", "-c", "import gzip,shutil,sys; shutil.copyfileobj(gzip.open(sys.argv[1]), sys.stdout.buffer)"},
	// A reader of one member, as coreos-installer is, which fails on whatever follows it.
	{"python3", "-c", `import sys,zlib
d = zlib.decompressobj(31)
sys.stdout.buffer.write(d.decompress(open(sys.argv[1], 'rb').read()))
sys.exit(0 if d.eof and not d.unused_data else 3)`},
}

// agree checks that every reader unpacks file to what has this SHA-256.
func agree(t *testing.T, file string, want [sha256.Size]byte) {
	for _, r := range readers {
		t.Run(r[0]+" "+r[1], func(t *testing.T) {
			cmd := exec.Command(peers.Need(t, r[0]), append(r[1:len(r):len(r)], file)...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.StdoutPipe()
			check(t, err)
			check(t, cmd.Start())
			h := sha256.New()
			n, err := io.Copy(h, out)
			check(t, err)
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%v\n%s", err, stderr.Bytes())
			}
			if [sha256.Size]byte(h.Sum(nil)) != want {
				t.Fatalf("%d bytes with another SHA-256", n)
			}
		})
	}
}

func TestEveryReaderAgrees(t *testing.T) {
	if testing.Short() {
		t.Skip("nothing runs concurrently here")
	}
	// A hole that is long, one that 258 does not divide, data of every kind, kept ranges in the middle and at the end.
	p := append(image(20, 9<<20), make([]byte, 40<<20+77)...)
	p = append(p, image(21, 5<<20+999)...)
	keep := []Range{span(1<<20, 3<<20), span(int64(len(p))-200000, 200000)}
	file := mod(t, device(t, p), Options{Keep: keep}, 2)
	d, err := Open(ctx, file, OpenOptions{Write: true, Mark: &memoryMark{}})
	check(t, err)
	change := bytes.Repeat([]byte("changed "), 30000)
	check(t, d.Write(ctx, change, 2<<20+17, 0))
	copy(p[2<<20+17:], change)
	check(t, d.Flush(ctx))
	path := filepath.Join(t.TempDir(), "disk.raw.gz")
	check(t, os.WriteFile(path, content(t, file), 0o666))
	agree(t, path, sha256.Sum256(p))
}

// TestEveryReaderAgreesOnTheLongestHeader reads a header that is as long as any can be.
func TestEveryReaderAgreesOnTheLongestHeader(t *testing.T) {
	p := image(22, 2<<20+5)
	plan, err := PlanStream(ctx, &pipe{rand.New(rand.NewPCG(2, 2)), p}, Options{})
	check(t, err)
	file := block.NewMemory(0)
	_, err = segment.Write(ctx, segment.ToDevice(file), plan, segment.Options{})
	check(t, err)
	if l := openRead(t, file).Layout(); l.HeaderLen() != maxHeader {
		t.Fatalf("a header of %d bytes", l.HeaderLen())
	}
	path := filepath.Join(t.TempDir(), "disk.raw.gz")
	check(t, os.WriteFile(path, content(t, file), 0o666))
	agree(t, path, sha256.Sum256(p))
}
