package qemuimg

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

func buildInfo(p *parser) error {
	if err := p.single(); err != nil {
		return err
	}
	p.passFlag(backingChain, "--backing-chain")
	return p.image(0, false)
}

func buildCheck(p *parser) error {
	mode := p.last(repair)
	if p.has(repair) && mode != "leaks" && mode != "all" {
		return misused("Unknown option value for -r (expecting 'leaks' or 'all'): %s", mode)
	}
	if err := p.single(); err != nil {
		return err
	}
	if err := p.checkCaches(); err != nil {
		return err
	}
	p.pass(repair, "--repair")
	return p.image(0, p.has(repair))
}

// openExit is the exit code of compare where an image cannot be opened.
const openExit = 2

func buildCompare(p *parser) error {
	if len(p.operands) != 2 {
		return misused("Expecting two image file names")
	}
	err := p.checkCaches()
	if err == nil {
		err = p.compareImages()
	}
	if e, ok := err.(*Error); ok {
		e.Exit = openExit
	}
	return err
}

func (p *parser) compareImages() error {
	if p.has(imageOpts) && p.has(format) {
		return wrong("--image-opts and --format are mutually exclusive")
	}
	p.passFlag(strict, "--strict")
	for i, o := range []struct{ key, flag string }{{format, "--format"}, {secondFormat, "--second-format"}} {
		img, err := p.open(p.operands[i], p.has(imageOpts))
		if err != nil {
			return err
		}
		typed := p.operands[i]
		p.operands[i] = img.chain
		if p.has(o.key) {
			img.format = p.last(o.key)
		}
		if err := p.passFormat(o.flag, img, typed); err != nil {
			return err
		}
	}
	return nil
}

func buildMap(p *parser) error {
	if err := p.sized(startOffset, "--start-offset", "start offset"); err != nil {
		return err
	}
	if err := p.sized(maxLength, "--max-length", "max length"); err != nil {
		return err
	}
	if err := p.single(); err != nil {
		return err
	}
	return p.image(0, false)
}

func buildMeasure(p *parser) error {
	values, asks, err := p.formatOptions()
	if err != nil {
		return err
	}
	p.Options = values
	p.value("--output-format", p.or(outputFormat, rawFormat))
	if asks {
		return p.listOptions(p.or(outputFormat, rawFormat))
	}
	switch {
	case len(p.operands) > 1:
		return wrong("At most one filename argument is allowed.")
	case len(p.operands) == 0 && (p.has(imageOpts) || p.has(format) || p.has(snapshot)):
		return wrong("--image-opts, -f, and -l require a filename argument.")
	case len(p.operands) == 0 && !p.has(size):
		return wrong("Either --size N or one filename must be specified.")
	case len(p.operands) == 1 && p.has(size):
		return wrong("--size N cannot be used together with a filename.")
	}
	if err := p.sized(size, "--size", "image size"); err != nil {
		return err
	}
	to := p.or(outputFormat, rawFormat)
	if _, err := p.driver(to, values, "", ""); err != nil {
		if p.knows(to) {
			err = wrong("%v\nqemu-img: Invalid options for file format '%s'", err, to)
		}
		return err
	}
	p.passOptions(values)
	if p.has(size) {
		return nil
	}
	if err := p.passSnapshot(); err != nil {
		return err
	}
	return p.image(0, false)
}

// or returns the argument of an option, or what stands for it where it is not given.
func (p *parser) or(key, otherwise string) string {
	if p.has(key) {
		return p.last(key)
	}
	return otherwise
}

// passSnapshot passes -l: the ID or the name of a snapshot, or snapshot.id=ID,snapshot.name=NAME.
func (p *parser) passSnapshot() error {
	text := p.last(snapshot)
	if !p.has(snapshot) {
		return nil
	}
	p.Operand = text
	p.value("--snapshot", text)
	if !strings.HasPrefix(text, "snapshot.") {
		return nil
	}
	for _, pair := range splitOptions(text) {
		if key, _, _ := strings.Cut(pair, "="); key != "snapshot.id" && key != "snapshot.name" {
			return wrong("Invalid parameter '%s'\nqemu-img: Failed in parsing snapshot param '%s'", key, text)
		}
	}
	return nil
}

func buildResize(p *parser) error {
	if len(p.operands) != 2 {
		return misused("Expecting image file name and size")
	}
	mode := p.last(preallocation)
	if p.has(preallocation) && !slices.Contains([]string{"off", "metadata", "falloc", "full"}, mode) {
		return wrong("Invalid preallocation mode '%s'", mode)
	}
	p.Action = mode
	p.pass(preallocation, "--preallocation")
	p.passFlag(shrink, "--shrink")
	text := p.operands[1]
	sign := ""
	if strings.HasPrefix(text, "+") || strings.HasPrefix(text, "-") {
		sign, text = text[:1], text[1:]
	}
	n, err := parseSize(text)
	if err == errNotSize {
		return wrong(notSize, "size")
	}
	if err := p.image(0, true); err != nil {
		return err
	}
	if err != nil || n == 0 && sign == "" {
		return wrong("New image size must be positive")
	}
	p.operands[1] = sign + decimal(n)
	return nil
}

