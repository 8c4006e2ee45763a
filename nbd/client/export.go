package client

import (
	"context"
	"errors"

	"github.com/imgtool/imgtool/nbd/wire"
)

// Info asks about an export.
func (c *Conn) Info(ctx context.Context, export string) (ExportInfo, error) {
	return c.about(ctx, wire.OptInfo, export)
}

// Go begins transmission. Of a server that does not know the option it is ExportName.
func (c *Conn) Go(ctx context.Context, export string) (ExportInfo, error) {
	if c.is(negotiation) && !c.fixed && !c.config.Unchecked {
		return c.ExportName(ctx, export)
	}
	e, err := c.about(ctx, wire.OptGo, export)
	var refused *OptionError
	if errors.As(err, &refused) && refused.Reply == wire.RepErrUnsup && !c.extended {
		return c.ExportName(ctx, export)
	}
	if err == nil {
		c.transmit(e)
		e = c.export
	}
	return e, err
}

// about sends INFO or GO, and asks for all there is to know.
func (c *Conn) about(ctx context.Context, o wire.Option, export string) (ExportInfo, error) {
	if err := c.checkString("export name", export); err != nil {
		return ExportInfo{}, err
	}
	data := appendString(nil, export)
	asked := []wire.Info{wire.InfoName, wire.InfoDescription, wire.InfoBlockSize}
	data = be.AppendUint16(data, uint16(len(asked)))
	for _, i := range asked {
		data = be.AppendUint16(data, uint16(i))
	}
	e := ExportInfo{asked: export}
	known := false
	err := c.step(ctx, o, data, func(r OptionReply) error {
		if r.Type == wire.RepAck && !known {
			return broken(o.String(), "the server does not tell the size of the export")
		}
		if r.Type != wire.RepInfo {
			return only(o, r)
		}
		if len(r.Data) < 2 {
			return broken(o.String(), "an information of %d bytes", len(r.Data))
		}
		known = known || wire.Info(be.Uint16(r.Data)) == wire.InfoExport
		return c.inform(&e, o.String(), wire.Info(be.Uint16(r.Data)), r.Data[2:])
	})
	if err != nil {
		return ExportInfo{}, err
	}
	if !e.BlockSizes {
		e.MinBlock, e.PreferredBlock, e.MaxPayload = 1, 4096, wire.DefaultMaxPayload
	}
	return e, nil
}

// inform puts a piece of information into e. What it does not know it leaves alone.
func (c *Conn) inform(e *ExportInfo, during string, kind wire.Info, b []byte) error {
	switch kind {
	case wire.InfoExport:
		if len(b) != 10 {
			return broken(during, "the size and the flags take %d bytes", len(b))
		}
		return c.setExport(e, during, be.Uint64(b), wire.TransmissionFlags(be.Uint16(b[8:])))
	case wire.InfoName, wire.InfoDescription:
		if len(b) > wire.MaxString {
			return broken(during, "a text of %d bytes", len(b))
		}
		if kind == wire.InfoName {
			e.Name = string(b)
		} else {
			e.Description = string(b)
		}
	case wire.InfoBlockSize:
		if len(b) != 12 {
			return broken(during, "the block sizes take %d bytes", len(b))
		}
		e.BlockSizes = true
		e.MinBlock, e.PreferredBlock, e.MaxPayload = int64(be.Uint32(b)), int64(be.Uint32(b[4:])), int64(be.Uint32(b[8:]))
		if c.config.Unchecked {
			return nil
		}
		return checkBlockSizes(e, during)
	}
	return nil
}

// checkBlockSizes refuses sizes that nothing can be aligned to.
func checkBlockSizes(e *ExportInfo, during string) error {
	power := func(n int64) bool { return n > 0 && n&(n-1) == 0 }
	switch {
	case !power(e.MinBlock) || e.MinBlock > wire.MinBlockLimit:
		return broken(during, "the minimum block is %d bytes, which is not a power of two up to %d", e.MinBlock, wire.MinBlockLimit)
	case !power(e.PreferredBlock) || e.PreferredBlock < e.MinBlock:
		return broken(during, "the preferred block is %d bytes, which is not a power of two from %d on", e.PreferredBlock, e.MinBlock)
	case e.MaxPayload < e.MinBlock:
		return broken(during, "the maximum payload is %d bytes, less than the minimum block of %d", e.MaxPayload, e.MinBlock)
	}
	return nil
}

// ExportName begins transmission by the old option, which a server can refuse only by hanging up.
func (c *Conn) ExportName(ctx context.Context, export string) (ExportInfo, error) {
	const o = wire.OptExportName
	if err := c.Err(); err != nil {
		return ExportInfo{}, err
	}
	if !c.is(negotiation) {
		return ExportInfo{}, errPhase
	}
	if c.extended && !c.config.Unchecked {
		return ExportInfo{}, errors.New("nbd: EXPORT_NAME cannot follow EXTENDED_HEADERS")
	}
	if err := c.checkString("export name", export); err != nil {
		return ExportInfo{}, err
	}
	e := ExportInfo{asked: export}
	err := c.within(ctx, o.String(), func() error {
		if err := c.sendOption(o, []byte(export)); err != nil {
			return err
		}
		n := 8 + 2
		if !c.noZeroes {
			n += wire.ExportNameZeroes
		}
		b, err := c.in.next(n)
		if err != nil {
			return err
		}
		return c.setExport(&e, o.String(), be.Uint64(b), wire.TransmissionFlags(be.Uint16(b[8:])))
	})
	if err != nil {
		return ExportInfo{}, err
	}
	c.transmit(e)
	return c.export, nil
}
