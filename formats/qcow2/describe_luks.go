package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"

	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// luksHeader is the header of LUKS version 1 (LUKS On-Disk Format Specification, 1.2.3), big-endian.
type luksHeader struct {
	Magic         [6]byte
	Version       uint16
	CipherName    [32]byte
	CipherMode    [32]byte
	HashSpec      [32]byte
	PayloadOffset uint32 // sectors
	KeyBytes      uint32
	MKDigest      [20]byte
	MKDigestSalt  [32]byte
	MKDigestIter  uint32
	UUID          [40]byte
	Slots         [8]struct {
		Active            uint32
		Iterations        uint32
		Salt              [32]byte
		KeyMaterialOffset uint32 // sectors
		Stripes           uint32
	}
}

// slotActive marks a key slot that is in use.
const slotActive = 0x00ac71f3

// describeLUKS returns what the encryption header says; what it does not hold is left out.
func (d *Device) describeLUKS(ctx context.Context) formats.Fields {
	f := formats.Fields{}
	add := func(name string, v any) { f = append(f, formats.Field{Name: name, Value: v}) }
	data, _ := d.h.Extension(ondisk.ExtEncryption)
	var l luksHeader
	p := make([]byte, binary.Size(l))
	if len(data) < 16 || d.file.Read(ctx, p, clamp(binary.BigEndian.Uint64(data))) != nil {
		add("format", "luks")
		return f
	}
	if _, err := binary.Decode(p, binary.BigEndian, &l); err != nil || string(l.Magic[:]) != "LUKS\xba\xbe" || l.Version != 1 {
		add("format", "luks")
		return f
	}
	text := func(p []byte) string {
		p, _, _ = bytes.Cut(p, []byte{0})
		return string(p)
	}
	mode, iv, _ := strings.Cut(text(l.CipherMode[:]), "-")
	iv, ivHash, hashed := strings.Cut(iv, ":")
	bits := map[uint32]string{16: "-128", 24: "-192", 32: "-256"}
	keyBytes := l.KeyBytes
	if mode == "xts" {
		keyBytes /= 2
	}
	add("ivgen-alg", iv)
	if hashed {
		add("ivgen-hash-alg", ivHash)
	}
	add("hash-alg", text(l.HashSpec[:]))
	add("cipher-alg", text(l.CipherName[:])+bits[keyBytes])
	add("uuid", text(l.UUID[:]))
	add("format", "luks")
	add("cipher-mode", mode)
	slots := []formats.Fields{}
	for _, s := range l.Slots {
		slot := formats.Fields{{Name: "active", Value: s.Active == slotActive}}
		if s.Active == slotActive {
			slot = append(slot, formats.Field{Name: "iters", Value: s.Iterations})
		}
		slot = append(slot, formats.Field{Name: "key-offset", Value: int64(s.KeyMaterialOffset) * ondisk.SectorSize})
		if s.Active == slotActive {
			slot = append(slot, formats.Field{Name: "stripes", Value: s.Stripes})
		}
		slots = append(slots, slot)
	}
	add("slots", slots)
	add("payload-offset", int64(l.PayloadOffset)*ondisk.SectorSize)
	add("master-key-iters", l.MKDigestIter)
	return f
}
