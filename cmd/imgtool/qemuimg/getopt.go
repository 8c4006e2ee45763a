package qemuimg

import (
	"fmt"
	"slices"
	"strings"
)

// option is an option of a command.
type option struct {
	key   string // what it is asked for by
	short byte   // its letter; 0 where it has none
	long  string // its long name; "" where it has none
	arg   string // what the help calls its argument; "" where it has none
}

// Error is what is wrong with a command line, or cannot be done, in the words of qemu-img.
type Error struct {
	Text string // perhaps of several lines, of which those after the first stand as they are
	Exit int    // code that the program ends with
	Try  bool   // point to --help
}

func (e *Error) Error() string { return e.Text }

// wrong returns an error with exit code 1.
func wrong(format string, args ...any) error {
	return &Error{Text: fmt.Sprintf(format, args...), Exit: 1}
}

// misused returns an error with exit code 1 that points to the help.
func misused(format string, args ...any) error {
	return &Error{Text: fmt.Sprintf(format, args...), Exit: 1, Try: true}
}

// setting is an option with its argument; that of a flag is "".
type setting struct{ key, value string }

// given holds the options of a command line in the order in which they came.
type given []setting

// all returns the arguments of an option.
func (g given) all(key string) (values []string) {
	for _, s := range g {
		if s.key == key {
			values = append(values, s.value)
		}
	}
	return values
}

func (g given) has(key string) bool { return len(g.all(key)) > 0 }

// last returns the argument that counts, which is the last one; "" where the option is not given.
func (g given) last(key string) string {
	values := g.all(key)
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// getopt takes a command line apart as getopt_long of the GNU C library does: letters can be bundled, with the argument of the last one
// behind it, long names be shortened as long as they stay unique, and options follow operands unless inOrder is set; all after -- is operands.
// It stops at an option whose key is stop.
func getopt(args []string, options []option, stop string, inOrder bool) (given, []string, error) {
	var g given
	var operands []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		var err error
		switch {
		case arg == "--":
			return g, append(operands, args...), nil
		case strings.HasPrefix(arg, "--"):
			args, err = g.long(arg, args, options)
		case len(arg) > 1 && arg[0] == '-':
			args, err = g.letters(arg, args, options)
		case inOrder:
			return g, append([]string{arg}, args...), nil
		default:
			operands = append(operands, arg)
		}
		if err != nil || g.has(stop) {
			return g, operands, err
		}
	}
	return g, operands, nil
}

// long takes one option with a long name, and returns the arguments behind it.
func (g *given) long(arg string, rest []string, options []option) ([]string, error) {
	name, value, joined := strings.Cut(arg[2:], "=")
	i := slices.IndexFunc(options, func(o option) bool { return o.long == name })
	for j, o := range options {
		if i >= 0 && options[i].long == name || o.long == "" || !strings.HasPrefix(o.long, name) {
			continue
		}
		if i >= 0 {
			return nil, misused("unrecognized option '%s'", arg) // two begin like this
		}
		i = j
	}
	switch {
	case i < 0, joined && options[i].arg == "":
		return nil, misused("unrecognized option '%s'", arg)
	case options[i].arg == "":
	case joined:
	case len(rest) == 0:
		return nil, misused("missing argument for option '%s'", arg)
	default:
		value, rest = rest[0], rest[1:]
	}
	*g = append(*g, setting{options[i].key, value})
	return rest, nil
}

// letters takes an argument of options of one letter, and returns the arguments behind it.
func (g *given) letters(arg string, rest []string, options []option) ([]string, error) {
	for n := 1; n < len(arg); n++ {
		i := slices.IndexFunc(options, func(o option) bool { return o.short == arg[n] })
		if i < 0 {
			return nil, misused("unrecognized option '%s'", arg)
		}
		key := options[i].key
		switch {
		case options[i].arg == "":
			*g = append(*g, setting{key, ""})
			continue
		case n+1 < len(arg):
			*g = append(*g, setting{key, arg[n+1:]})
		case len(rest) == 0:
			return nil, misused("missing argument for option '%s'", arg)
		default:
			*g = append(*g, setting{key, rest[0]})
			rest = rest[1:]
		}
		break
	}
	return rest, nil
}
