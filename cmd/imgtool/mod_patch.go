package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/partition"
)

// patchFlags say where a patch goes and where its bytes come from.
type patchFlags struct {
	part   string
	offset string
	seek   string
	from   string
}

func newModPatch(a *app) *cobra.Command {
	var p patchFlags
	cmd := &cobra.Command{
		Use:   "patch FILE.gz (--part SELECTOR | --offset N) [--seek N] [--from PATH]",
		Short: "Change bytes of a kept range in place",
		Long: `Write the bytes of standard input, or of --from, into a kept range of a modifiable image, and put its checksums right. Bytes that are
there already are not written. The change is durable when the command returns. If it is interrupted, "imgtool mod repair" puts the
checksums right.

` + selectorHelp,
		Example: `  imgtool mod patch disk.raw.gz --part name=boot < boot.img
  imgtool mod patch disk.raw.gz --offset 1050624 --from sector.bin`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.patch(cmd.Context(), args[0], p) },
	}
	f := cmd.Flags()
	f.StringVar(&p.part, "part", "", "the partition to write to")
	f.StringVar(&p.offset, "offset", "", "the byte of the image to write from")
	f.StringVar(&p.seek, "seek", "0", "how many bytes of the partition, or behind the offset, to skip")
	f.StringVar(&p.from, "from", "-", "the file to read; - is standard input")
	return cmd
}

func (a *app) patch(ctx context.Context, path string, p patchFlags) error {
	if _, _, _, err := p.parse(); err != nil {
		return err
	}
	d, err := a.openMod(ctx, path, true)
	if err != nil {
		return err
	}
	return a.patchOpen(ctx, d, path, p)
}

// patchOpen patches an open image, says what changed, and closes it.
func (a *app) patchOpen(ctx context.Context, d *gzipmod.Device, path string, p patchFlags) error {
	start := time.Now()
	done, err := a.patchDevice(ctx, d, p)
	if err = errors.Join(err, d.Close()); err != nil {
		return nameFile(path, modHint(err))
	}
	done.Filename, done.CRC = path, d.Layout().CRC()
	if a.json {
		return a.printJSON(done)
	}
	a.printf("%s: %d of %d bytes at byte %d changed, CRC-32 now %08x, %s", path, done.Changed, done.Length, done.Start, done.CRC,
		time.Since(start).Round(10*time.Microsecond))
	return nil
}

// patched says what a patch did.
type patched struct {
	Filename string `json:"filename"`
	Start    int64  `json:"start"`
	Length   int64  `json:"length"`
	Changed  int64  `json:"changed"`
	CRC      uint32 `json:"crc32"`
}

func (a *app) patchDevice(ctx context.Context, d *gzipmod.Device, p patchFlags) (patched, error) {
	seek, offset, selector, err := p.parse()
	if err != nil {
		return patched{}, err
	}
	where, what := partition.Range{Off: offset, Len: d.Size() - offset}, "image"
	if selector != nil {
		if where, what, err = selectPart(ctx, d, *selector); err != nil {
			return patched{}, err
		}
	}
	if seek > where.Len {
		return patched{}, fmt.Errorf("byte %d lies behind the end of the %s", offset+seek, what)
	}
	where.Off, where.Len = where.Off+seek, where.Len-seek
	src, n, done, err := a.patchSource(p.from, where.Len, what)
	if err != nil {
		return patched{}, err
	}
	defer done()
	// Refused as a whole before the first byte is written.
	if err := d.Discard(ctx, where.Off, n); err != nil {
		return patched{}, err
	}
	changed, err := copyPatch(ctx, d, where.Off, n, src)
	if err == nil {
		err = d.Flush(ctx)
	}
	return patched{Start: where.Off, Length: n, Changed: changed}, err
}

func (p patchFlags) parse() (seek, offset int64, selector *partition.Selector, err error) {
	if (p.part == "") == (p.offset == "") {
		return 0, 0, nil, usagef("one of --part and --offset is needed")
	}
	if seek, err = sizes.ParseSize(p.seek); err != nil {
		return 0, 0, nil, usagef("--seek: %w", err)
	}
	if p.part == "" {
		if offset, err = sizes.ParseSize(p.offset); err != nil {
			return 0, 0, nil, usagef("--offset: %w", err)
		}
		return seek, offset, nil, nil
	}
	s, err := partition.ParseSelector(p.part)
	if err != nil {
		return 0, 0, nil, &usageError{err: err}
	}
	return seek, 0, &s, nil
}

