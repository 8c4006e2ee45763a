package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"unicode/utf8"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/wire"
)

// export is an opened Export with what follows from its device.
type export struct {
	*Export
	asked    string // the name that the client gave
	info     block.Info
	size     int64
	writable bool
	strict   bool // the client has asked for the block sizes, and keeps to them

	minBlock, preferred uint32 // bytes
	// steady says that a byte of the export never moves in its file. What is sent without a copy may lie in a queue when its place is given up.
	steady bool
	// maxPiece is the longest request that the device gets, in bytes.
	maxPiece int64
	closed   sync.Once
	closeErr error
}

// open asks the configuration for an export.
func (c *conn) open(ctx context.Context, name string) (*export, error) {
	client := c.client
	client.Export = name
	opened, err := c.server.config.Open(ctx, client)
	if err != nil {
		return nil, err
	}
	e := &export{Export: opened, asked: name, info: opened.Device.Info(), size: opened.Device.Size()}
	e.writable = e.info.Caps.Write && !e.ReadOnly
	e.minBlock, e.preferred = blockSizes(e.info, e.size)
	e.steady = !e.info.Caps.Write || c.isFile(ctx, e)
	e.maxPiece = math.MaxInt64
	if e.info.MaxBlock > 0 {
		e.maxPiece = max(block.RoundDown(e.info.MaxBlock, int64(e.minBlock)), 1)
	}
	return e, nil
}

// isFile reports whether the export is a range of a file.
func (c *conn) isFile(ctx context.Context, e *export) bool {
	if e.info.Format != "file" && e.info.Format != "raw" {
		return false
	}
	r, release, ok := block.Pin(ctx, e.Device, 0, e.size)
	if ok {
		release()
	}
	return ok && r.Len == e.size
}

// blockSizes returns the minimum and the preferred block size that a client is told of. The minimum divides the size: the bytes at the end could
// not be reached else.
func blockSizes(i block.Info, size int64) (minBlock, preferred uint32) {
	least := max(min(i.MinBlock, wire.MinBlockLimit), 1)
	for least > 1 && size%least != 0 {
		least /= 2
	}
	best := max(i.PreferredBlock, least, 512)
	return uint32(least), uint32(min(best, wire.DefaultMaxPayload))
}

// canonical returns the name that the export is listed under.
func (e *export) canonical() string {
	if e.Name != "" {
		return e.Name
	}
	return e.asked
}

// close closes the export, once.
func (e *export) close() error {
	e.closed.Do(func() {
		if e.Close != nil {
			e.closeErr = e.Close()
		}
	})
	return e.closeErr
}

// flags returns the transmission flags for a client that has negotiated as c says.
func (e *export) flags(c *conn) wire.TransmissionFlags {
	f := wire.HasFlags | wire.SendFlush | wire.SendFUA
	caps := e.info.Caps
	set := func(bit wire.TransmissionFlags, on bool) {
		if on {
			f |= bit
		}
	}
	set(wire.ReadOnly, !e.writable)
	set(wire.SendTrim, e.writable && caps.Discard)
	set(wire.SendWriteZeroes, e.writable)
	set(wire.SendFastZero, e.writable && caps.FastZero)
	set(wire.SendCache, caps.Prefetch)
	set(wire.CanMultiConn, !e.writable || e.MultiConn)
	set(wire.SendDF, c.structured)
	set(wire.BlockStatusPayload, c.extended && len(c.contexts) > 0)
	return f
}

// refusal returns the reply that tells of an error of Open.
func refusal(err error) (wire.Reply, string) {
	switch {
	case isUnknown(err):
		return wire.RepErrUnknown, "there is no such export"
	case errors.Is(err, ErrRefused):
		return wire.RepErrPolicy, text(err)
	}
	return wire.RepErrPlatform, text(err)
}

// text returns an error as clients are told of it. Of one that can be told without names, by a method Anonymous, they do not learn the names: where
// images lie is no client's business.
func text(err error) string {
	if named, ok := errors.AsType[interface {
		error
		Anonymous() error
	}](err); ok {
		err = named.Anonymous()
	}
	return clean(err.Error())
}

// clean returns s without what a string on the wire must not have.
func clean(s string) string {
	s = fmt.Sprintf("%.*s", wire.MaxString/utf8.UTFMax, s)
	out := make([]rune, 0, len(s))
	for _, r := range s {
		if r != 0 && r != utf8.RuneError {
			out = append(out, r)
		}
	}
	return string(out)
}

// validString reports whether a client may send p as a string.
func validString(p []byte) bool {
	if len(p) > wire.MaxString || !utf8.Valid(p) {
		return false
	}
	for _, b := range p {
		if b == 0 {
			return false
		}
	}
	return true
}
