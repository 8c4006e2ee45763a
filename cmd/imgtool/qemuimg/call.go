package qemuimg

import (
	"fmt"
	"slices"
	"strings"

	"github.com/imgtool/imgtool/formats"
)

// Call is a command line of qemu-img, understood.
type Call struct {
	Command string   // of qemu-img; Help or Version where one of these is asked for
	Args    []string // imgtool's own command line for it

	JSON     bool // --output=json
	Quiet    bool // -q
	Progress bool // -p
	Share    bool // -U, of an image that is read

	Secrets map[string]Secret // --object secret, by ID
	Written []string          // paths of images that are written
	Creates bool              // what is written is made anew
	Typed   map[string]string // names of images as they were typed, by their paths
	Formats map[string]string // of images that are opened, by their paths, where they are given

	Format  string            // of the new image, or of the one that is looked at or changed; "" to find out
	Options map[string]string // of the new image, as -o, -b and -F have them; nil where there are none
	Size    int64             // of the new image in bytes; -1 where it is not given
	Action  string            // of snapshot: list, apply, create or delete; of bitmap the first; of convert bitmaps, perhaps; of resize the preallocation
	Source  string            // of bitmap --merge: the last source
	Operand string            // what the command does to the image: the name of a snapshot or of a bitmap, a backing file
}

// What Call.Command is where no command is to run.
const (
	Help    = "--help"
	Version = "--version"
	Options = "-o help" // of Call.Format
)

// parser builds a Call.
type parser struct {
	*Call
	given
	registry formats.Registry
	operands []string
	flags    []string // of imgtool's command
	target   string   // of convert, as it was typed
}

// Parse understands a command line without the name of the program, for the formats that there are. Every error is an *Error.
func Parse(args []string, registry formats.Registry) (*Call, error) {
	c := &Call{Size: -1, Typed: map[string]string{}, Formats: map[string]string{}}
	g, rest, err := getopt(args, globals(), "", true)
	switch {
	case err != nil:
		return c, err
	case g.has(help):
		c.Command = Help
		return c, nil
	case g.has(version):
		c.Command = Version
		return c, nil
	case g.has(trace):
		return c, wrong("--trace is not supported: imgtool has no trace events")
	case len(rest) == 0:
		return c, misused("Not enough arguments")
	}
	list := commands()
	i := slices.IndexFunc(list, func(k command) bool { return k.name == rest[0] })
	if i < 0 {
		return c, misused("Command not found: %s", rest[0])
	}
	c.Command = list[i].name
	return c, c.parse(list[i], rest[1:], registry)
}

// parse understands what follows the name of a command.
func (c *Call) parse(k command, args []string, registry formats.Registry) error {
	size := "" // of resize: the last argument, whatever it looks like
	if k.name == "resize" && !slices.Contains(args, "--help") && !slices.Contains(args, "-h") {
		if len(args) < 2 {
			return misused("Not enough arguments")
		}
		size, args = args[len(args)-1], args[:len(args)-1]
	}
	g, operands, err := getopt(args, k.options, help, false)
	if err != nil {
		return err
	}
	if g.has(help) {
		c.Command = Help
		return nil
	}
	if size != "" || k.name == "resize" {
		operands = append(operands, size)
	}
	p := &parser{Call: c, given: g, registry: registry, operands: operands}
	c.Quiet, c.Share, c.Progress = g.has(quiet), g.has(share), g.has(progress) && !g.has(quiet)
	if c.Secrets, err = secrets(g.all(object)); err != nil {
		return err
	}
	switch g.last(output) {
	case "json":
		c.JSON = true
	case "human":
	default:
		if g.has(output) {
			return wrong("--output must be used with human or json as argument.")
		}
	}
	if err := k.build(p); err != nil {
		return err
	}
	if len(p.Written) > 0 && !p.Creates { // what is written has its locks
		c.Share = c.Share && k.name == "convert"
	}
	head := []string{k.name}
	if c.JSON {
		head = append(head, "--json")
	}
	if c.Quiet {
		head = append(head, "-q")
	}
	if c.Share {
		head = append(head, "--force-share")
	}
	if c.Progress {
		head = append(head, "--progress")
	}
	c.Args = slices.Concat(head, p.flags, []string{"--"}, p.operands)
	return nil
}