// selectPart returns the one range that a selector means, and what to call it.
func selectPart(ctx context.Context, d block.Device, s partition.Selector) (partition.Range, string, error) {
	t, err := partition.Read(ctx, d)
	if err != nil && s.Kind != partition.ByRange {
		return partition.Range{}, "", err
	}
	ranges, parts, err := t.Select(ctx, d, s)
	if err != nil {
		return partition.Range{}, "", err
	}
	if len(ranges) > 1 {
		return partition.Range{}, "", fmt.Errorf("%v means %d ranges, and a patch goes into one", s, len(ranges))
	}
	if len(parts) == 1 {
		return ranges[0], fmt.Sprintf("partition %d", parts[0].Number), nil
	}
	return ranges[0], "range", nil
}

// patchMemory is how much of a pipe is kept in memory before a temporary file is used, in bytes.
const patchMemory = 64 << 20

// patchSource returns the bytes of a patch and how many there are, at most room. A pipe is read to its end first: whether it fits is known
// before anything is changed.
func (a *app) patchSource(from string, room int64, what string) (src io.Reader, n int64, done func(), err error) {
	f, done := a.stdin, func() {}
	if from != "-" {
		if f, err = os.Open(from); err != nil {
			return nil, 0, nil, err
		}
		done = func() { f.Close() }
	}
	name := from
	if from == "-" {
		name = "standard input"
	}
	defer func() {
		if err != nil {
			done()
			err = nameFile(name, err)
		}
	}()
	tooLong := func(text string) error {
		return fmt.Errorf("%s bytes do not fit into the %d that are left of the %s", text, room, what)
	}
	if st, e := f.Stat(); e == nil && st.Mode().IsRegular() {
		at, e := f.Seek(0, io.SeekCurrent)
		if e != nil {
			return nil, 0, nil, e
		}
		if n = max(st.Size()-at, 0); n > room {
			return nil, 0, nil, tooLong(fmt.Sprint(n))
		}
		return f, n, done, nil
	}
	var head bytes.Buffer
	if n, err = io.Copy(&head, io.LimitReader(f, min(patchMemory, room+1))); err != nil {
		return nil, 0, nil, err
	}
	if n > room {
		return nil, 0, nil, tooLong(fmt.Sprintf("more than %d", room))
	}
	if n < patchMemory {
		return &head, n, done, nil
	}
	return spool(f, &head, room, done, tooLong)
}

// spool reads the rest of a pipe into a temporary file.
func spool(f *os.File, head *bytes.Buffer, room int64, done func(), tooLong func(string) error) (io.Reader, int64, func(), error) {
	t, err := os.CreateTemp("", "imgtool-patch-")
	if err != nil {
		return nil, 0, nil, err
	}
	remove := func() {
		t.Close()
		os.Remove(t.Name())
		done()
	}
	n := int64(head.Len())
	rest, err := io.Copy(t, io.LimitReader(f, room-n+1))
	if err == nil && n+rest > room {
		err = tooLong(fmt.Sprintf("more than %d", room))
	}
	if err == nil {
		_, err = t.Seek(0, io.SeekStart)
	}
	if err != nil {
		t.Close()
		return nil, 0, nil, errors.Join(err, os.Remove(t.Name()))
	}
	return io.MultiReader(head, t), n + rest, remove, nil
}

// copyPatch writes n bytes of src at off, and returns how many of them differed.
func copyPatch(ctx context.Context, d *gzipmod.Device, off, n int64, src io.Reader) (changed int64, err error) {
	const piece = 8 << 20
	buf, old := make([]byte, min(n, piece)), make([]byte, min(n, piece))
	for n > 0 {
		p, q := buf[:min(n, piece)], old[:min(n, piece)]
		if _, err := io.ReadFull(src, p); err != nil {
			return changed, fmt.Errorf("the patch ends before its %d bytes: %w", n, err)
		}
		if err := d.Read(ctx, q, off); err != nil {
			return changed, err
		}
		for i := range p {
			if p[i] != q[i] {
				changed++
			}
		}
		if err := d.Write(ctx, p, off, 0); err != nil {
			return changed, err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return changed, nil
}
