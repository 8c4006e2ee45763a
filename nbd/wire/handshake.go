package wire

import "fmt"

// Magic numbers of the handshake.
const (
	InitMagic     uint64 = 0x4e42444d41474943 // NBDMAGIC, the first eight bytes of every server
	OptionMagic   uint64 = 0x49484156454F5054 // IHAVEOPT, of newstyle negotiation and of every option
	OldstyleMagic uint64 = 0x00420281861253   // follows InitMagic of an oldstyle server
	ReplyMagic    uint64 = 0x0003e889045565a9 // of every reply to an option
)

// DefaultPort is the TCP port of NBD.
const DefaultPort = 10809

// Limits that the specification sets, or recommends.
const (
	MaxString         = 4096      // bytes of an export name, a description, a message or a meta context's name
	MaxOptionData     = 1 << 20   // bytes of an option that this implementation reads; longer ones are skipped
	DefaultMaxPayload = 32 << 20  // bytes of a payload that both sides take where no block sizes were agreed on
	MaxExtents        = 1 << 20   // extents in one reply to BLOCK_STATUS
	MinBlockLimit     = 64 << 10  // the largest minimum block size
	ExportNameZeroes  = 124       // bytes after the reply to EXPORT_NAME without NO_ZEROES
	OldstyleZeroes    = 124       // bytes after an oldstyle greeting
	MaxExportSize     = 1<<63 - 1 // bytes
)

// HandshakeFlags are what a server says of its handshake.
type HandshakeFlags uint16

// The server's handshake flags.
const (
	FixedNewstyle HandshakeFlags = 1 << 0
	NoZeroes      HandshakeFlags = 1 << 1
)

// ClientFlags are what a client answers to the server's handshake flags.
type ClientFlags uint32

// The client's flags.
const (
	ClientFixedNewstyle ClientFlags = 1 << 0
	ClientNoZeroes      ClientFlags = 1 << 1
)

// Option is a request of the handshake.
type Option uint32

// The options.
const (
	OptExportName      Option = 1
	OptAbort           Option = 2
	OptList            Option = 3
	OptPeekExport      Option = 4 // withdrawn
	OptStartTLS        Option = 5
	OptInfo            Option = 6
	OptGo              Option = 7
	OptStructuredReply Option = 8
	OptListMetaContext Option = 9
	OptSetMetaContext  Option = 10
	OptExtendedHeaders Option = 11
)

func (o Option) String() string {
	names := [...]string{1: "EXPORT_NAME", "ABORT", "LIST", "PEEK_EXPORT", "STARTTLS", "INFO", "GO", "STRUCTURED_REPLY", "LIST_META_CONTEXT",
		"SET_META_CONTEXT", "EXTENDED_HEADERS"}
	if o > 0 && int(o) < len(names) {
		return names[o]
	}
	return fmt.Sprintf("option %d", uint32(o))
}

// Reply is the type of a reply to an option.
type Reply uint32

// The replies. Those with the highest bit set are errors.
const (
	RepAck         Reply = 1
	RepServer      Reply = 2
	RepInfo        Reply = 3
	RepMetaContext Reply = 4

	RepError            Reply = 1 << 31
	RepErrUnsup         Reply = RepError | 1
	RepErrPolicy        Reply = RepError | 2
	RepErrInvalid       Reply = RepError | 3
	RepErrPlatform      Reply = RepError | 4
	RepErrTLSReqd       Reply = RepError | 5
	RepErrUnknown       Reply = RepError | 6
	RepErrShutdown      Reply = RepError | 7
	RepErrBlockSizeReqd Reply = RepError | 8
	RepErrTooBig        Reply = RepError | 9
	RepErrExtHeaderReqd Reply = RepError | 10
)

func (r Reply) String() string {
	names := [...]string{1: "ACK", "SERVER", "INFO", "META_CONTEXT"}
	errors := [...]string{1: "ERR_UNSUP", "ERR_POLICY", "ERR_INVALID", "ERR_PLATFORM", "ERR_TLS_REQD", "ERR_UNKNOWN", "ERR_SHUTDOWN",
		"ERR_BLOCK_SIZE_REQD", "ERR_TOO_BIG", "ERR_EXT_HEADER_REQD"}
	switch n := r &^ RepError; {
	case r&RepError == 0 && n > 0 && int(n) < len(names):
		return names[n]
	case r&RepError != 0 && n > 0 && int(n) < len(errors):
		return errors[n]
	}
	return fmt.Sprintf("reply %#x", uint32(r))
}

// Info is the type of a piece of information about an export.
type Info uint16

// The pieces of information.
const (
	InfoExport      Info = 0 // 12 bytes: type, size, transmission flags
	InfoName        Info = 1 // the export's canonical name
	InfoDescription Info = 2
	InfoBlockSize   Info = 3 // 14 bytes: type, minimum, preferred, maximum payload
)

// TransmissionFlags say what an export can do.
type TransmissionFlags uint16

// The transmission flags.
const (
	HasFlags           TransmissionFlags = 1 << 0
	ReadOnly           TransmissionFlags = 1 << 1
	SendFlush          TransmissionFlags = 1 << 2
	SendFUA            TransmissionFlags = 1 << 3
	Rotational         TransmissionFlags = 1 << 4
	SendTrim           TransmissionFlags = 1 << 5
	SendWriteZeroes    TransmissionFlags = 1 << 6
	SendDF             TransmissionFlags = 1 << 7
	CanMultiConn       TransmissionFlags = 1 << 8
	SendResize         TransmissionFlags = 1 << 9 // experimental; neither set nor used here
	SendCache          TransmissionFlags = 1 << 10
	SendFastZero       TransmissionFlags = 1 << 11
	BlockStatusPayload TransmissionFlags = 1 << 12
)

// OptionHeader precedes the data of an option.
type OptionHeader struct {
	Option Option
	Length uint32 // of the data, in bytes
}

// OptionHeaderSize is its length in bytes.
const OptionHeaderSize = 16

// Put writes the header with its magic number.
func (h OptionHeader) Put(b []byte) {
	be.PutUint64(b, OptionMagic)
	be.PutUint32(b[8:], uint32(h.Option))
	be.PutUint32(b[12:], h.Length)
}

// ParseOptionHeader reads a header. It reports false for a wrong magic number.
func ParseOptionHeader(b []byte) (OptionHeader, bool) {
	_ = b[OptionHeaderSize-1]
	return OptionHeader{Option(be.Uint32(b[8:])), be.Uint32(b[12:])}, be.Uint64(b) == OptionMagic
}

// ReplyHeader precedes the data of a reply to an option.
type ReplyHeader struct {
	Option Option
	Type   Reply
	Length uint32 // of the data, in bytes
}

// ReplyHeaderSize is its length in bytes.
const ReplyHeaderSize = 20

// Put writes the header with its magic number.
func (h ReplyHeader) Put(b []byte) {
	be.PutUint64(b, ReplyMagic)
	be.PutUint32(b[8:], uint32(h.Option))
	be.PutUint32(b[12:], uint32(h.Type))
	be.PutUint32(b[16:], h.Length)
}

// ParseReplyHeader reads a header. It reports false for a wrong magic number.
func ParseReplyHeader(b []byte) (ReplyHeader, bool) {
	_ = b[ReplyHeaderSize-1]
	return ReplyHeader{Option(be.Uint32(b[8:])), Reply(be.Uint32(b[12:])), be.Uint32(b[16:])}, be.Uint64(b) == ReplyMagic
}
