package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

// comparison is one thing that several programs do to the same input.
type comparison struct {
	name    string
	note    string                          // what a reader has to know, as a sentence
	prepare func(ctx context.Context) error // once, not timed; nil for nothing
	inputs  []string                        // files that are read into memory before the first run
	out     string                          // what a run makes: removed before each run, its size is shown; "" where it works in place
	runs    int                             // counted runs; 0 means -n
	of      []program                       // imgtool first
}

// program is one side of a comparison.
type program struct {
	label  string   // in the table, for the file names in argv say nothing
	argv   []string // the command
	stdout bool     // its standard output is the comparison's output
	check  []string // a command that fails where the output is wrong; nil for none
}

// comparisons returns all of them, in the order of the tables.
func comparisons(s settings) []comparison {
	list := []comparison{
		startUp(s),
		rawToGzip(s),
		gzipToRaw(s),
		foreignToRaw(s, "gzip"),
		foreignToRaw(s, "pigz"),
		foreignAtRandom(s),
		rawToRaw(s),
		makeModifiable(s),
		verify(s),
		patch(s, "patch 1 MiB", 0),
	}
	list = append(list, qcow2Comparisons(s)...)
	list = append(list, nbdComparisons(s)...)
	if s.levels {
		for n := 1; n <= 9; n++ {
			list = append(list, level(s, n))
		}
	}
	if s.big {
		list = append(list, patch(s, "patch 1 MiB in 60 GiB", 60*gib), sparse(s))
	}
	return list
}

// startUp is the time to do nothing.
func startUp(s settings) comparison {
	return comparison{
		name: "start-up",
		runs: 4 * s.runs,
		of: []program{
			{label: "imgtool help", argv: []string{s.imgtool, "help"}},
			{label: "qemu-img --help", argv: []string{"qemu-img", "--help"}},
			{label: "gzip --help", argv: []string{"gzip", "--help"}},
		},
	}
}

func rawToGzip(s settings) comparison {
	out := s.file("out.gz")
	check := sameAs(s.image, "gzip", out)
	return comparison{
		name:   "raw to gz",
		inputs: []string{s.image},
		out:    out,
		of: []program{
			{label: "imgtool convert -O gz", argv: []string{s.imgtool, "convert", "-O", "gz", s.image, out}, check: check},
			{label: "pigz -p2 -6", argv: []string{"pigz", "-p2", "-6", "-c", s.image}, stdout: true, check: check},
		},
	}
}

func gzipToRaw(s settings) comparison {
	source, out := s.file("source.gz"), s.file("out.raw")
	check := []string{"cmp", s.image, out}
	return comparison{
		name: "gz to raw",
		note: "The input is imgtool's own file. Only imgtool makes holes in the output.",
		prepare: func(ctx context.Context) error {
			return once(ctx, s.imgtool, "convert", "-O", "gz", s.image, source)
		},
		inputs: []string{source},
		out:    out,
		of: []program{
			{label: "imgtool convert", argv: []string{s.imgtool, "convert", source, out}, check: check},
			{label: "gzip -dc", argv: []string{"gzip", "-dc", source}, stdout: true, check: check},
			{label: "pigz -dc", argv: []string{"pigz", "-dc", source}, stdout: true, check: check},
		},
	}
}

// foreignToRaw unpacks what another program packed in one stream.
func foreignToRaw(s settings, packer string) comparison {
	source, out := s.file("foreign.gz"), s.file("out.raw")
	check := []string{"cmp", s.image, out}
	return comparison{
		name: packer + " -6 to raw",
		note: "Only imgtool makes holes in the output.",
		prepare: func(ctx context.Context) error {
			return once(ctx, "sh", "-c", `"$1" -6 -c "$2" >"$3"`, "sh", packer, s.image, source)
		},
		inputs: []string{source},
		out:    out,
		of: []program{
			{label: "imgtool convert", argv: []string{s.imgtool, "convert", source, out}, check: check},
			{label: "gzip -dc", argv: []string{"gzip", "-dc", source}, stdout: true, check: check},
			{label: "pigz -dc", argv: []string{"pigz", "-dc", source}, stdout: true, check: check},
			{label: "igzip -dc", argv: []string{"igzip", "-dc", source}, stdout: true, check: check},
		},
	}
}

