package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
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

// patchPlace is where a patch goes.
type patchPlace struct {
	selector *partition.Selector // nil for an offset of the image
	offset   int64
	seek     int64 // from the start of what the selector means, or from offset
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
		RunE: func(cmd *cobra.Command, args []string) error { return a.patch(cmd.Context(), args[0], &p) },
	}
	f := cmd.Flags()
	f.StringVar(&p.part, "part", "", "the partition to write to")
	f.StringVar(&p.offset, "offset", "", "the byte of the image to write from")
	f.StringVar(&p.seek, "seek", "0", "how many bytes from there to skip")
	f.StringVar(&p.from, "from", "-", "the file to read; - is standard input")
	return cmd
}

func (a *app) patch(ctx context.Context, path string, p *patchFlags) error {
	place, err := p.parse()
	if err != nil {
		return err
	}
	d, err := a.openMod(ctx, path, true)
	if err != nil {
		return err
	}
	start := time.Now()
	done, err := a.patchOpen(ctx, d, path, place, p.from)
	if ctx.Err() != nil && done.Length > 0 {
		a.log().Warn("a part of the patch may have been written: patch again", "file", path)
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(done)
	}
	a.printf("%v, %s", done, time.Since(start).Round(10*time.Microsecond))
	return nil
}

func (p *patchFlags) parse() (place patchPlace, err error) {
	if (p.part == "") == (p.offset == "") {
		return place, usagef("one of --part and --offset is needed, to say where the bytes go")
	}
	if place.seek, err = sizes.ParseSize(p.seek); err != nil {
		return place, usagef("--seek: %w", err)
	}
	if p.part == "" {
		if place.offset, err = sizes.ParseSize(p.offset); err != nil {
			return place, usagef("--offset: %w", err)
		}
		return place, nil
	}
	s, err := partition.ParseSelector(p.part)
	if err != nil {
		return place, &usageError{err: err}
	}
	place.selector = &s
	return place, nil
}

// patched says what a patch did.
type patched struct {
	Filename string `json:"filename"`
	Start    int64  `json:"start"`
	Length   int64  `json:"length"`
	Changed  int64  `json:"changed"`
	CRC      uint32 `json:"crc32"`
}

func (p patched) String() string {
	return fmt.Sprintf("%s: %d of %d bytes at byte %d changed, CRC-32 now %08x", p.Filename, p.Changed, p.Length, p.Start, p.CRC)
}

// patchOpen patches an open image, whose file path is, and closes it.
func (a *app) patchOpen(ctx context.Context, d *gzipmod.Device, path string, place patchPlace, from string) (patched, error) {
	done := patched{Filename: path}
	err := a.patchDevice(ctx, d, &done, place, from)
	if e := d.Close(); errors.Is(e, gzipmod.ErrDirty) {
		err = e // which says why as well
	} else {
		err = errors.Join(err, e)
	}
	done.CRC = d.Layout().CRC()
	return done, nameFile(path, modHint(err))
}

// patchDevice writes the bytes of from, and fills in what was done. Length is set when writing begins.
func (a *app) patchDevice(ctx context.Context, d *gzipmod.Device, done *patched, place patchPlace, from string) error {
	where, what, err := place.find(ctx, d)
	if err != nil {
		return err
	}
	src, err := a.openPatch(from, done.Filename, where.Len, what)
	if err != nil {
		return nameFile(patchName(from), err)
	}
	defer src.Close()
	// Refused as a whole before the first byte is written.
	if err := d.Announce(ctx, where.Off, src.n); err != nil {
		return err
	}
	done.Start, done.Length = where.Off, src.n
	if done.Changed, err = copyPatch(ctx, d, where.Off, src); err == nil {
		err = d.Flush(ctx)
	}
	if err != nil && !errors.As(err, new(*block.Hint)) {
		err = block.WithHint(err, "a part of the patch may have been written; the image is sound: patch it again")
	}
	return err
}

// find returns the range into which a patch has to fit, and what to call it.
func (p *patchPlace) find(ctx context.Context, d *gzipmod.Device) (where partition.Range, what string, err error) {
	where, what = partition.Range{Len: d.Size()}, "the image"
	skip, ok := block.Add(p.offset, p.seek)
	if p.selector != nil {
		if where, what, err = selectPart(ctx, d, *p.selector); err != nil {
			return where, what, err
		}
	}
	if !ok || skip > where.Len {
		return where, what, fmt.Errorf("%s has %s, and the patch would begin behind its end", what, sizes.FormatSize(where.Len))
	}
	return partition.Range{Off: where.Off + skip, Len: where.Len - skip}, what, nil
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
		var each []string
		for i, r := range ranges {
			if i < len(parts) {
				each = append(each, fmt.Sprint(parts[i].Number))
			} else {
				each = append(each, partition.Selector{Kind: partition.ByRange, Range: r}.String())
			}
		}
		return partition.Range{}, "", fmt.Errorf("%v means %d ranges, and a patch goes into one: choose from %s", s, len(ranges), strings.Join(each, ", "))
	}
	if len(parts) == 1 {
		return ranges[0], fmt.Sprintf("partition %d", parts[0].Number), nil
	}
	return ranges[0], "the range", nil
}

