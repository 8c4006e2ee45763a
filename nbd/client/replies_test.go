package client_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

const done = wire.ChunkDone

// What a reply is tested with.
func readOf(c *client.Conn) error {
	return c.Read(context.Background(), make([]byte, 4096), 8192, 0)
}
func readDF(c *client.Conn) error {
	return c.Read(context.Background(), make([]byte, 4096), 8192, wire.FlagDF)
}
func flushOf(c *client.Conn) error { return c.Flush(context.Background(), 0) }
func statusOf(f wire.CommandFlags) func(c *client.Conn) error {
	return func(c *client.Conn) error {
		return c.BlockStatus(context.Background(), 8192, 4096, f, nil, func(client.MetaContext, []client.Extent) {})
	}
}

func data(off uint64, n int) [][]byte  { return [][]byte{u64(off), bytes.Repeat([]byte{7}, n)} }
func hole(off uint64, n uint32) []byte { return join(u64(off), u32(n)) }
func message(e wire.Errno, text string) []byte {
	return join(u32(uint32(e)), u16(uint16(len(text))), []byte(text))
}

// Whether a reply is taken.
const (
	good    = ""
	breaks  = "server breaks the protocol"
	refuses = "server says"
)

// hostileReplies lists answers to one request, and what the client has to make of them.
var hostileReplies = []struct {
	name   string
	mode   mode
	call   func(c *client.Conn) error
	answer func(f *fake, r wire.Request)
	want   string // part of the error
}{
	{"read", simple, readOf, func(f *fake, r wire.Request) { f.simple(r, 0, make([]byte, 4096)) }, good},
	{"read refused", simple, readOf, func(f *fake, r wire.Request) { f.simple(r, wire.EIO) }, refuses + ": input/output error"},
	{"an error number that does not exist is EINVAL", simple, readOf, func(f *fake, r wire.Request) { f.simple(r, 4711) }, "invalid argument"},
	{"a structured reply that was not agreed on", simple, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetData, done, data(8192, 4096)...) }, breaks},
	{"a wrong magic number", simple, readOf, func(f *fake, r wire.Request) { f.send(make([]byte, 16)) }, breaks},
	{"an unknown cookie", simple, readOf, func(f *fake, r wire.Request) { r.Cookie++; f.simple(r, 0, make([]byte, 4096)) }, breaks},
	{"a reply that is cut short", simple, readOf, func(f *fake, r wire.Request) { f.simple(r, 0, make([]byte, 4095)); f.Close() }, "unexpected EOF"},
	{"no reply", simple, readOf, func(f *fake, r wire.Request) { f.Close() }, "not connected"},

	{"one chunk", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetData, done, data(8192, 4096)...) }, good},
	{"chunks in any order", structured, readOf, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkOffsetData, 0, data(8192+4000, 96)...)
		f.chunk(r, wire.ChunkOffsetHole, 0, hole(8192, 1000))
		f.chunk(r, wire.ChunkOffsetData, 0, data(8192+1000, 3000)...)
		f.chunk(r, wire.ChunkNone, done)
	}, good},
	{"a simple reply to a read", structured, readOf, func(f *fake, r wire.Request) { f.simple(r, 0, make([]byte, 4096)) }, breaks},
	{"a simple error to a read", structured, readOf, func(f *fake, r wire.Request) { f.simple(r, wire.EIO) }, breaks},
	{"a simple reply behind a chunk", structured, flushOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkError, 0, message(wire.EIO, "")); f.simple(r, 0) }, breaks},
	{"data before the request: libnbd's remote code execution of 2019", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetData, done, data(0, 4096)...) }, breaks},
	{"data behind the request", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetData, done, data(8193, 4096)...) }, breaks},
	{"data far away", structured, readOf, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkOffsetData, done, data(math.MaxUint64-10, 4096)...)
	}, breaks},
	{"data longer than the request", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetData, done, data(8192, 5000)...) }, breaks},
	{"data twice", structured, readOf, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkOffsetData, 0, data(8192, 4096)...)
		f.chunk(r, wire.ChunkOffsetData, done, data(8192, 1)...)
	}, breaks},
	{"data that overlap", structured, readOf, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkOffsetData, 0, data(8192+2048, 2048)...)
		f.chunk(r, wire.ChunkOffsetData, done, data(8192, 2049)...)
	}, breaks},
	{"data that overlap and leave a gap as long", structured, readOf, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkOffsetData, 0, data(8192, 2000)...)
		f.chunk(r, wire.ChunkOffsetData, done, data(8192+1000, 2096)...)
	}, breaks},
	{"data with a gap", structured, readOf, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkOffsetData, 0, data(8192, 2000)...)
		f.chunk(r, wire.ChunkOffsetData, done, data(8192+2001, 2095)...)
	}, breaks},
	{"data that end early", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetData, done, data(8192, 4095)...) }, breaks},
	{"no data", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkNone, done) }, breaks},
	{"an empty chunk of data", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetData, 0, data(8192, 0)...) }, breaks},
	{"a chunk of data without an offset", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetData, 0, u32(1)) }, breaks},
	{"an empty hole", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetHole, 0, hole(8192, 0)) }, breaks},
	{"a hole that is too long", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetHole, done, hole(8192, math.MaxUint32)) }, breaks},
	{"a hole before the request", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetHole, done, hole(4096, 4096)) }, breaks},
	{"a hole of 13 bytes", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetHole, done, hole(8192, 4096), []byte{0}) }, breaks},
	{"a NONE with a payload", structured, flushOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkNone, done, u32(0)) }, breaks},
	{"a NONE that is not the last", structured, flushOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkNone, 0) }, breaks},
	{"an unknown chunk", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, 77, done) }, breaks},
	{"an unknown chunk that is an error", structured, readOf, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkIsError|77, done, message(wire.ENOMEM, "strange"), []byte("more"))
	}, "strange"},
	{"data in answer to a flush", structured, flushOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetData, done, data(0, 10)...) }, breaks},
	{"extents in answer to a read", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkBlockStatus, done, u32(5), u32(4096), u32(0)) }, breaks},
	{"two pieces for DF", structured, readDF, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkOffsetData, 0, data(8192, 2048)...)
		f.chunk(r, wire.ChunkOffsetData, done, data(8192+2048, 2048)...)
	}, breaks},
	{"a second reply", structured, flushOf, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkNone, done)
		f.chunk(r, wire.ChunkNone, done)
	}, good + "then broken"},

	{"an error with text", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkError, done, message(wire.EIO, "the disk burns")) }, "the disk burns"},
	{"an error with an offset", structured, readOf, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkErrorOffset, done, message(wire.EIO, "here"), u64(8192+100))
	}, "here"},
	{"an error with an offset outside", structured, readOf, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkErrorOffset, done, message(wire.EIO, "here"), u64(8192+4096))
	}, breaks},
	{"an error that is none", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkError, done, message(0, "")) }, breaks},
	{"an error without a number", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkError, done, u32(5)) }, breaks},
	{"an error whose text is longer than it", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkError, done, u32(5), u16(10), []byte("short")) }, breaks},
	{"an error that goes on", structured, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkError, done, message(wire.EIO, ""), u64(1)) }, breaks},
	{"an error of half a gigabyte", structured, readOf, func(f *fake, r wire.Request) {
		b := make([]byte, wire.StructuredReplySize)
		wire.Chunk{Type: wire.ChunkError, Cookie: r.Cookie, Length: 1 << 29}.Put(b)
		f.send(b)
	}, breaks},
	{"text that controls terminals", structured, readOf, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkError, done, message(wire.EIO, "a\x1b[2Jb\r\nc\xff"))
	}, "a [2Jb  c?"},
	{"an error and then data", structured, readOf, func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkError, 0, message(wire.EIO, "late"))
		f.chunk(r, wire.ChunkOffsetData, done, data(8192, 4096)...)
	}, "late"},

	{"extents", structured, statusOf(0), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatus, done, u32(5), u32(1024), u32(0), u32(3072), u32(3))
	}, good},
	{"extents, the last of which goes on", structured, statusOf(0), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatus, done, u32(5), u32(1024), u32(0), u32(math.MaxUint32), u32(3))
	}, good},
	{"one extent that is short", structured, statusOf(wire.FlagReqOne), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatus, done, u32(5), u32(512), u32(0))
	}, good},
	{"one extent that is too long", structured, statusOf(wire.FlagReqOne), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatus, done, u32(5), u32(4097), u32(0))
	}, breaks},
	{"two extents for REQ_ONE", structured, statusOf(wire.FlagReqOne), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatus, done, u32(5), u32(1024), u32(0), u32(512), u32(3))
	}, breaks},
	{"an extent of no bytes", structured, statusOf(0), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatus, done, u32(5), u32(0), u32(0), u32(4096), u32(0))
	}, breaks},
	{"no extents", structured, statusOf(0), func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkBlockStatus, done, u32(5)) }, breaks},
	{"half an extent", structured, statusOf(0), func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkBlockStatus, done, u32(5), u32(512)) }, breaks},
	{"an extent that begins behind the request", structured, statusOf(0), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatus, done, u32(5), u32(4096), u32(0), u32(512), u32(0))
	}, breaks},
	{"an unknown context", structured, statusOf(0), func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkBlockStatus, done, u32(6), u32(4096), u32(0)) }, breaks},
	{"a context twice", structured, statusOf(0), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatus, 0, u32(5), u32(4096), u32(0))
		f.chunk(r, wire.ChunkBlockStatus, done, u32(5), u32(4096), u32(0))
	}, breaks},
	{"a context that is missing", structured, statusOf(0), func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkNone, done) }, breaks},
	{"a simple reply to BLOCK_STATUS", structured, statusOf(0), func(f *fake, r wire.Request) { f.simple(r, 0) }, breaks},
	{"a simple error to BLOCK_STATUS", structured, statusOf(0), func(f *fake, r wire.Request) { f.simple(r, wire.EINVAL) }, refuses},
	{"wide extents that were not agreed on", structured, statusOf(0), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatusExt, done, u32(5), u32(1), u64(4096), u64(0))
	}, breaks},
	{"a billion extents are announced", structured, statusOf(0), func(f *fake, r wire.Request) {
		b := make([]byte, wire.StructuredReplySize)
		wire.Chunk{Type: wire.ChunkBlockStatus, Cookie: r.Cookie, Length: 4 + 8<<28}.Put(b)
		f.send(b)
	}, breaks},

	{"extended data", extended, readOf, func(f *fake, r wire.Request) { f.chunk(r, wire.ChunkOffsetData, done, data(8192, 4096)...) }, good},
	{"a simple reply where headers are extended", extended, flushOf, func(f *fake, r wire.Request) { f.simple(r, 0) }, breaks},
	{"another offset than the request's", extended, readOf, func(f *fake, r wire.Request) {
		r.Offset++
		f.chunk(r, wire.ChunkOffsetData, done, data(8192, 4096)...)
	}, breaks},
	{"a chunk of 2^63 bytes", extended, readOf, func(f *fake, r wire.Request) {
		b := make([]byte, wire.ExtendedReplySize)
		wire.Chunk{Type: wire.ChunkOffsetData, Cookie: r.Cookie, Offset: r.Offset, Length: 1 << 63}.PutExtended(b)
		f.send(b, u64(8192))
	}, breaks},
	{"wide extents", extended, statusOf(0), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatusExt, done, u32(5), u32(2), u64(1024), u64(0), u64(1<<62), u64(3))
	}, good},
	{"status flags of 64 bits: CVE-2023-5871", extended, statusOf(0), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatusExt, done, u32(5), u32(1), u64(4096), u64(1<<63|1<<32))
	}, good},
	{"narrow extents where headers are extended", extended, statusOf(0), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatus, done, u32(5), u32(4096), u32(0))
	}, breaks},
	{"an extent of 2^63 bytes", extended, statusOf(0), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatusExt, done, u32(5), u32(1), u64(1<<63), u64(0))
	}, breaks},
	{"a count of extents that does not fit", extended, statusOf(0), func(f *fake, r wire.Request) {
		f.chunk(r, wire.ChunkBlockStatusExt, done, u32(5), u32(2), u64(4096), u64(0))
	}, breaks},
}

