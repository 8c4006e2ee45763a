// Package all lists the formats that imgtool knows, in one place and in a written order.
package all

import (
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/gz"
	"github.com/imgtool/imgtool/formats/qcow"
	"github.com/imgtool/imgtool/formats/qcow2"
	"github.com/imgtool/imgtool/formats/raw"
)

// Drivers returns the drivers in the order in which they are asked about an image: wrappers, then disk formats, then raw, which takes
// what nobody else wants.
func Drivers() formats.Registry {
	return formats.Registry{
		gz.Driver(),
		qcow2.Driver(),
		qcow.Driver(),
		raw.Driver(),
	}
}
