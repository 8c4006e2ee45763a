package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
)

// formatInfo is a format in JSON.
type formatInfo struct {
	Name       string       `json:"name"`
	Aliases    []string     `json:"aliases"`
	Doc        string       `json:"doc"`
	Extensions []string     `json:"extensions"`
	Read       bool         `json:"read"`   // at any offset
	Stream     bool         `json:"stream"` // from front to back
	Write      bool         `json:"write"`
	Options    []optionInfo `json:"options"`
}

// optionInfo is an option of -o in JSON.
type optionInfo struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Default string `json:"default"`
	Help    string `json:"help"`
}

func newFormats(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "formats",
		Short: "List the formats, layers and sources there are",
		Args:  exactly(0),
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				list := []formatInfo{}
				for _, d := range a.registry() {
					list = append(list, describeFormat(d))
				}
				return a.printJSON(list)
			}
			a.printf("Formats, in the order in which images are tried; r: read, w: written, s: read from a pipe")
			w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
			for _, d := range a.registry() {
				f := describeFormat(d)
				fmt.Fprintf(w, "  %s\t%s\t%s\n", strings.Join(append([]string{f.Name}, f.Aliases...), ", "), f.does(), f.Doc)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			a.printf("\nLayers")
			for _, l := range chain.LayersHelp() {
				a.printf("  %s", l)
			}
			a.printf("\nSources")
			for _, s := range chain.SourcesHelp() {
				a.printf("  %s", s)
			}
			return nil
		},
	}
}

func describeFormat(d formats.Driver) formatInfo {
	return formatInfo{
		Name: d.Name, Aliases: append([]string{}, d.Aliases...), Doc: d.Doc, Extensions: append([]string{}, d.Extensions...),
		Read: d.Open != nil, Stream: d.Decode != nil, Write: d.Create != nil || d.Plan != nil, Options: describeOptions(formats.OptionsHelp(d.Options)),
	}
}

func describeOptions(docs []formats.OptionDoc) []optionInfo {
	list := []optionInfo{}
	for _, o := range docs {
		list = append(list, optionInfo{o.Name, o.Kind, o.Default, o.Help})
	}
	return list
}

// does says in letters what can be done with the format.
func (f formatInfo) does() string {
	s := []byte("---")
	for i, can := range []bool{f.Read, f.Write, f.Stream} {
		if can {
			s[i] = "rws"[i]
		}
	}
	return string(s)
}