// TestHostileReplies gives the client each answer, and looks what it makes of it, and that the connection then is what it should be.
func TestHostileReplies(t *testing.T) {
	leaks(t)
	for _, c := range hostileReplies {
		for _, memory := range []bool{true, false} {
			t.Run(c.name, func(t *testing.T) {
				conn := serve(t, memory, func(f *fake) {
					f.contexts = []client.MetaContext{{ID: 5, Name: "base:allocation"}}
					f.negotiate()
					r, _ := f.request()
					c.answer(f, r)
					for { // a client that goes on is answered well
						r, _ := f.request()
						f.finish(r)
					}
				})
				n := agreed(t, conn, c.mode, client.Config{})
				err := c.call(n)
				switch {
				case c.want == good || c.want == good+"then broken":
					if err != nil {
						t.Fatal(err)
					}
				case err == nil || !strings.Contains(err.Error(), c.want):
					t.Fatalf("the error is %v, want one about %q", err, c.want)
				}
				dead := c.want == breaks || errors.Is(err, client.ErrDisconnected)
				if isProtocol(err) != (c.want == breaks) || dead != errors.Is(err, client.ErrDisconnected) {
					t.Errorf("the error is a %T: %v", err, err)
				}
				again := n.Flush(t.Context(), 0)
				if c.want == good+"then broken" {
					again = errors.Join(again, n.Flush(t.Context(), 0))
					dead = true
				}
				if dead != errors.Is(again, client.ErrDisconnected) {
					t.Errorf("a request after that: %v", again)
				}
			})
		}
	}
}

// finish answers a request without data well.
func (f *fake) finish(r wire.Request) {
	if f.extended {
		f.chunk(r, wire.ChunkNone, done)
	} else {
		f.simple(r, 0)
	}
}
