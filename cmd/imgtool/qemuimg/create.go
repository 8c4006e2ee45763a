package qemuimg

import (
	"errors"
	"fmt"
	"strings"
)

// newImage takes what the options of a new image share with options of the command out of values: the backing file and the size.
func (p *parser) newImage(values map[string]string) (backingFile, backingFmt, sizeText string) {
	take := func(name, key string) string {
		value := values[name]
		delete(values, name)
		return p.or(key, value)
	}
	return take("backing_file", backing), take("backing_fmt", backingFormat), take("size", size)
}

func buildCreate(p *parser) error {
	values, asks, err := p.formatOptions()
	if err != nil {
		return err
	}
	p.Format = p.or(format, rawFormat)
	p.value("--format", p.Format)
	if asks {
		return p.listOptions(p.Format)
	}
	if len(p.operands) == 0 {
		return misused("Expecting image file name")
	}
	name := p.operands[0]
	backingFile, backingFmt, optionSize := p.newImage(values)
	if err := p.createSize(name, optionSize); err != nil {
		return err
	}
	if backingFile != "" && p.Format == rawFormat {
		return wrong("%s: Backing file not supported for file format 'raw'", name)
	}
	img, err := p.open(name, false)
	if err != nil {
		return created(name, err)
	}
	p.operands = []string{img.chain}
	if p.Size >= 0 {
		p.operands = append(p.operands, decimal(p.Size))
	}
	p.Written, p.Creates = []string{img.source}, true
	p.passFlag(unsafeMode, "--unchecked")
	p.passBacking(backingFile, backingFmt)
	if _, err := p.driver(p.Format, values, name+": ", name+": "); err != nil {
		return err
	}
	switch {
	case backingFile == name:
		return wrong("%s: Error: Trying to create an image with the same filename as the backing file", name)
	case backingFile != "" && backingFmt == "":
		return wrong("%s: Backing file specified without backing format", name)
	case backingFmt != "" && p.Format == rawFormat:
		return wrong("%s: Backing file format not supported for file format 'raw'", name)
	case backingFile == "" && backingFmt != "":
		return wrong("%s: Backing format cannot be used without backing file", name)
	case !p.knows(backingFmt):
		return wrong("%s: Unknown driver '%s'\nCould not open backing image.", name, backingFmt)
	case p.Size < 0 && (backingFile == "" || p.has(unsafeMode)):
		return wrong("%s: Image creation needs a size parameter", name)
	}
	p.passOptions(values)
	p.Options = values
	if backingFile != "" {
		values["backing_file"], values["backing_fmt"] = backingFile, backingFmt
	}
	return nil
}

// createSize reads the size of create, which stands behind the name or among the options.
func (p *parser) createSize(name, option string) error {
	var err error
	switch {
	case len(p.operands) > 2:
		return misused("Unexpected argument: %s", p.operands[2])
	case len(p.operands) == 2 && option != "":
		return wrong("%s: The image size must be specified only once", name)
	case len(p.operands) == 2:
		p.Size, err = sizeOf("image size", p.operands[1])
	case option != "":
		if p.Size, err = parseSize(option); err != nil {
			err = wrong("%s: "+notSize, name, "size")
		}
	}
	return err
}

// created returns an error of opening as create tells it.
func created(name string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return wrong("%s: %s", name, strings.TrimPrefix(e.Text, "Could not open '"+name+"': "))
	}
	return err
}

func (p *parser) passBacking(file, format string) {
	if file != "" {
		p.value("--backing", file)
		p.value("--backing-format", format)
	}
}

// Bounds of the options of convert.
const (
	maxCoroutines = 16
	maxSparse     = 16 << 20 // bytes
)

func buildConvert(p *parser) error {
	values, asks, err := p.formatOptions()
	if err != nil {
		return err
	}
	p.Format = p.or(outputFormat, rawFormat)
	if asks {
		return p.listOptions(p.Format)
	}
	if err := p.convertNumbers(); err != nil {
		return err
	}
	if p.has(outputFormat) && !p.knows(p.Format) {
		return wrong("Unknown file format '%s'", p.Format)
	}
	backingFile, backingFmt, sizeText := p.newImage(values)
	if err := p.convertChecks(len(values)); err != nil {
		return err
	}
	if len(p.operands) < 2 {
		return wrong("Must specify image file name")
	}
	if sizeText != "" {
		return wrong("The size of the output is that of the input: -o size is not supported")
	}
	if err := p.checkCaches(); err != nil {
		return err
	}
	if err := p.convertSources(); err != nil {
		return err
	}
	if err := p.convertTarget(); err != nil {
		return err
	}
	switch {
	case backingFile != "" && p.Format == rawFormat:
		return wrong("Backing file not supported for file format 'raw'")
	case backingFile != "" && backingFmt == "" && !p.has(noCreate):
		return wrong("Use of backing file requires explicit backing format")
	case backingFmt != "" && p.Format == rawFormat:
		return wrong("Backing file format not supported for file format 'raw'")
	case backingFile == "" && backingFmt != "":
		return wrong("%s: error while converting %s: Backing format cannot be used without backing file", p.target, p.Format)
	}
	if !p.has(noCreate) {
		d, err := p.driver(p.Format, values, "", fmt.Sprintf("%s: error while converting %s: ", p.target, p.Format))
		switch {
		case err != nil:
			return err
		case p.has(compress) && !d.Compresses:
			return wrong("Compression not supported for this file format")
		case p.has(bitmaps) && p.Format == rawFormat:
			return wrong("Format driver '%s' does not support bitmaps", p.Format)
		}
	}
	p.passBacking(backingFile, backingFmt)
	p.passOptions(values)
	p.Options = values
	for _, f := range []struct{ key, flag string }{
		{compress, "--compress"}, {noCreate, "--no-create"}, {targetIsZero, "--target-is-zero"}, {salvage, "--salvage"}, {bitmaps, "--bitmaps"},
		{skipBroken, "--skip-broken-bitmaps"},
	} {
		p.passFlag(f.key, f.flag)
	}
	if p.has(bitmaps) {
		p.Action = bitmaps
	}
	p.pass(cache, "--cache")
	return p.passSnapshot()
}