// patchMemory is how much of a pipe is kept in memory before a temporary file is used, in bytes.
const patchMemory = 64 << 20

// patchSource holds the bytes of a patch.
type patchSource struct {
	io.Reader
	n       int64      // how many there are
	closers []*os.File // the last is opened last
	spooled string     // the temporary file, if there is one
}

func (s *patchSource) Close() {
	for _, f := range s.closers {
		f.Close() // it was read only, or will be removed
	}
	if s.spooled != "" {
		os.Remove(s.spooled)
	}
}

// patchName is what errors call the file that --from names.
func patchName(from string) string {
	if from == chain.Standard {
		return "standard input"
	}
	return from
}

// openPatch returns the bytes of a patch, at most room. A pipe is read to its end first: whether it fits is known before anything is changed.
// The caller closes it.
func (a *app) openPatch(from, image string, room int64, what string) (src *patchSource, err error) {
	src = &patchSource{}
	defer func() {
		if err != nil {
			src.Close()
		}
	}()
	f := a.stdin
	if from != chain.Standard {
		if f, err = os.Open(from); err != nil {
			return src, err
		}
		src.closers = append(src.closers, f)
	}
	st, err := f.Stat()
	if err != nil {
		return src, err
	}
	if from == chain.Standard && st.Mode()&os.ModeCharDevice != 0 && term.IsTerminal(int(f.Fd())) {
		return src, usagef("standard input is a terminal: redirect it, or give a file with --from")
	}
	if target, err := os.Stat(image); err == nil && os.SameFile(st, target) {
		return src, usagef("%s: it is the image that is to be patched", patchName(from))
	}
	if st.Mode().IsRegular() {
		err = src.fromFile(f, st.Size())
	} else {
		err = src.fromPipe(f, room)
	}
	switch {
	case err != nil:
		return src, err
	case src.n > room && st.Mode().IsRegular():
		return src, fmt.Errorf("%d bytes do not fit into the %d that are left of %s", src.n, room, what)
	case src.n > room:
		return src, fmt.Errorf("its bytes do not fit into the %d that are left of %s", room, what)
	case src.n == 0:
		return src, block.WithHint(errors.New("it is empty"), "nothing was changed; did the program before the pipe fail?")
	}
	return src, nil
}

func (s *patchSource) fromFile(f *os.File, size int64) error {
	at, err := f.Seek(0, io.SeekCurrent)
	s.Reader, s.n = f, max(size-at, 0)
	return err
}

// fromPipe reads a pipe to its end, or until it holds more than room.
func (s *patchSource) fromPipe(f *os.File, room int64) (err error) {
	var head bytes.Buffer
	s.Reader = &head
	if s.n, err = io.Copy(&head, io.LimitReader(f, min(patchMemory, room+1))); err != nil || s.n < patchMemory {
		return err
	}
	t, err := os.CreateTemp("", "imgtool-patch-")
	if err != nil {
		return block.WithHint(err, "what does not fit into memory needs a temporary file: set TMPDIR to a folder with room")
	}
	s.closers, s.spooled = append(s.closers, t), t.Name()
	rest, err := io.Copy(t, io.LimitReader(f, room-s.n+1))
	if err == nil {
		_, err = t.Seek(0, io.SeekStart)
	}
	s.Reader, s.n = io.MultiReader(&head, t), s.n+rest
	return err
}

// copyPatch writes a patch at off, and returns how many bytes differed.
func copyPatch(ctx context.Context, d *gzipmod.Device, off int64, src *patchSource) (changed int64, err error) {
	buf := make([]byte, min(src.n, 128<<10)) // memory that was not used before costs more than another call of the system
	for done := int64(0); done < src.n; {
		p := buf[:min(src.n-done, int64(len(buf)))]
		_, err := io.ReadFull(src, p)
		if err != nil {
			err = fmt.Errorf("reading the patch: %w", err)
		} else {
			err = d.Write(ctx, p, off+done, 0)
		}
		if err != nil && done > 0 {
			err = fmt.Errorf("after %d of %d bytes: %w", done, src.n, err)
		}
		if err != nil {
			return d.Changed(), err
		}
		done += int64(len(p))
	}
	return d.Changed(), nil
}
