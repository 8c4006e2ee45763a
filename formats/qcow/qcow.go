// Package qcow is version 1 of QEMU's copy-on-write format, which qcow2 has replaced since 2008. Images are read, and neither written nor made.
//
// A header, an L1 table, L2 tables and clusters; compressed clusters are raw DEFLATE; where an image holds nothing, its backing file shows.
// All numbers are big-endian.
package qcow

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// Name is the name of the driver.
const Name = "qcow"

// Driver returns the driver.
func Driver() formats.Driver {
	return formats.Driver{
		Name:       Name,
		Doc:        "QEMU's older format, version 1: read only",
		Extensions: []string{".qcow"},
		Probe:      probe,
		Open:       open,
	}
}

// Limits, those of QEMU but for the L1 table.
const (
	minClusterBits, maxClusterBits = 9, 16
	minL2Bits, maxL2Bits           = 6, 13
	maxNameLen                     = 1023     // of the backing file, in bytes
	maxL1Bytes                     = 32 << 20 // as in qcow2
)

const (
	magic     = 0x514649fb // QFI\xfb
	headerLen = 48
)

// header is the header of the file.
type header struct {
	Magic             uint32
	Version           uint32
	BackingFileOffset uint64
	BackingFileSize   uint32
	Mtime             uint32
	Size              uint64 // of the disk, in bytes
	ClusterBits       uint8
	L2Bits            uint8
	Padding           uint16
	CryptMethod       uint32
	L1TableOffset     uint64
}

// Values of header.CryptMethod.
const (
	cryptNone = iota
	cryptAES
)

func probe(h formats.Head) formats.Score {
	p := h.At(0, 8)
	if p == nil || binary.BigEndian.Uint32(p) != magic || binary.BigEndian.Uint32(p[4:]) != 1 {
		return formats.No
	}
	return formats.Certain
}

// open opens an image. See formats.Driver.
func open(ctx context.Context, file block.Device, o formats.OpenOptions) (block.Device, error) {
	if _, err := formats.ParseOptions[any](nil, o.Values); err != nil {
		return nil, err
	}
	h, err := readHeader(ctx, file)
	if err != nil {
		return nil, err
	}
	d := newDevice(h, file, o)
	if h.CryptMethod == cryptAES && !o.Lazy {
		return nil, errEncrypted
	}
	if d.l1, err = readL1(ctx, h, file); err != nil {
		return nil, err
	}
	if h.BackingFileOffset != 0 {
		name, err := readBackingName(ctx, h, file)
		if err != nil {
			return nil, err
		}
		if err := d.backing.Set(ctx, formats.Ref{Kind: formats.BackingFile, Name: name, From: o.Name}, false, o); err != nil {
			return nil, err
		}
	}
	if o.Write {
		return nil, errors.Join(block.WithHint(fmt.Errorf("format %s is not written: %w", Name, block.ErrReadOnly), "convert it to qcow2"), d.backing.Close())
	}
	return d, nil
}

var errEncrypted = block.ErrorOf(errors.ErrUnsupported, "the image is encrypted with AES, which this version does not read")

// readHeader reads the header and checks it.
func readHeader(ctx context.Context, file block.Device) (*header, error) {
	p := make([]byte, min(headerLen, file.Size()))
	if err := file.Read(ctx, p, 0); err != nil {
		return nil, err
	}
	if len(p) < 8 || binary.BigEndian.Uint32(p) != magic || binary.BigEndian.Uint32(p[4:]) != 1 {
		return nil, block.ErrNotFormat
	}
	if len(p) < headerLen {
		return nil, corrupt("header", 0, "the file ends inside it: %w", io.ErrUnexpectedEOF)
	}
	h := new(header)
	if _, err := binary.Decode(p, binary.BigEndian, h); err != nil {
		return nil, err
	}
	switch {
	case h.Size < 2:
		return nil, corrupt("header", 24, "size is %d, too small for a disk", h.Size)
	case h.ClusterBits < minClusterBits || h.ClusterBits > maxClusterBits:
		return nil, corrupt("header", 32, "cluster_bits is %d, and has to be from %d to %d", h.ClusterBits, minClusterBits, maxClusterBits)
	case h.L2Bits < minL2Bits || h.L2Bits > maxL2Bits:
		return nil, corrupt("header", 33, "l2_bits is %d, and has to be from %d to %d", h.L2Bits, minL2Bits, maxL2Bits)
	case h.CryptMethod > cryptAES:
		return nil, corrupt("header", 36, "crypt_method is %d, which is not known", h.CryptMethod)
	case h.Size > math.MaxInt64-1<<h.l1Bits() || h.l1Entries()*8 > maxL1Bytes:
		return nil, corrupt("header", 24, "size is %d, more than an L1 table of %d bytes can hold", h.Size, maxL1Bytes)
	}
	return h, nil
}

// l1Bits: an L1 entry stands for 1<<l1Bits bytes of the disk.
func (h *header) l1Bits() uint { return uint(h.ClusterBits) + uint(h.L2Bits) }

func (h *header) l1Entries() int64 { return (int64(h.Size) + 1<<h.l1Bits() - 1) >> h.l1Bits() }

// readL1 reads the L1 table.
func readL1(ctx context.Context, h *header, file block.Device) ([]uint64, error) {
	return readTable(ctx, "L1 table", file, h.L1TableOffset, h.l1Entries())
}

// readTable reads a table of so many entries, all of which must lie in the file.
func readTable(ctx context.Context, part string, file block.Device, off uint64, entries int64) ([]uint64, error) {
	if off > math.MaxInt64 || block.CheckRange(int64(off), entries*8, file.Size()) != nil {
		return nil, corrupt(part, int64(min(off, math.MaxInt64)), "%d bytes of it leave the file, which has %d", entries*8, file.Size())
	}
	p := make([]byte, entries*8)
	if err := file.Read(ctx, p, int64(off)); err != nil {
		return nil, err
	}
	table := make([]uint64, entries)
	for i := range table {
		table[i] = binary.BigEndian.Uint64(p[8*i:])
	}
	return table, nil
}

// readBackingName reads the name of the backing file. Its format is not recorded.
func readBackingName(ctx context.Context, h *header, file block.Device) (string, error) {
	off, n := h.BackingFileOffset, int64(h.BackingFileSize)
	switch {
	case n > maxNameLen:
		return "", corrupt("header", 16, "the name of the backing file has %d bytes, more than %d", n, maxNameLen)
	case off > math.MaxInt64 || block.CheckRange(int64(off), n, file.Size()) != nil:
		return "", corrupt("header", 8, "the name of the backing file lies at %#x, outside the file", off)
	}
	name := make([]byte, n)
	if err := file.Read(ctx, name, int64(off)); err != nil {
		return "", err
	}
	return string(name), nil
}

func corrupt(part string, off int64, cause string, args ...any) error {
	return block.Corrupt(Name, part, off, cause, args...)
}
