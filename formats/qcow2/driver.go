// Package qcow2 is the format of QEMU: an image that grows as it is written to, in clusters that two levels of tables find.
//
// [Open] returns a [Device], which reads and writes every kind of cluster of versions 2 and 3. Package ondisk has the structures of the file.
//
// # What is promised of writes
//
// Data goes to its place at once, into clusters that nothing points to yet where it is new. Tables change in memory; Flush writes them in
// an order that leaves, wherever the power fails, an image that opens, holds all that was flushed, and in which at most clusters are
// counted as used that are not. See commit.go.
package qcow2

import (
	"encoding/binary"

	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/check"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/formats/qcow2/plan"
)

// Name is the name of the driver.
const Name = "qcow2"

// Driver returns the driver.
func Driver() formats.Driver {
	return formats.Driver{
		Name:        Name,
		Doc:         "QEMU's image format, versions 2 and 3: sparse, compressed, with backing files and snapshots",
		Extensions:  []string{".qcow2"},
		Probe:       probe,
		Open:        Open,
		Create:      createImage,
		Plan:        planImage,
		PlanStream:  planStream,
		Measure:     measure,
		Check:       check.Check,
		Compresses:  true,
		Options:     plan.Defaults(),
		OpenOptions: &Options{},
	}
}

func probe(h formats.Head) formats.Score {
	p := h.At(0, 8)
	if p == nil || binary.BigEndian.Uint32(p) != ondisk.Magic {
		return formats.No
	}
	if v := binary.BigEndian.Uint32(p[4:]); v != 2 && v != 3 {
		return formats.No
	}
	return formats.Certain
}
