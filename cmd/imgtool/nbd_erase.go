package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// nbdErase is one run of nbd discard or nbd zero.
type nbdErase struct {
	*app
	at     nbdTarget
	zero   bool // nbd zero
	offset size
	length size // -1 for all
	check  bool
	fast   bool
	holes  bool
	yes    bool

	off, n int64 // the range
}

// The longest range of one request, in bytes: so long a request that cannot be interrupted takes, and so often progress is told.
const (
	discardPiece = 1 << 30
	zeroPiece    = 128 << 20
)

// flags adds what both commands have.
func (v *nbdErase) flags(c *cobra.Command) {
	v.at.flags(c)
	f := c.Flags()
	f.VarP(&v.offset, "offset", "o", "where to begin")
	f.VarP(&v.length, "length", "l", "how many bytes")
	f.Lookup("length").DefValue = "to the end"
	f.BoolVarP(&v.check, "check", "c", false, "change nothing: find out whether it has been done already")
	f.BoolVarP(&v.yes, "yes", "y", false, "do not ask")
}

const eraseHelp = `Before anything is changed, the range is told and asked for; without a terminal nothing is changed unless --yes is given. The range has to fit
the blocks of the server. What has been changed is durable at the end, where the server can flush.`

// command runs the command that verb names. With --check the exit code 2 means no, and nothing else.
func (v *nbdErase) command(c *cobra.Command, args []string, verb string) error {
	err := v.at.parse(args[0])
	if err == nil {
		err = v.run(c.Context(), verb)
	}
	if v.check {
		err = notNo(err)
	}
	return err
}

