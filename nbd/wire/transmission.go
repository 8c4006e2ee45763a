package wire

import (
	"encoding/binary"
	"fmt"
)

var be = binary.BigEndian

// Magic numbers of the transmission phase.
const (
	RequestMagic         uint32 = 0x25609513
	SimpleReplyMagic     uint32 = 0x67446698
	StructuredReplyMagic uint32 = 0x668e33ef
	ExtendedRequestMagic uint32 = 0x21e41c71
	ExtendedReplyMagic   uint32 = 0x6e8a278c
)

// Command is a request of the transmission phase.
type Command uint16

// The commands.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisc        Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
	CmdResize      Command = 8 // experimental; not supported here
)

func (c Command) String() string {
	names := [...]string{"READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS", "RESIZE"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("command %d", uint16(c))
}

// CommandFlags modify a command.
type CommandFlags uint16

// The command flags.
const (
	FlagFUA        CommandFlags = 1 << 0
	FlagNoHole     CommandFlags = 1 << 1
	FlagDF         CommandFlags = 1 << 2
	FlagReqOne     CommandFlags = 1 << 3
	FlagFastZero   CommandFlags = 1 << 4
	FlagPayloadLen CommandFlags = 1 << 5
)

// Request is the header of a request, compact or extended.
type Request struct {
	Flags  CommandFlags
	Type   Command
	Cookie uint64 // the client's, opaque to the server
	Offset uint64 // in bytes
	Length uint64 // in bytes, of the effect or of the payload; a compact request carries 32 bits of it
}

// Sizes of a request's header in bytes.
const (
	RequestSize         = 28
	ExtendedRequestSize = 32
)

// Put writes a compact request.
func (r Request) Put(b []byte) {
	be.PutUint32(b, RequestMagic)
	r.putCommon(b)
	be.PutUint32(b[24:], uint32(r.Length))
}

// PutExtended writes an extended request.
func (r Request) PutExtended(b []byte) {
	be.PutUint32(b, ExtendedRequestMagic)
	r.putCommon(b)
	be.PutUint64(b[24:], r.Length)
}

func (r Request) putCommon(b []byte) {
	be.PutUint16(b[4:], uint16(r.Flags))
	be.PutUint16(b[6:], uint16(r.Type))
	be.PutUint64(b[8:], r.Cookie)
	be.PutUint64(b[16:], r.Offset)
}

func parseCommon(b []byte) Request {
	return Request{Flags: CommandFlags(be.Uint16(b[4:])), Type: Command(be.Uint16(b[6:])), Cookie: be.Uint64(b[8:]), Offset: be.Uint64(b[16:])}
}

// ParseRequest reads a compact request. It reports false for a wrong magic number.
func ParseRequest(b []byte) (Request, bool) {
	r := parseCommon(b)
	r.Length = uint64(be.Uint32(b[24:]))
	return r, be.Uint32(b) == RequestMagic
}

// ParseExtendedRequest reads an extended request. It reports false for a wrong magic number.
func ParseExtendedRequest(b []byte) (Request, bool) {
	r := parseCommon(b)
	r.Length = be.Uint64(b[24:])
	return r, be.Uint32(b) == ExtendedRequestMagic
}

// SimpleReply is the whole of a simple reply but for the bytes that a READ returns.
type SimpleReply struct {
	Error  Errno
	Cookie uint64
}

// SimpleReplySize is its length in bytes.
const SimpleReplySize = 16

// Put writes the reply.
func (r SimpleReply) Put(b []byte) {
	be.PutUint32(b, SimpleReplyMagic)
	be.PutUint32(b[4:], uint32(r.Error))
	be.PutUint64(b[8:], r.Cookie)
}

// ParseSimpleReply reads a reply. It reports false for a wrong magic number.
func ParseSimpleReply(b []byte) (SimpleReply, bool) {
	_ = b[SimpleReplySize-1]
	return SimpleReply{Errno(be.Uint32(b[4:])), be.Uint64(b[8:])}, be.Uint32(b) == SimpleReplyMagic
}

// ChunkFlags are the flags of a chunk.
type ChunkFlags uint16

// ChunkDone marks the last chunk of a reply.
const ChunkDone ChunkFlags = 1 << 0

// ChunkType says what a chunk holds.
type ChunkType uint16

// The types of chunks. Those with the highest bit set are errors.
const (
	ChunkNone           ChunkType = 0
	ChunkOffsetData     ChunkType = 1 // u64 offset, then the bytes
	ChunkOffsetHole     ChunkType = 2 // u64 offset, u32 length
	ChunkBlockStatus    ChunkType = 5 // u32 context, then extents of u32 length, u32 flags
	ChunkBlockStatusExt ChunkType = 6 // u32 context, u32 count, then extents of u64 length, u64 flags
	ChunkIsError        ChunkType = 1 << 15
	ChunkError          ChunkType = ChunkIsError | 1 // u32 error, u16 length of the message, message
	ChunkErrorOffset    ChunkType = ChunkIsError | 2 // the same, then u64 offset
)

func (c ChunkType) String() string {
	switch c {
	case ChunkNone:
		return "NONE"
	case ChunkOffsetData:
		return "OFFSET_DATA"
	case ChunkOffsetHole:
		return "OFFSET_HOLE"
	case ChunkBlockStatus:
		return "BLOCK_STATUS"
	case ChunkBlockStatusExt:
		return "BLOCK_STATUS_EXT"
	case ChunkError:
		return "ERROR"
	case ChunkErrorOffset:
		return "ERROR_OFFSET"
	}
	return fmt.Sprintf("chunk %#x", uint16(c))
}

// Chunk is the header of a chunk of a structured or extended reply.
type Chunk struct {
	Flags  ChunkFlags
	Type   ChunkType
	Cookie uint64
	Offset uint64 // of the request; extended replies only
	Length uint64 // of the payload, in bytes; a structured reply carries 32 bits of it
}

// Sizes of a chunk's header in bytes.
const (
	StructuredReplySize = 20
	ExtendedReplySize   = 32
)

// Put writes the header of a structured reply.
func (c Chunk) Put(b []byte) {
	be.PutUint32(b, StructuredReplyMagic)
	be.PutUint16(b[4:], uint16(c.Flags))
	be.PutUint16(b[6:], uint16(c.Type))
	be.PutUint64(b[8:], c.Cookie)
	be.PutUint32(b[16:], uint32(c.Length))
}

// PutExtended writes the header of an extended reply.
func (c Chunk) PutExtended(b []byte) {
	be.PutUint32(b, ExtendedReplyMagic)
	be.PutUint16(b[4:], uint16(c.Flags))
	be.PutUint16(b[6:], uint16(c.Type))
	be.PutUint64(b[8:], c.Cookie)
	be.PutUint64(b[16:], c.Offset)
	be.PutUint64(b[24:], c.Length)
}

// ParseChunk reads the header of a structured reply. It reports false for a wrong magic number.
func ParseChunk(b []byte) (Chunk, bool) {
	_ = b[StructuredReplySize-1]
	return Chunk{Flags: ChunkFlags(be.Uint16(b[4:])), Type: ChunkType(be.Uint16(b[6:])), Cookie: be.Uint64(b[8:]), Length: uint64(be.Uint32(b[16:]))},
		be.Uint32(b) == StructuredReplyMagic
}

// ParseExtendedChunk reads the header of an extended reply. It reports false for a wrong magic number.
func ParseExtendedChunk(b []byte) (Chunk, bool) {
	_ = b[ExtendedReplySize-1]
	return Chunk{Flags: ChunkFlags(be.Uint16(b[4:])), Type: ChunkType(be.Uint16(b[6:])), Cookie: be.Uint64(b[8:]), Offset: be.Uint64(b[16:]),
		Length: be.Uint64(b[24:])}, be.Uint32(b) == ExtendedReplyMagic
}

// Meta contexts, and the namespaces they stand in.
const (
	BaseAllocation         = "base:allocation"
	AllocationDepth        = "qemu:allocation-depth"
	DirtyBitmap            = "qemu:dirty-bitmap:" // followed by the bitmap's name
	StateHole       uint32 = 1 << 0               // base:allocation: takes no space
	StateZero       uint32 = 1 << 1               // base:allocation: reads as zero
	StateDirty      uint32 = 1 << 0               // qemu:dirty-bitmap
)
