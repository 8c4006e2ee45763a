package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
)

// qcow2Comparisons are those with qemu-img in its own format. It converts fastest with 16 requests at a time, written in any order, which
// compressed output does not allow.
func qcow2Comparisons(s settings) []comparison {
	qemuCompress := []string{"qemu-img", "convert", "-m", "16", "-c", "-f", "raw", "-O", "qcow2"}
	zstd := []string{"-o", "compression_type=zstd"}
	return []comparison{
		toQcow2(s, "raw to qcow2", nil, with(qemuConvert, "-f", "raw", "-O", "qcow2")),
		toQcow2(s, "raw to qcow2, zlib", []string{"-c"}, qemuCompress),
		toQcow2(s, "raw to qcow2, zstd", with([]string{"-c"}, zstd...), with(qemuCompress, zstd...)),
		fromQcow2(s, "qcow2 to raw", with(qemuConvert, "-f", "raw", "-O", "qcow2")),
		fromQcow2(s, "qcow2 to raw, zlib", qemuCompress),
		fromQcow2(s, "qcow2 to raw, zstd", with(qemuCompress, zstd...)),
		empty(s, "info", []string{"info"}, []string{"info"}),
		empty(s, "map", []string{"map", "--json"}, []string{"map", "--output=json"}),
		emptyToRaw(s),
		atRandom(s, "4 KiB reads all over a qcow2", 1),
		atRandom(s, "4 KiB reads through a chain of 8", 8),
		atRandom(s, "4 KiB writes all over an overlay", 1, "-w"),
	}
}

// qemuConvert is qemu-img at its fastest.
var qemuConvert = []string{"qemu-img", "convert", "-m", "16", "-W"}

// with returns argv followed by more, in memory of its own.
func with(argv []string, more ...string) []string {
	return append(append([]string{}, argv...), more...)
}

func toQcow2(s settings, name string, flags, qemu []string) comparison {
	out := s.file("out.qcow2")
	check := []string{"sh", "-c", `qemu-img check -q "$2" && qemu-img compare -q -f raw -F qcow2 "$1" "$2"`, "sh", s.image, out}
	return comparison{
		name:   name,
		inputs: []string{s.image},
		out:    out,
		of: []program{
			{label: "imgtool convert -O qcow2", argv: with(with([]string{s.imgtool, "convert", "-O", "qcow2"}, flags...), s.image, out), check: check},
			{label: "qemu-img convert", argv: with(qemu, s.image, out), check: check},
		},
	}
}

// fromQcow2 reads what qemu-img wrote.
func fromQcow2(s settings, name string, qemu []string) comparison {
	source, out := s.file("source.qcow2"), s.file("out.raw")
	check := []string{"cmp", s.image, out}
	return comparison{
		name: name,
		note: "The input is qemu-img's.",
		prepare: func(ctx context.Context) error {
			os.Remove(source)
			return once(ctx, with(qemu, s.image, source)...)
		},
		inputs: []string{source},
		out:    out,
		of: []program{
			{label: "imgtool convert", argv: []string{s.imgtool, "convert", source, out}, check: check},
			{label: "qemu-img convert", argv: with(qemuConvert, "-f", "qcow2", "-O", "raw", source, out), check: check},
		},
	}
}

// makeEmpty makes a disk of 1 TiB with 64 MiB of data.
func makeEmpty(s settings) (string, func(ctx context.Context) error) {
	raw, source := s.file("sparse.raw"), s.file("sparse.qcow2")
	return source, func(ctx context.Context) error {
		os.Remove(source)
		if err := makeSparse(ctx, raw, tib, 64, mib); err != nil {
			return err
		}
		defer os.Remove(raw)
		return once(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, source)
	}
}

// empty looks at a disk of 1 TiB with little in it.
func empty(s settings, verb string, own, qemu []string) comparison {
	source, prepare := makeEmpty(s)
	return comparison{
		name:    verb + " of a nearly empty qcow2 of 1 TiB",
		prepare: prepare,
		inputs:  []string{source},
		of: []program{
			{label: "imgtool " + verb, argv: with(with([]string{s.imgtool}, own...), source)},
			{label: "qemu-img " + verb, argv: with(with([]string{"qemu-img"}, qemu...), source)},
		},
	}
}

func emptyToRaw(s settings) comparison {
	source, prepare := makeEmpty(s)
	out := s.file("out.raw")
	return comparison{
		name:    "convert of a nearly empty qcow2 of 1 TiB",
		prepare: prepare,
		inputs:  []string{source},
		out:     out,
		of: []program{
			{label: "imgtool convert", argv: []string{s.imgtool, "convert", source, out}},
			{label: "qemu-img convert", argv: with(qemuConvert, "-f", "qcow2", "-O", "raw", source, out)},
		},
	}
}

// atRandom makes 100000 requests, each about a MiB behind the one before, of a disk of 1 GiB that lies in a chain of images: the lowest holds all of
// it, those above an eighth each. With flags it is the uppermost that is written to.
func atRandom(s settings, name string, chain int, flags ...string) comparison {
	base := func(i int) string { return fmt.Sprintf("chain%d.qcow2", i) }
	image := func(i int) string { return s.file(base(i)) }
	top := image(chain - 1)
	if len(flags) > 0 {
		top = image(chain)
	}
	requests := with([]string{"bench", "-f", "qcow2", "-c", "100000", "-d", "1", "-s", "4096", "-S", "1052672"}, flags...)
	return comparison{
		name: name,
		prepare: func(ctx context.Context) error {
			fill := []string{"qemu-img", "bench", "-w", "-f", "qcow2", "-d", "4", "-s", "1M", "--pattern", "7"}
			err := once(ctx, "qemu-img", "create", "-f", "qcow2", image(0), "1G")
			if err == nil {
				err = once(ctx, with(fill, "-c", "1024", image(0))...)
			}
			for i := 1; err == nil && image(i-1) != top; i++ {
				if err = once(ctx, "qemu-img", "create", "-f", "qcow2", "-b", base(i-1), "-F", "qcow2", image(i)); err == nil && len(flags) == 0 {
					err = once(ctx, with(fill, "-c", "128", "-S", "8M", "-o", strconv.Itoa(i)+"M", image(i))...)
				}
			}
			return err
		},
		of: []program{
			{label: "imgtool bench", argv: with(with([]string{s.imgtool}, requests...), top)},
			{label: "qemu-img bench", argv: with(with([]string{"qemu-img"}, requests...), top)},
		},
	}
}
