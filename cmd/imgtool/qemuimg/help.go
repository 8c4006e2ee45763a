package qemuimg

import (
	"fmt"
	"slices"
	"strings"

	"github.com/imgtool/imgtool/formats"
)

// Spoken is the version of qemu-img whose command line is understood, and which callers are told: they choose by it which options they use.
const Spoken = "7.2.0"

// VersionText returns what --version prints; own is imgtool's version.
func VersionText(own string) string {
	return fmt.Sprintf("qemu-img version %s (imgtool %s)\nimgtool under the name of qemu-img, with the command line of that version\n", Spoken, own)
}

// HelpText returns what --help prints.
func HelpText(own string, registry formats.Registry) string {
	var b strings.Builder
	b.WriteString(VersionText(own))
	b.WriteString(`usage: qemu-img [standard options] command [command options]

    '-h', '--help'       display this help and exit
    '-V', '--version'    output version information and exit

Command syntax:
`)
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %s", c.name)
		for _, o := range c.options {
			if o.key != help {
				fmt.Fprintf(&b, " [%s]", o.spelling())
			}
		}
		fmt.Fprintf(&b, " %s\n", c.usage)
	}
	b.WriteString(`
A name is a path, file:PATH, a URL, or json:{...}; with --image-opts it is driver=FORMAT,file.filename=PATH. Sizes are bytes, or have one of
the suffixes k, M, G, T, P and E for powers of 1024. -o help lists the options of a format. Of what qemu-img has, -T, -C, -W and -m
change nothing here: caches are the system's, and reads and writes run in parallel in any case.

Exit codes: 0 done, 1 failed; compare: 0 the same, 1 they differ, 2 to 4 trouble; check: 0 clean, 1 not checked, 2 corrupt, 3 leaks, 63 no check.

Supported formats:`)
	names := registry.Names()
	for _, d := range registry {
		names = append(names, d.Aliases...)
	}
	slices.Sort(names)
	return b.String() + " " + strings.Join(names, " ") + "\n"
}

// OptionsText returns what -o help prints for a driver.
func OptionsText(d *formats.Driver) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Supported %s options:\n", d.Name)
	kinds := map[string]string{"on|off": "bool (on/off)", "number": "num", "size": "size"}
	for _, o := range formats.OptionsHelp(d.Options) {
		kind, known := kinds[o.Kind]
		if !known {
			kind = "str"
		}
		fmt.Fprintf(&b, "  %-22s - %s\n", o.Name+"=<"+kind+">", o.Help)
	}
	return b.String()
}

// spelling returns how an option is written.
func (o option) spelling() string {
	switch {
	case o.short != 0 && o.arg != "":
		return fmt.Sprintf("-%c %s", o.short, o.arg)
	case o.short != 0:
		return fmt.Sprintf("-%c", o.short)
	case o.arg != "":
		return fmt.Sprintf("--%s=%s", o.long, o.arg)
	}
	return "--" + o.long
}