// foreignAtRandom reads 4 KiB from the middle of what another program packed in one stream.
func foreignAtRandom(s settings) comparison {
	source, index, out := s.file("foreign.gz"), s.file("foreign.idx"), s.file("out")
	offset := 100 * int64(mib)
	window := fmt.Sprintf("%s::window,offset=%d,size=4096", source, offset)
	check := []string{"sh", "-c", `tail -c +"$2" "$1" | head -c 4096 | cmp - "$3"`, "sh", s.image, strconv.FormatInt(offset+1, 10), out}
	return comparison{
		name: "4 KiB from a gzip -6 file",
		note: "All programs start, open, read 4 KiB at 100 MiB, and end. The index is there already.",
		prepare: func(ctx context.Context) error {
			os.Remove(index)
			if err := once(ctx, "sh", "-c", `gzip -6 -c "$1" >"$2"`, "sh", s.image, source); err != nil {
				return err
			}
			return once(ctx, s.imgtool, "info", "--index-file", index, source)
		},
		inputs: []string{source},
		out:    out,
		of: []program{
			{label: "imgtool convert --index-file", argv: []string{s.imgtool, "convert", "-O", "raw", "--index-file", index, window, out}, check: check},
			{
				label: "nbdkit --filter=gzip, nbdsh",
				argv: []string{"nbdkit", "-U", "-", "--filter=gzip", "file", source, "--run",
					fmt.Sprintf(`PATH=/usr/bin:$PATH nbdsh -u "$uri" -c 'open("%s", "wb").write(h.pread(4096, %d))'`, out, offset)},
				check: check,
			},
			{label: "gzip -dc | tail | head", argv: []string{"sh", "-c", `gzip -dc "$1" | tail -c +"$2" | head -c 4096`, "sh", source, strconv.FormatInt(offset+1, 10)}, stdout: true, check: check},
		},
	}
}

// level compresses at one level, on one processor.
func level(s settings, n int) comparison {
	out, digit := s.file("out.gz"), strconv.Itoa(n)
	check := sameAs(s.image, "gzip", out)
	c := comparison{
		name:   "level " + digit,
		note:   "One worker each; compare the CPU time.",
		inputs: []string{s.image},
		out:    out,
		of: []program{
			{label: "imgtool convert -m 1 -o level=" + digit, argv: []string{s.imgtool, "convert", "-m", "1", "-O", "gz", "-o", "level=" + digit, s.image, out}, check: check},
			{label: "gzip -" + digit, argv: []string{"gzip", "-" + digit, "-c", s.image}, stdout: true, check: check},
			{label: "libdeflate-gzip -" + digit, argv: []string{"libdeflate-gzip", "-" + digit, "-c", s.image}, stdout: true, check: check},
		},
	}
	if n == 1 {
		c.of = append(c.of, program{label: "igzip -1", argv: []string{"igzip", "-1", "-c", s.image}, stdout: true, check: check})
	}
	return c
}

func rawToRaw(s settings) comparison {
	out := s.file("out.raw")
	check := []string{"cmp", s.image, out}
	return comparison{
		name:   "raw to raw",
		inputs: []string{s.image},
		out:    out,
		of: []program{
			{label: "imgtool convert -O raw", argv: []string{s.imgtool, "convert", "-O", "raw", s.image, out}, check: check},
			{label: "cp --sparse=always", argv: []string{"cp", "--sparse=always", s.image, out}, check: check},
			{label: "qemu-img convert -O raw", argv: []string{"qemu-img", "convert", "-f", "raw", "-O", "raw", s.image, out}, check: check},
		},
	}
}

func makeModifiable(s settings) comparison {
	out := s.file("out.gz")
	check := sameAs(s.image, "gzip", out)
	return comparison{
		name:   "raw to modifiable gz",
		note:   "The boot partition and the partition table stay modifiable.",
		inputs: []string{s.image},
		out:    out,
		of: []program{
			{label: "imgtool mod make", argv: modMake(s, s.image, out), check: check},
			{label: "pigz -p2 -6", argv: []string{"pigz", "-p2", "-6", "-c", s.image}, stdout: true, check: check},
		},
	}
}

