package qemuimg

import (
	"slices"
	"strconv"

	"github.com/imgtool/imgtool/formats"
)

// Formats returns the drivers of r that qemu-img would have: it does not look into what images travel in, such as gzip, whose files are raw images to it.
func Formats(r formats.Registry) formats.Registry {
	return slices.DeleteFunc(slices.Clone(r), func(d formats.Driver) bool { return d.Transport })
}

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

// driver returns the driver of a new image, and checks the options for it. before stands before errors.
func (p *parser) driver(name string, values map[string]string, before string) (*formats.Driver, error) {
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
	}
	return d, nil
}
