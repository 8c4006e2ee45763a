package qemuimg

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// SectorSize is the unit of disks in bytes: every image is whole sectors to qemu-img.
const SectorSize = 512

// Formats returns the drivers of r as qemu-img has them. It does not look into what images travel in, such as gzip, whose files are raw images to
// it. A raw image whose last sector is not whole reads as zero to the end of that sector.
func Formats(r formats.Registry) formats.Registry {
	r = slices.DeleteFunc(slices.Clone(r), func(d formats.Driver) bool { return d.Transport })
	for i := range r {
		if r[i].Name == rawFormat {
			r[i].Open = inSectors(r[i].Open)
		}
	}
	return r
}

// inSectors returns open for images that are whole sectors. An image that is written has the size of its file.
func inSectors(open func(context.Context, block.Device, formats.OpenOptions) (block.Device, error)) func(context.Context, block.Device, formats.OpenOptions) (block.Device, error) {
	return func(ctx context.Context, dev block.Device, o formats.OpenOptions) (block.Device, error) {
		d, err := open(ctx, dev, o)
		if err != nil || o.Write || d.Size()%SectorSize == 0 {
			return d, err
		}
		whole, err := block.Concat(d, block.NewNull(SectorSize-d.Size()%SectorSize))
		if err != nil {
			return nil, err // dev is the caller's still, and all that d has
		}
		return &rawImage{block.Filter{Device: whole}}, nil
	}
}

// rawImage is a device that says that it is a raw image.
type rawImage struct{ block.Filter }

func (d *rawImage) Info() block.Info {
	i := d.Filter.Info()
	i.Format = rawFormat
	return i
}

// rawFormat is the format of images of which nothing is said.
const rawFormat = "raw"

// knows reports whether there is a format of this name. Where none is given, there is.
func (p *parser) knows(name string) bool { return name == "" || p.registry.Lookup(name) != nil }

// listOptions makes the call one that lists the options of a format.
func (p *parser) listOptions(format string) error {
	if !p.knows(format) {
		return wrong("Unknown file format '%s'", format)
	}
	p.Command, p.Format = Options, format
	return nil
}

// Texts that more than one option has.
const (
	notSize   = "Parameter '%s' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
	notSwitch = "Parameter '%s' expects 'on' or 'off'"
	notNumber = "Parameter '%s' expects a number"
)

// notValue returns what is said of a value that an option cannot have.
func notValue(format, key, value string) string {
	switch {
	case format == rawFormat && key == preallocation && value == "metadata":
		return "Unsupported preallocation mode: " + value
	case format == rawFormat:
		return "invalid parameter value: " + value
	case key == "compat":
		key = "version"
	}
	return fmt.Sprintf("Parameter '%s' does not accept value '%s'", strings.ReplaceAll(key, "_", "-"), value)
}

// driver returns the driver of a new image, and checks the options for it. before stands before errors, and during before those that qemu-img
// finds once it has begun.
func (p *parser) driver(name string, values map[string]string, before, during string) (*formats.Driver, error) {
	d := p.registry.Lookup(name)
	if d == nil {
		return nil, wrong("%sUnknown file format '%s'", before, name)
	}
	docs := formats.OptionsHelp(d.Options)
	for _, key := range sortedKeys(values) {
		i := slices.IndexFunc(docs, func(o formats.OptionDoc) bool { return o.Name == key })
		if i < 0 {
			return nil, wrong("%sInvalid parameter '%s'", before, key)
		}
		value, text := values[key], ""
		switch docs[i].Kind {
		case "on|off":
			if !slices.Contains([]string{"on", "off", "yes", "no", "true", "false", "y", "n"}, value) {
				text = notSwitch
			} else {
				values[key] = map[byte]string{'o': value, 'y': "on", 't': "on", 'n': "off", 'f': "off"}[value[0]]
			}
		case "size":
			n, err := parseSize(value)
			if err != nil {
				text = notSize
			} else {
				values[key] = decimal(n)
			}
		case "number":
			if _, err := strconv.ParseUint(value, 0, 63); err != nil {
				text = notNumber
			}
		}
		if text != "" {
			return nil, wrong("%s"+text, before, key)
		}
		if docs[i].Enum != nil && !slices.Contains(docs[i].Enum, value) {
			return nil, wrong("%s%s", during, notValue(name, key, value))
		}
	}
	return d, nil
}
