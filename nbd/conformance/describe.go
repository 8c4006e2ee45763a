package conformance

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

var be = binary.BigEndian

// infoRequest returns the data of INFO and GO.
func infoRequest(export string, infos ...wire.Info) []byte {
	b := appendString(nil, export)
	b = be.AppendUint16(b, uint16(len(infos)))
	for _, i := range infos {
		b = be.AppendUint16(b, uint16(i))
	}
	return b
}

// metaRequest returns the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func metaRequest(export string, queries ...string) []byte {
	b := appendString(nil, export)
	b = be.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = appendString(b, q)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(be.AppendUint32(b, uint32(len(s))), s...)
}

// exportInfo is what INFO and GO tell of an export.
type exportInfo struct {
	told                           bool // INFO_EXPORT came
	size                           uint64
	flags                          wire.TransmissionFlags
	sizes                          bool // INFO_BLOCK_SIZE came
	minBlock, preferred, maxLength uint32
}

func parseInfo(replies []probe.Reply) exportInfo {
	info := exportInfo{minBlock: 1, preferred: 4096, maxLength: wire.DefaultMaxPayload}
	for _, r := range replies {
		kind, data, ok := r.Info()
		switch {
		case !ok:
		case kind == wire.InfoExport:
			info.told = true
			info.size, info.flags = be.Uint64(data), wire.TransmissionFlags(be.Uint16(data[8:]))
		case kind == wire.InfoBlockSize:
			info.sizes = true
			info.minBlock, info.preferred, info.maxLength = be.Uint32(data), be.Uint32(data[4:]), be.Uint32(data[8:])
		}
	}
	return info
}

// describe says what a reply is.
func describe(r probe.Reply) string {
	if r.Type&wire.RepError != 0 && len(r.Data) > 0 {
		return fmt.Sprintf("%s (%s)", r.Type, r.Data)
	}
	return r.Type.String()
}

// describeRequest says what a request asks for.
func describeRequest(r wire.Request) string {
	names := [...]string{"FUA", "NO_HOLE", "DF", "REQ_ONE", "FAST_ZERO", "PAYLOAD_LEN"}
	var with strings.Builder
	for i := range 16 {
		switch {
		case r.Flags&(1<<i) == 0:
		case i < len(names):
			with.WriteString(" with " + names[i])
		default:
			fmt.Fprintf(&with, " with flag bit %d", i)
		}
	}
	return fmt.Sprintf("%s%s of %d bytes at %d", r.Type, &with, r.Length, r.Offset)
}

// oneOf lists what would have been right.
func oneOf[T fmt.Stringer](all []T) string {
	var words []string
	for _, x := range all {
		words = append(words, x.String())
	}
	return strings.Join(words, " or ")
}
