package wire

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// TestFrames compares every frame with its bytes as the specification draws them, and reads it back.
func TestFrames(t *testing.T) {
	req := Request{Flags: FlagFUA | FlagPayloadLen, Type: CmdWrite, Cookie: 0x0102030405060708, Offset: 0x1112131415161718, Length: 0x21222324}
	chunk := Chunk{Flags: ChunkDone, Type: ChunkErrorOffset, Cookie: 0x0102030405060708, Length: 0x21222324}
	long, longChunk := req, chunk
	long.Length = 0x3132333435363738
	longChunk.Offset, longChunk.Length = 0x1112131415161718, 0x3132333435363738
	for _, c := range []struct {
		name string
		size int
		put  func([]byte)
		read func([]byte) (any, bool)
		want any
		hex  string
	}{
		{"option", OptionHeaderSize, OptionHeader{OptGo, 7}.Put, func(b []byte) (any, bool) { return parsed(ParseOptionHeader(b)) },
			OptionHeader{OptGo, 7}, "49484156454f5054 00000007 00000007"},
		{"reply", ReplyHeaderSize, ReplyHeader{OptList, RepErrUnknown, 9}.Put, func(b []byte) (any, bool) { return parsed(ParseReplyHeader(b)) },
			ReplyHeader{OptList, RepErrUnknown, 9}, "0003e889045565a9 00000003 80000006 00000009"},
		{"request", RequestSize, req.Put, func(b []byte) (any, bool) { return parsed(ParseRequest(b)) },
			req, "25609513 0021 0001 0102030405060708 1112131415161718 21222324"},
		{"extended request", ExtendedRequestSize, long.PutExtended, func(b []byte) (any, bool) { return parsed(ParseExtendedRequest(b)) },
			long, "21e41c71 0021 0001 0102030405060708 1112131415161718 3132333435363738"},
		{"simple reply", SimpleReplySize, SimpleReply{ENOSPC, 0x0102030405060708}.Put, func(b []byte) (any, bool) { return parsed(ParseSimpleReply(b)) },
			SimpleReply{ENOSPC, 0x0102030405060708}, "67446698 0000001c 0102030405060708"},
		{"chunk", StructuredReplySize, chunk.Put, func(b []byte) (any, bool) { return parsed(ParseChunk(b)) },
			chunk, "668e33ef 0001 8002 0102030405060708 21222324"},
		{"extended chunk", ExtendedReplySize, longChunk.PutExtended, func(b []byte) (any, bool) { return parsed(ParseExtendedChunk(b)) },
			longChunk, "6e8a278c 0001 8002 0102030405060708 1112131415161718 3132333435363738"},
	} {
		want, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(c.hex), []byte(" "), nil)))
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, c.size)
		c.put(got)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %x, want %x", c.name, got, want)
		}
		if v, ok := c.read(want); !ok || v != c.want {
			t.Errorf("%s: read as %+v, %v; want %+v", c.name, v, ok, c.want)
		}
		want[0] ^= 1
		if _, ok := c.read(want); ok {
			t.Errorf("%s: a wrong magic number passes", c.name)
		}
	}
}

func parsed[T any](v T, ok bool) (any, bool) { return v, ok }

// TestErrnoOf: what a client is told of an error, and what it makes of that.
func TestErrnoOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Errno
		is   error // what the number is for errors.Is; nil for nothing
	}{
		{nil, OK, nil},
		{errors.New("anything"), EIO, nil},
		{fmt.Errorf("image: %w", block.ErrReadOnly), EPERM, block.ErrReadOnly},
		{fs.ErrPermission, EPERM, fs.ErrPermission},
		{syscall.EROFS, EPERM, block.ErrReadOnly},
		{&block.RangeError{Off: 1, Len: 2, Size: 1}, EINVAL, fs.ErrInvalid},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, ENOSPC, syscall.ENOSPC},
		{syscall.EFBIG, ENOSPC, syscall.ENOSPC},
		{syscall.ENOMEM, ENOMEM, nil},
		{fmt.Errorf("zero: %w", errors.ErrUnsupported), ENOTSUP, errors.ErrUnsupported},
		{context.Canceled, ESHUTDOWN, nil},
		{os.ErrClosed, ESHUTDOWN, nil},
		{fmt.Errorf("below: %w", EOVERFLOW), EOVERFLOW, nil},
		{Errno(77), EINVAL, nil},
	} {
		got := ErrnoOf(c.err)
		if got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
		if c.is != nil && !errors.Is(error(got), c.is) {
			t.Errorf("%v is not %v", got, c.is)
		}
	}
}

// TestNames: every number that has a name says it, and others say what they are.
func TestNames(t *testing.T) {
	for v, want := range map[fmt.Stringer]string{
		OptExportName: "EXPORT_NAME", OptExtendedHeaders: "EXTENDED_HEADERS", Option(12): "option 12", Option(0): "option 0",
		RepAck: "ACK", RepMetaContext: "META_CONTEXT", RepErrUnsup: "ERR_UNSUP", RepErrExtHeaderReqd: "ERR_EXT_HEADER_REQD", Reply(5): "reply 0x5",
		RepError | 11: "reply 0x8000000b", RepError: "reply 0x80000000",
		CmdRead: "READ", CmdBlockStatus: "BLOCK_STATUS", Command(9): "command 9",
		ChunkNone: "NONE", ChunkErrorOffset: "ERROR_OFFSET", ChunkType(3): "chunk 0x3", ESHUTDOWN: "ESHUTDOWN", Errno(2): "error 2",
	} {
		if got := v.String(); got != want {
			t.Errorf("%#v: %q, want %q", v, got, want)
		}
	}
}