func buildRebase(p *parser) error {
	if err := p.single(); err != nil {
		return err
	}
	if !p.has(unsafeMode) && !p.has(backing) {
		return misused("Must specify backing file (-b) or use unsafe mode (-u)")
	}
	if err := p.checkCaches(); err != nil {
		return err
	}
	if !p.knows(p.last(backingFormat)) {
		return wrong("Invalid format name: '%s'", p.last(backingFormat))
	}
	p.Operand = p.last(backing)
	if p.Operand != "" && !p.has(backingFormat) {
		return wrong("Could not change the backing file to '%s': backing format must be specified", p.Operand)
	}
	p.passFlag(unsafeMode, "--unsafe")
	p.value("--backing", p.Operand)
	if p.Operand != "" {
		p.pass(backingFormat, "--backing-format")
	}
	return p.image(0, true)
}

func buildCommit(p *parser) error {
	if err := p.single(); err != nil {
		return err
	}
	if err := p.checkCaches(); err != nil {
		return err
	}
	if p.has(rate) {
		if _, err := sizeOf("rate limit", p.last(rate)); err != nil {
			return err
		}
	}
	p.Operand = p.last(backing)
	p.pass(backing, "--base")
	p.passFlag(deleteImage, "--keep")
	return p.image(0, true)
}

func buildSnapshot(p *parser) error {
	actions, name, flag := len(p.all(listSnapshots)), "", "--list"
	for _, a := range []struct{ key, flag string }{{applySnapshot, "--apply"}, {createSnapshot, "--create"}, {deleteSnapshot, "--delete"}} {
		if p.has(a.key) {
			actions += len(p.all(a.key))
			name, flag = p.last(a.key), a.flag
		}
	}
	if actions > 1 {
		return misused("Cannot mix '-l', '-a', '-c', '-d'")
	}
	if err := p.single(); err != nil {
		return err
	}
	p.Action, p.Operand = flag[2:], name
	if flag == "--list" {
		p.flag(flag)
		return p.image(0, false)
	}
	p.value(flag, name)
	return p.image(0, true)
}

func buildBitmap(p *parser) error {
	for _, s := range p.given {
		switch s.key {
		case add, remove, clearBits, enable, disable:
			p.flag("--" + s.key)
		case merge:
			p.value("--merge", s.value)
			p.Source = s.value
		default:
			continue
		}
		p.Action = cmp.Or(p.Action, s.key)
	}
	if len(p.flags) == 0 {
		return wrong("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
	}
	if p.has(granularity) && !p.has(add) {
		return wrong("granularity only supported with --add")
	}
	if p.has(sourceFile) && !p.has(merge) {
		return wrong("Merge bitmap source file only supported with --merge")
	}
	if p.has(sourceFormat) && !p.has(sourceFile) {
		return wrong("-F only supported with -b")
	}
	if len(p.operands) != 2 {
		return wrong("Expecting filename and bitmap name")
	}
	if err := p.sized(granularity, "--granularity", "granularity"); err != nil {
		return err
	}
	if p.has(sourceFile) {
		img, err := p.open(p.last(sourceFile), false)
		if err != nil {
			return err
		}
		p.value("--source", img.chain)
		img.format = p.or(sourceFormat, img.format)
		if err := p.passFormat("--source-format", img, p.last(sourceFile)); err != nil {
			return err
		}
	}
	p.Operand = p.operands[1]
	return p.image(0, true)
}

func buildAmend(p *parser) error {
	values, asks, err := p.formatOptions()
	if err != nil {
		return err
	}
	switch {
	case !p.has(options):
		return misused("Must specify options (-o)")
	case asks && p.has(format):
		return p.listOptions(p.last(format))
	case len(p.operands) != 1:
		return wrong("Expecting one image file name")
	}
	if err := p.checkCaches(); err != nil {
		return err
	}
	if asks {
		p.value("--options", "help")
	}
	p.Options = values
	for _, key := range []string{"backing_file", "backing_fmt"} {
		if _, ok := values[key]; ok {
			return wrong("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.")
		}
	}
	p.passOptions(values)
	return p.image(0, true)
}

func buildDD(p *parser) error {
	given := map[string]string{}
	for _, operand := range p.operands {
		key, value, ok := strings.Cut(operand, "=")
		if !ok || !slices.Contains([]string{"if", "of", "bs", "count", "skip"}, key) {
			return wrong("unrecognized operand %s", key)
		}
		given[key] = value
	}
	p.operands = nil
	for _, key := range []string{"bs", "count", "skip"} {
		value, ok := given[key]
		if !ok {
			continue
		}
		n, err := sizeOf(key, value)
		if err == nil && key == "bs" && (n < 1 || n > 1<<31-1) {
			err = wrong("Invalid bs specified. Must be between 1 and 2147483647.")
		}
		if err != nil {
			return err
		}
		p.operands = append(p.operands, key+"="+decimal(n))
	}
	if given["if"] == "" || given["of"] == "" {
		return wrong("Must specify both input and output files")
	}
	if p.has(imageOpts) && p.has(format) {
		return wrong("--image-opts and --format are mutually exclusive")
	}
	from, err := p.open(given["if"], p.has(imageOpts))
	if err != nil {
		return err
	}
	to, err := p.open(given["of"], false)
	if err != nil {
		return err
	}
	from.format = p.or(format, from.format)
	if err := p.passFormat("--format", from, given["if"]); err != nil {
		return err
	}
	if p.Format = p.or(outputFormat, rawFormat); !p.knows(p.Format) {
		return wrong("Unknown file format")
	}
	p.value("--output-format", p.Format)
	p.Written, p.Creates = []string{to.source}, true
	p.operands = append(p.operands, fmt.Sprintf("if=%s", from.chain), fmt.Sprintf("of=%s", to.chain))
	return nil
}
