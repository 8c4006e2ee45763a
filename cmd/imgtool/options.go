package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
)

// parseOptions reads the lists of -o: NAME=VALUE,... where two commas stand for one inside a value. help is set where one of them asks for the
// options that there are. A later value takes the place of an earlier one.
func parseOptions(lists []string) (values map[string]string, help bool, err error) {
	values = map[string]string{}
	for _, list := range lists {
		for _, pair := range splitOptions(list) {
			key, value, ok := strings.Cut(pair, "=")
			switch {
			case ok && key != "":
				values[key] = value
			case pair == "help" || pair == "?":
				help = true
			default:
				return nil, false, usagef("-o %s: say NAME=VALUE, or help", pair)
			}
		}
	}
	return values, help, nil
}

// splitOptions cuts at single commas.
func splitOptions(list string) []string {
	const comma = "\x00" // which no argument of a program holds
	parts := strings.Split(strings.ReplaceAll(list, ",,", comma), ",")
	for i := range parts {
		parts[i] = strings.ReplaceAll(parts[i], comma, ",")
	}
	return parts
}

// outputDriver returns the driver of a new image: the one that is named, or the one that the file's ending tells, or raw. The name of an export tells
// nothing: what has format qcow2 there is mostly served as the disk in it.
func (a *app) outputDriver(flag, name, file string) (*formats.Driver, error) {
	registry := a.registry()
	if name != "" {
		if d := registry.Lookup(name); d != nil {
			return d, nil
		}
		return nil, usagef("%s %s: there is no such format; known are %s", flag, name, strings.Join(registry.Names(), ", "))
	}
	if !chain.IsFile(file) {
		file = ""
	}
	d := registry.ForFile(file)
	known := unknownFormat(file)
	switch {
	case d != nil && d.Create == nil && d.Plan == nil:
		known = d.Name
	case d == nil:
		d = registry.Lookup(raw.Name)
	}
	if known != "" && a.qemu == nil { // qemu-img does not look at endings
		return nil, usagef("%s: this version does not write %s; %s raw writes the bytes under this name", file, known, flag)
	}
	return d, nil
}

// unknownFormat returns the format of which a file has the ending, where that is one of disks or of compressed files which this version does not
// have; else "". Whoever names a file so does not expect a raw image in it.
func unknownFormat(file string) string {
	switch ext := strings.ToLower(filepath.Ext(file)); ext {
	case ".vmdk", ".vdi", ".vhd", ".vhdx", ".qed", ".dmg", ".hdd", ".cloop", ".bz2", ".lz4", ".xz", ".zst":
		return ext[1:]
	case ".vpc":
		return "vhd"
	}
	return ""
}

// checkOptions refuses what the format does not know, before any file is touched.
func checkOptions(d *formats.Driver, values map[string]string) error {
	if d.Options == nil && len(values) > 0 {
		return usagef("-o: format %s has no options", d.Name)
	}
	if d.Options == nil {
		return nil
	}
	if _, err := formats.ParseOptions(d.Options, values); err != nil {
		return &usageError{err: fmt.Errorf("-o: %w", err)}
	}
	return nil
}

// hasOption reports whether the format knows an option.
func hasOption(d *formats.Driver, name string) bool {
	for _, o := range formats.OptionsHelp(d.Options) {
		if o.Name == name {
			return true
		}
	}
	return false
}

// printOptions lists the options of a format.
func (a *app) printOptions(d *formats.Driver) error {
	return a.printOptionDocs("Options of "+d.Name, formats.OptionsHelp(d.Options))
}

// printOptionDocs lists options under a title.
func (a *app) printOptionDocs(title string, docs []formats.OptionDoc) error {
	if a.json {
		return a.printJSON(describeOptions(docs))
	}
	a.printf("%s", title)
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	for _, o := range docs {
		fmt.Fprintf(w, "  %s=%s\t%s (%s)\n", o.Name, o.Kind, o.Help, o.Default)
	}
	return w.Flush()
}
