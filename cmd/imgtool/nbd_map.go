package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// nbdMap is one run of nbd map.
type nbdMap struct {
	*app
	at       nbdTarget
	contexts []string
	all      bool
	totals   bool
	offset   size
	length   size // -1 for all
	color    string

	start, end int64 // of what is shown
	p          painter
}

func newNBDMap(a *app) *cobra.Command {
	v := &nbdMap{app: a, length: -1}
	c := &cobra.Command{
		Use:   "map [flags] URI | [ PROGRAM ARG... ]",
		Short: "Show a map of an export, as the server tells it",
		Long: `Show a map of an export as the server tells it, in the form of nbdinfo --map: offset, length, number, and for contexts that are known what it
means; neighbours of the same kind are joined. With several contexts there is a map for each, under its name.

` + programHelp + `

Exit codes: 0 done, 1 failed, 2 the command line is wrong.`,
		Example: `  imgtool nbd map nbd://server/export
  imgtool nbd map --totals --all nbd://server/export
  imgtool nbd map --offset 1G --length 64M --context qemu:dirty-bitmap:b0 "nbd+unix:///?socket=/run/nbd.sock"`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := v.at.parse(args[0]); err != nil {
				return err
			}
			return v.run(c.Context())
		},
	}
	v.at.flags(c)
	f := c.Flags()
	f.StringArrayVarP(&v.contexts, "context", "x", nil, "which map to show, may be given several times (default "+wire.BaseAllocation+")")
	f.BoolVar(&v.all, "all", false, "show the maps of all contexts that the server offers")
	f.BoolVar(&v.totals, "totals", false, "add up what is of a kind")
	f.VarP(&v.offset, "offset", "o", "where to begin")
	f.VarP(&v.length, "length", "l", "how many bytes to describe at most")
	f.Lookup("length").DefValue = ""
	colorFlag(c, &v.color)
	return c
}

func (v *nbdMap) run(ctx context.Context) (err error) {
	if v.all && len(v.contexts) > 0 {
		return usagef("--all and --context: only one of them at a time")
	}
	if v.p, err = v.painter(v.color); err != nil {
		return err
	}
	s, err := v.at.connect(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	names := v.contexts
	if len(names) == 0 && !v.all {
		names = []string{wire.BaseAllocation}
	}
	contexts, err := s.selectContexts(v.at.export, names)
	if err != nil {
		return err
	}
	e, err := s.begin(v.at.export)
	if err != nil {
		return err
	}
	v.start, v.end = int64(v.offset), e.Size
	if v.start > v.end {
		return usagef("offset %d is past the end, which is at %d", v.start, v.end)
	}
	if n := int64(v.length); n >= 0 && n < v.end-v.start {
		v.end = v.start + n
	}
	if len(names) == 1 {
		return s.named(v.print(ctx, s.Conn, contexts[0], ""))
	}
	return s.named(v.printAll(ctx, s.Conn, contexts))
}

// printAll prints several maps, each under its name.
func (v *nbdMap) printAll(ctx context.Context, c *client.Conn, contexts []client.MetaContext) error {
	before := "[\n"
	for _, m := range contexts {
		if v.json {
			fmt.Fprintf(v.out, "%s{ \"context\": %s, \"map\": ", before, shown(m.Name).quoted())
			before = " },\n"
		} else {
			v.p.printf(colorBold, "%s:", shown(m.Name))
		}
		if err := v.print(ctx, c, m, "\t"); err != nil {
			return err
		}
	}
	if v.json {
		v.printf(" }\n]")
	}
	return nil
}

// print prints one map, or its totals. indent stands before lines for people.
func (v *nbdMap) print(ctx context.Context, c *client.Conn, m client.MetaContext, indent string) error {
	if v.totals {
		return v.printTotals(ctx, c, m, indent)
	}
	list := jsonList{w: v.out}
	for e, err := range statuses(ctx, c, m, v.start, v.end) {
		if err != nil {
			return err
		}
		word, color := meaning(m.Name, e.flags)
		if v.json {
			list.add(mapLine{e.off, e.n, e.flags, word})
			continue
		}
		v.p.printf(color, "%s%s", indent, withWord(fmt.Sprintf("%10d  %10d  %3d", e.off, e.n, e.flags), "  ", word))
	}
	if v.json {
		list.end()
	}
	return nil
}

// maxKinds bounds the kinds of extents that are added up: a server can send any number.
const maxKinds = 1 << 16

// printTotals prints how much there is of every kind.
func (v *nbdMap) printTotals(ctx context.Context, c *client.Conn, m client.MetaContext, indent string) error {
	sums := map[uint64]int64{}
	for e, err := range statuses(ctx, c, m, v.start, v.end) {
		if err != nil {
			return err
		}
		if sums[e.flags] += e.n; len(sums) > maxKinds {
			return fmt.Errorf("context %s: there are extents of more than %d kinds", shown(m.Name), maxKinds)
		}
	}
	list := jsonList{w: v.out}
	for _, flags := range slices.Sorted(maps.Keys(sums)) {
		n := sums[flags]
		percent := 100 * float64(n) / float64(v.end-v.start)
		word, color := meaning(m.Name, flags)
		if v.json {
			list.add(mapTotal{n, json.Number(strconv.FormatFloat(percent, 'g', 6, 64)), flags, word})
			continue
		}
		v.p.printf(color, "%s%s", indent, withWord(fmt.Sprintf("%10d %5.1f%% %3d", n, percent, flags), " ", word))
	}
	if v.json {
		list.end()
	}
	return nil
}

// withWord puts a word behind a line, where there is one.
func withWord(line, space, word string) string {
	if word == "" {
		return line
	}
	return line + space + word
}

// mapLine is an extent in JSON, with the names that nbdinfo has.
type mapLine struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Type   uint64 `json:"type"`
	Word   string `json:"description,omitempty"`
}

// mapTotal is what there is of a kind in JSON, with the names that nbdinfo has.
type mapTotal struct {
	Size    int64       `json:"size"`
	Percent json.Number `json:"percent"`
	Type    uint64      `json:"type"`
	Word    string      `json:"description,omitempty"`
}

// jsonList prints a list whose items come one after the other, each in a line. What goes wrong with w is told by flush.
type jsonList struct {
	w     *bufio.Writer
	begun bool
}

// add prints an item.
func (l *jsonList) add(item any) {
	before := "[\n"
	if l.begun {
		before = ",\n"
	}
	l.begun = true
	line, err := json.Marshal(item)
	if err != nil {
		panic("imgtool: " + err.Error()) // of numbers and words
	}
	fmt.Fprintf(l.w, "%s%s", before, line)
}

// end prints what stands behind the last item.
func (l *jsonList) end() {
	if !l.begun {
		l.w.WriteString("[")
	}
	l.w.WriteString("\n]\n")
}
