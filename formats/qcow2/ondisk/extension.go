package ondisk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// Types of header extensions.
const (
	ExtEnd           uint32 = 0
	ExtBackingFormat uint32 = 0xe2792aca
	ExtFeatureNames  uint32 = 0x6803f857
	ExtBitmaps       uint32 = 0x23852875
	ExtEncryption    uint32 = 0x0537be77 // where the LUKS header lies: offset and length, 8 bytes each
	ExtDataFile      uint32 = 0x44415441 // name of the file that holds the data
)

// Extension is a header extension. Data has no padding.
type Extension struct {
	Type uint32
	Data []byte
}

// Extension returns the data of the first extension of a type, and whether there is one.
func (h *Header) Extension(typ uint32) ([]byte, bool) {
	for _, e := range h.Extensions {
		if e.Type == typ {
			return e.Data, true
		}
	}
	return nil, false
}

// SetExtension sets the data of the extension of a type, in its place or at the end; nil data removes it.
func (h *Header) SetExtension(typ uint32, data []byte) {
	same := func(e Extension) bool { return e.Type == typ }
	i := slices.IndexFunc(h.Extensions, same)
	switch {
	case data == nil:
		h.Extensions = slices.DeleteFunc(slices.Clone(h.Extensions), same)
	case i < 0:
		h.Extensions = append(slices.Clone(h.Extensions), Extension{typ, data})
	default:
		h.Extensions = slices.Clone(h.Extensions)
		h.Extensions[i] = Extension{typ, data}
	}
}

// BackingFormat returns the format that the backing file is said to have, or "".
func (h *Header) BackingFormat() string {
	data, _ := h.Extension(ExtBackingFormat)
	return string(data)
}

// DataFile returns the name of the file that holds the data, or "" where none is given.
func (h *Header) DataFile() string {
	data, _ := h.Extension(ExtDataFile)
	return string(data)
}

// Kinds of features in the feature name table.
const (
	FeatureIncompatible uint8 = iota
	FeatureCompatible
	FeatureAutoclear
)

// FeatureName is an entry of the feature name table.
type FeatureName struct {
	Kind uint8
	Bit  uint8
	Name string // at most 46 bytes
}

const featureNameLen = 48

// FeatureNames returns the entries of the feature name table.
func (h *Header) FeatureNames() []FeatureName {
	data, _ := h.Extension(ExtFeatureNames)
	var names []FeatureName
	for ; len(data) >= featureNameLen; data = data[featureNameLen:] {
		name, _, _ := strings.Cut(string(data[2:featureNameLen]), "\x00")
		names = append(names, FeatureName{data[0], data[1], name})
	}
	return names
}

// KnownFeatureNames returns the feature name table that a new image has.
func KnownFeatureNames() []FeatureName {
	return []FeatureName{
		{FeatureIncompatible, 0, "dirty bit"},
		{FeatureIncompatible, 1, "corrupt bit"},
		{FeatureIncompatible, 2, "external data file"},
		{FeatureIncompatible, 3, "compression type"},
		{FeatureIncompatible, 4, "extended L2 entries"},
		{FeatureCompatible, 0, "lazy refcounts"},
		{FeatureAutoclear, 0, "bitmaps"},
		{FeatureAutoclear, 1, "raw external data"},
	}
}

// EncodeFeatureNames returns the data of a feature name table.
func EncodeFeatureNames(names []FeatureName) []byte {
	data := make([]byte, len(names)*featureNameLen)
	for i, n := range names {
		p := data[i*featureNameLen:][:featureNameLen]
		p[0], p[1] = n.Kind, n.Bit
		copy(p[2:], n.Name)
	}
	return data
}

// UnknownFeatures returns the names of the incompatible features that are not known here, or their bits where the image does not name them.
// An image with any must not be read.
func (h *Header) UnknownFeatures() []string {
	var unknown []string
	for rest := h.IncompatibleFeatures &^ IncompatKnown; rest != 0; rest &= rest - 1 {
		bit := uint8(bits.TrailingZeros64(rest))
		name := fmt.Sprintf("bit %d", bit)
		for _, n := range h.FeatureNames() {
			if n.Kind == FeatureIncompatible && n.Bit == bit && n.Name != "" {
				name = fmt.Sprintf("%q (bit %d)", n.Name, bit)
			}
		}
		unknown = append(unknown, name)
	}
	return unknown
}

// extensionHeaderLen is the length of type and length, in bytes.
const extensionHeaderLen = 8

var errExtensionEnd = errors.New("extensions are not ended")

// parseExtensions parses the extensions in p from off on.
func parseExtensions(p []byte, off int64) ([]Extension, error) {
	var list []Extension
	for {
		rest := p[min(off, int64(len(p))):]
		if len(rest) < extensionHeaderLen {
			if len(rest) == 0 { // the name of the backing file, or the end of the cluster, may stand in place of the end marker
				return list, nil
			}
			return list, corrupt(off, "the header %w", errExtensionEnd)
		}
		typ, n := binary.BigEndian.Uint32(rest), int64(binary.BigEndian.Uint32(rest[4:]))
		if typ == ExtEnd {
			return list, nil
		}
		padded := (n + 7) &^ 7
		if n > int64(len(rest))-extensionHeaderLen {
			return list, corrupt(off, "header extension %#x has %d bytes and leaves the first cluster", typ, n)
		}
		list = append(list, Extension{typ, slices.Clone(rest[extensionHeaderLen:][:n])})
		off += extensionHeaderLen + padded
	}
}

// appendExtensions appends the extensions and the end marker.
func appendExtensions(b []byte, list []Extension) []byte {
	for _, e := range list {
		b = binary.BigEndian.AppendUint32(b, e.Type)
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.Data)))
		b = append(b, e.Data...)
		b = append(b, make([]byte, -len(e.Data)&7)...)
	}
	return append(b, make([]byte, extensionHeaderLen)...)
}