// convertNumbers checks and passes the options of convert that are numbers.
func (p *parser) convertNumbers() error {
	if p.has(coroutines) {
		n, err := parseSize(p.last(coroutines))
		if err != nil || n < 1 || n > maxCoroutines {
			return wrong("Invalid number of coroutines. Allowed number of coroutines is between 1 and %d", maxCoroutines)
		}
	}
	if p.has(sparse) {
		n, err := sizeOf("buffer size for sparse output", p.last(sparse))
		if err == nil && (n > maxSparse || n%SectorSize != 0) {
			err = wrong("Invalid buffer size for sparse output specified. Valid sizes are multiples of %d up to %d. "+
				"Select 0 to disable sparse detection (fully allocates output).", SectorSize, maxSparse)
		}
		if err != nil {
			return err
		}
		p.value("--sparse", decimal(n))
	}
	return p.sized(rate, "--rate", "rate limit")
}

// convertChecks refuses options of convert that exclude each other. created is how many options the new image has.
func (p *parser) convertChecks(created int) error {
	for _, c := range []struct {
		bad  bool
		text string
	}{
		{p.has(imageOpts) && p.has(format), "--image-opts and --format are mutually exclusive"},
		{p.has(targetOpts) && p.has(outputFormat), "--image-opts and --format are mutually exclusive"},
		{p.has(targetOpts) && !p.has(noCreate), "--target-image-opts requires use of -n flag"},
		{p.has(skipBroken) && !p.has(bitmaps), "Use of --skip-broken-bitmaps requires --bitmaps"},
		{p.has(offload) && p.has(compress), "Cannot enable copy offloading when -c is used"},
		{p.has(offload) && p.has(sparse), "Cannot enable copy offloading when -S is used"},
		{p.has(offload) && p.has(salvage), "Cannot use copy offloading in salvaging mode"},
		{p.has(targetIsZero) && !p.has(noCreate), "--target-is-zero requires use of -n flag"},
		{p.has(targetIsZero) && p.has(backing), "Cannot use --target-is-zero when the destination image has a backing file"},
		{p.has(noCreate) && created > 0, "-o has no effect when skipping image creation"},
	} {
		if c.bad {
			return wrong("%s", c.text)
		}
	}
	return nil
}

// convertSources replaces the names of the sources, and passes their format.
func (p *parser) convertSources() error {
	seen := map[string]bool{}
	for i, name := range p.operands[:len(p.operands)-1] {
		img, err := p.open(name, p.has(imageOpts))
		if err != nil {
			return err
		}
		p.operands[i] = img.chain
		img.format = p.or(format, img.format)
		if seen[img.format] {
			continue
		}
		if err := p.passFormat("--format", img, name); err != nil {
			return err
		}
		seen[img.format] = true
	}
	if len(seen) > 1 {
		return wrong("sources of different formats together are not supported")
	}
	return nil
}

// convertTarget replaces the name of the target, and passes its format.
func (p *parser) convertTarget() error {
	last := len(p.operands) - 1
	name := p.operands[last]
	p.target = name
	img, err := p.open(name, p.has(targetOpts))
	switch {
	case err != nil && p.has(noCreate):
		return err
	case err != nil:
		var e *Error
		if errors.As(err, &e) {
			e.Text = strings.TrimPrefix(e.Text, "Could not open '"+name+"': ")
		}
		return err
	}
	if p.has(targetOpts) {
		p.Format = img.format
	}
	if p.Format != "" {
		p.value("--output-format", p.Format)
		p.Formats[img.source] = p.Format
	}
	p.operands[last] = img.chain
	p.Written, p.Creates = []string{img.source}, !p.has(noCreate)
	return nil
}