func verify(s settings) comparison {
	source := s.file("source.gz")
	return comparison{
		name: "verify a modifiable gz",
		prepare: func(ctx context.Context) error {
			os.Remove(source)
			return once(ctx, modMake(s, s.image, source)...)
		},
		inputs: []string{source},
		of: []program{
			{label: "imgtool mod verify", argv: []string{s.imgtool, "mod", "verify", source}},
			{label: "gzip -t", argv: []string{"gzip", "-t", source}},
			{label: "pigz -t", argv: []string{"pigz", "-t", source}},
		},
	}
}

// patch compares a change inside a compressed image with the same change in a raw one. The image is grown to size where that is not 0.
func patch(s settings, name string, size int64) comparison {
	raw, gz, bytes := s.file("patch.raw"), s.file("patch.gz"), s.file("patch.bytes")
	const seek = 16 // MiB into the partition; what lies there does not matter
	return comparison{
		name: name,
		note: "dd writes the same bytes into the raw image; both sync.",
		prepare: func(ctx context.Context) error {
			os.Remove(gz)
			if err := os.WriteFile(bytes, noise(mib), 0o600); err != nil {
				return err
			}
			if err := once(ctx, "cp", "--sparse=always", s.image, raw); err != nil {
				return err
			}
			if size != 0 {
				if err := os.Truncate(raw, size); err != nil {
					return err
				}
				// The backup of the partition table belongs at the new end.
				if err := once(ctx, "sgdisk", "--move-second-header", raw); err != nil {
					return err
				}
			}
			return once(ctx, modMake(s, raw, gz)...)
		},
		of: []program{
			{
				label: "imgtool mod patch",
				argv:  []string{s.imgtool, "mod", "patch", gz, "--part", "name=boot", "--from", bytes, "--seek", fmt.Sprintf("%dM", seek)},
				check: []string{"gzip", "-t", gz},
			},
			{
				label: "dd conv=notrunc,fsync",
				argv:  []string{"dd", "if=" + bytes, "of=" + raw, "bs=1M", fmt.Sprintf("seek=%d", seek), "conv=notrunc,fsync", "status=none"},
			},
		},
	}
}

// sparse compresses 1 TiB with 1 GiB of data in it. No compressor that reads every byte can stand beside that; qemu-img reads the holes too,
// and writes another format.
func sparse(s settings) comparison {
	source, out := s.file("sparse.raw"), s.file("out")
	return comparison{
		name:    "1 TiB with 1 GiB of data",
		note:    "qemu-img, which sees the holes as well, compresses to qcow2.",
		prepare: func(ctx context.Context) error { return makeSparse(ctx, source, tib, 64, 16*mib) },
		out:     out,
		runs:    min(s.runs, 3),
		of: []program{
			{label: "imgtool convert -O gz", argv: []string{s.imgtool, "convert", "-O", "gz", source, out}},
			{
				label: "qemu-img convert -c -O qcow2",
				argv:  []string{"qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", source, out},
				check: []string{"qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, out},
			},
		},
	}
}

// file returns a name in the working folder.
func (s settings) file(name string) string { return filepath.Join(s.work, name) }

// modMake is the command that makes a modifiable image of which the boot partition and the partition table are kept.
func modMake(s settings, from, to string) []string {
	return []string{s.imgtool, "mod", "make", "--keep", "name=boot", "--keep", "gpt", from, to}
}

// sameAs is the command that compares what a decompressor makes of a file with the image.
func sameAs(image, decompressor, file string) []string {
	return []string{"sh", "-c", `"$2" -dc "$3" | cmp - "$1"`, "sh", image, decompressor, file}
}

// once runs a command whose time does not matter.
func once(ctx context.Context, argv ...string) error {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", argv[0], err, lastLine(out))
	}
	return nil
}

// makeSparse writes a file of a size that holds runs of half-compressible data, evenly spread.
func makeSparse(ctx context.Context, name string, size int64, runs int, run int64) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	if err := f.Truncate(size); err != nil {
		return err
	}
	for i := range int64(runs) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.WriteAt(noise(run), i*(size/int64(runs))); err != nil {
			return err
		}
	}
	return nil
}

// noise returns n bytes, each of 16 values: a compressor halves them.
func noise(n int64) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range p {
		p[i] = byte(r.Uint32() & 15)
	}
	return p
}