// run does what the command is for.
func (v *nbdErase) run(ctx context.Context, verb string) error {
	s, err := v.at.connect(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	var contexts []client.MetaContext
	if v.check && s.Structured() {
		contexts, err = s.SetMetaContexts(s.ctx, v.at.export, wire.BaseAllocation)
		if err != nil && !isRefusal(err) {
			return s.named(err)
		}
	}
	e, err := s.begin(v.at.export)
	if err != nil {
		return err
	}
	if err := v.place(e); err != nil {
		return err
	}
	if v.check {
		same, err := v.already(ctx, s.Conn, contexts)
		if err == nil && !same {
			return &codeError{exitNo, nil}
		}
		return s.named(err)
	}
	if err := v.refuse(e); err != nil {
		return s.named(err)
	}
	if v.n == 0 {
		return nil
	}
	if err := v.confirm(ctx); err != nil {
		return err
	}
	return s.named(v.erase(ctx, s.Conn, verb))
}

// place finds out which range is meant.
func (v *nbdErase) place(e client.ExportInfo) error {
	v.off, v.n = int64(v.offset), int64(v.length)
	if v.off > e.Size {
		return usagef("--offset=%d is past the end of the export, which has %s", v.off, sizes.FormatSize(e.Size))
	}
	if v.n < 0 {
		v.n = e.Size - v.off
	}
	if v.n > e.Size-v.off {
		return usagef("--length=%d reaches past the end of the export, which has %s", v.n, sizes.FormatSize(e.Size))
	}
	if end := v.off + v.n; !v.check && (v.off%e.MinBlock != 0 || end%e.MinBlock != 0 && end != e.Size) {
		return usagef("bytes %d - %d: the server has blocks of %d bytes, which the range has to consist of", v.off, end-1, e.MinBlock)
	}
	return nil
}

// refuse returns why the export cannot be changed so, or nil.
func (v *nbdErase) refuse(e client.ExportInfo) error {
	needed, what := wire.SendTrim, "TRIM"
	if v.zero {
		needed, what = wire.SendWriteZeroes, "WRITE_ZEROES"
	}
	switch {
	case e.Flags&wire.ReadOnly != 0:
		return fmt.Errorf("the export is %w", block.ErrReadOnly)
	case e.Flags&needed == 0:
		return block.ErrorOf(errors.ErrUnsupported, "the server does not know %s for this export", what)
	case v.fast && e.Flags&wire.SendFastZero == 0:
		return block.WithHint(block.ErrorOf(errors.ErrUnsupported, "the server does not tell what it can do fast"), "without --fast-zero it may still be fast")
	}
	return nil
}

// confirm asks the user.
func (v *nbdErase) confirm(ctx context.Context) error {
	what := fmt.Sprintf("%s, bytes %d - %d", v.at.name(), v.off, v.off+v.n-1)
	if v.yes {
		return nil
	}
	if !isTerminal(v.stdin) {
		return usagef("%s: nothing is erased without a terminal to ask on, unless --yes is given", what)
	}
	fmt.Fprintf(v.stderr, "PERMANENTLY ERASE %s (%s) (y/N)? ", what, sizes.FormatSize(v.n))
	line, err := bufio.NewReader(v.stdin).ReadString('\n')
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch answer := strings.ToLower(strings.TrimSpace(line)); {
	case answer == "y" || answer == "yes":
		return nil
	case err != nil:
		fmt.Fprintln(v.stderr)
	}
	return errors.New("not confirmed, nothing has been erased")
}

// erase changes the range.
func (v *nbdErase) erase(ctx context.Context, c *client.Conn, verb string) error {
	tell, end := v.showProgress(verb)
	defer end()
	e := c.Export()
	piece := block.RoundDown(discardPiece, e.MinBlock)
	var f wire.CommandFlags
	if v.zero {
		piece = block.RoundDown(zeroPiece, e.MinBlock)
		if !v.holes {
			f |= wire.FlagNoHole
		}
		if v.fast {
			f |= wire.FlagFastZero
		}
	}
	for done := int64(0); done < v.n; {
		tell(done, v.n)
		n := min(piece, v.n-done)
		var err error
		if v.zero {
			err = c.WriteZeroes(ctx, v.off+done, n, f)
		} else {
			err = c.Trim(ctx, v.off+done, n, 0)
		}
		if v.fast && errors.Is(err, errors.ErrUnsupported) {
			err = block.WithHint(err, "it would take as long as writing; without --fast-zero it is done all the same")
		}
		if err != nil {
			return fmt.Errorf("at byte %d: %w", v.off+done, err)
		}
		done += n
	}
	tell(v.n, v.n)
	if e.Flags&wire.SendFlush == 0 {
		return nil
	}
	return c.Flush(ctx, 0)
}

// checkPiece is how much is read at a time to find out whether it is zero, in bytes.
const checkPiece = 1 << 20

// already reports whether the range is sparse, or for nbd zero whether it reads as zero. contexts holds base:allocation, where the server knows it.
func (v *nbdErase) already(ctx context.Context, c *client.Conn, contexts []client.MetaContext) (bool, error) {
	if len(contexts) == 0 {
		if !v.zero {
			return false, errors.New("the server does not tell where the export is sparse")
		}
		return readsAsZero(ctx, c, v.off, v.off+v.n)
	}
	for s, err := range statuses(ctx, c, contexts[0], v.off, v.off+v.n) {
		if err != nil {
			return false, err
		}
		switch {
		case !v.zero && s.flags&uint64(wire.StateHole) == 0:
			return false, nil
		case v.zero && s.flags&uint64(wire.StateZero) == 0:
			if zero, err := readsAsZero(ctx, c, s.off, s.off+s.n); !zero || err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// readsAsZero reads a range.
func readsAsZero(ctx context.Context, c *client.Conn, off, end int64) (bool, error) {
	d := newConnDevice(c)
	buf := make([]byte, min(checkPiece, c.MaxPayload(), max(end-off, 0)))
	for off < end {
		p := buf[:min(int64(len(buf)), end-off)]
		if err := d.Read(ctx, p, off); err != nil {
			return false, err
		}
		if !block.IsZero(p) {
			return false, nil
		}
		off += int64(len(p))
	}
	return true, nil
}