// flag gives imgtool a flag.
func (p *parser) flag(name string) { p.flags = append(p.flags, name) }

// value gives imgtool a flag with a value.
func (p *parser) value(name, value string) { p.flags = append(p.flags, name+"="+value) }

// pass gives imgtool a flag with the argument of an option, where that is given.
func (p *parser) pass(key, name string) {
	if p.has(key) {
		p.value(name, p.last(key))
	}
}

// passFlag gives imgtool a flag where an option is given.
func (p *parser) passFlag(key, name string) {
	if p.has(key) {
		p.flag(name)
	}
}

// single checks that there is one operand, the name of an image.
func (p *parser) single() error {
	if len(p.operands) != 1 {
		return misused("Expecting one image file name")
	}
	return nil
}

// image replaces the i'th operand, the name of an image that is to be read, or changed where write is set, and passes its format.
func (p *parser) image(i int, write bool) error {
	if p.has(imageOpts) && p.has(format) {
		return wrong("--image-opts and --format are mutually exclusive")
	}
	img, err := p.open(p.operands[i], p.has(imageOpts))
	if err != nil {
		return err
	}
	if write && p.has(share) && p.Command != "rebase" { // which takes it for the files below
		return cannotOpen(p.operands[i], "force-share=on can only be used with read-only images")
	}
	typed := p.operands[i]
	p.operands[i] = img.chain
	if write {
		p.Written = []string{img.source}
	}
	if p.has(format) {
		img.format = p.last(format)
	}
	p.Format = img.format
	return p.passFormat("--format", img, typed)
}

// passFormat passes the format of an image that was typed so.
func (p *parser) passFormat(flag string, img image, typed string) error {
	switch {
	case img.format == "":
		return nil
	case !p.knows(img.format):
		return cannotOpen(typed, fmt.Sprintf("Unknown driver '%s'", img.format))
	}
	p.Formats[img.source] = img.format
	if !img.keyed {
		p.value(flag, img.format)
	}
	return nil
}

// open returns what a name means, and remembers how it was typed.
func (p *parser) open(name string, asOptions bool) (image, error) {
	read := named
	if asOptions {
		read = optioned
	}
	img, err := read(name, p.Secrets)
	if err == nil {
		p.Typed[img.source] = name
		p.Share = p.Share || img.share
	}
	return img, err
}

// checkCaches refuses cache modes that qemu-img does not know. The others have no effect.
func (p *parser) checkCaches() error {
	known := []string{"none", "off", "writeback", "writethrough", "directsync", "unsafe"}
	for _, c := range []struct{ key, name string }{{cache, "cache"}, {sourceCache, "source cache"}} {
		if p.has(c.key) && !slices.Contains(known, p.last(c.key)) {
			return wrong("Invalid %s option: %s", c.name, p.last(c.key))
		}
	}
	return nil
}

// sized passes a size in bytes; what is its name in errors.
func (p *parser) sized(key, name, what string) error {
	if !p.has(key) {
		return nil
	}
	n, err := sizeOf(what, p.last(key))
	if err != nil {
		return err
	}
	p.value(name, decimal(n))
	return nil
}

// formatOptions returns what -o says. asksHelp is set where it is to list the options that there are.
func (p *parser) formatOptions() (values map[string]string, asksHelp bool, err error) {
	values = map[string]string{}
	for _, list := range p.all(options) {
		if list == "" || strings.HasPrefix(list, ",") || strings.HasSuffix(strings.ReplaceAll(list, ",,", ""), ",") {
			return nil, false, wrong("Invalid option list: %s", list)
		}
		for _, pair := range splitOptions(list) {
			key, value, ok := strings.Cut(pair, "=")
			switch {
			case !ok && (key == "help" || key == "?"):
				asksHelp = true
				continue
			case !ok:
				value = "on"
			}
			values[key] = value
		}
	}
	return values, asksHelp, nil
}

// passOptions gives imgtool the options of a format.
func (p *parser) passOptions(values map[string]string) {
	for _, key := range sortedKeys(values) {
		p.value("--options", key+"="+strings.ReplaceAll(values[key], ",", ",,"))
	}
}
