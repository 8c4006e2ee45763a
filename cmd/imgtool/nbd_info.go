package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// exitNo is the exit code of a question whose answer is no.
const exitNo = 2

// nbdInfo is one run of nbd info.
type nbdInfo struct {
	*app
	at nbdTarget

	size, uri, list       bool
	is, isnt, can, cannot string
	mapped                string // the context to map; "" for none
	totals                bool
	content, noContent    bool
	color                 string
}

func newNBDInfo(a *app) *cobra.Command {
	v := &nbdInfo{app: a}
	c := &cobra.Command{
		Use:   "info [flags] URI | [ PROGRAM ARG... ]",
		Short: "Show what an NBD server tells of itself and of an export",
		Long: `Show what an NBD server tells of itself and of an export, in the form of nbdinfo, text and JSON. What Debian's nbdinfo does not know is
told besides: extended packets and can_block_status_payload, in JSON always, in text where the server has them. content is the image format, partition
table or file system that the export holds, as we name it, and not what the program file says; --no-content reads nothing of the export.

--is and --can print nothing. They know read-only, rotational, tls; cache, connect, df, fast-zero, flush, fua, multi-conn, read, trim, write, zero,
structured-reply, extended-headers and block-status-payload. --isnt and --cannot ask the opposite.

` + programHelp + `

Exit codes: 0 done, or the answer is yes; 1 failed, or the command line is wrong; 2 the answer is no.`,
		Example: `  imgtool nbd info nbd://server/export
  imgtool nbd info --json "nbd+unix:///?socket=/run/nbd.sock"
  imgtool nbd info --can trim nbd://server/ && imgtool nbd discard nbd://server/
  imgtool nbd info --map [ nbdkit memory 1G ]`,
		Args: func(c *cobra.Command, args []string) error { return notNo(exactly(1)(c, args)) },
		RunE: func(c *cobra.Command, args []string) error {
			err := v.parse(c, args)
			if err == nil {
				err = v.run(c.Context())
			}
			return notNo(err)
		},
	}
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return notNo(usageOf(c, err)) })
	f := c.Flags()
	v.at.flags(c)
	f.BoolVar(&v.size, "size", false, "print the size in bytes, and nothing else")
	f.BoolVar(&v.uri, "uri", false, "print the URI, and nothing else")
	f.StringVar(&v.is, "is", "", "answer by the exit code")
	f.StringVar(&v.isnt, "isnt", "", "the opposite of --is")
	f.StringVar(&v.can, "can", "", "answer by the exit code")
	f.StringVar(&v.cannot, "cannot", "", "the opposite of --can")
	f.BoolVarP(&v.list, "list", "L", false, "show all exports that the server lists, whichever the URI names")
	f.StringVar(&v.mapped, "map", "", "show a map of the export instead, see imgtool nbd map")
	f.Lookup("map").NoOptDefVal = wire.BaseAllocation
	f.BoolVar(&v.totals, "totals", false, "with --map: add up what is of a kind")
	f.BoolVar(&v.content, "content", false, "with --list: look at what the exports hold as well")
	f.BoolVar(&v.noContent, "no-content", false, "do not look at what the export holds")
	colorFlag(c, &v.color)
	return c
}

// notNo keeps an error from ending the program with the exit code that means no.
func notNo(err error) error {
	if err != nil && exitCode(err) == exitNo && !errors.As(err, new(*codeError)) {
		return &codeError{exitFailed, err}
	}
	return err
}

// parse looks at the command line.
func (v *nbdInfo) parse(c *cobra.Command, args []string) error {
	var modes []string
	for _, name := range []string{"size", "uri", "is", "isnt", "can", "cannot", "list", "map"} {
		if c.Flags().Changed(name) {
			modes = append(modes, "--"+name)
		}
	}
	switch {
	case len(modes) > 1:
		return usagef("%s: only one of them at a time", strings.Join(modes, " and "))
	case v.content && v.noContent:
		return usagef("--content and --no-content: only one of them at a time")
	case v.totals && v.mapped == "":
		return usagef("--totals: only with --map")
	}
	return v.at.parse(args[0])
}

func (v *nbdInfo) run(ctx context.Context) error {
	for _, q := range []struct {
		word string
		no   bool
	}{{v.is, false}, {v.can, false}, {v.isnt, true}, {v.cannot, true}} {
		if q.word != "" {
			return v.answer(ctx, q.word, q.no)
		}
	}
	switch {
	case v.list:
		return (&nbdList{app: v.app, at: v.at, content: v.content, color: v.color}).run(ctx)
	case v.mapped != "":
		return (&nbdMap{app: v.app, at: v.at, contexts: []string{v.mapped}, totals: v.totals, length: -1, color: v.color}).run(ctx)
	case v.uri:
		return v.printURI()
	}
	s, err := v.at.connect(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	if v.size {
		e, err := s.used(v.at.export)
		if err == nil {
			v.printf("%d", e.Size)
		}
		return err
	}
	return v.show(ctx, s)
}

func (v *nbdInfo) printURI() error {
	uri := v.at.uriOf(v.at.export)
	if uri == "" {
		return usagef("--uri: a program in brackets has none")
	}
	v.printf("%s", shown(uri))
	return nil
}

// show prints what the server tells of the export.
func (v *nbdInfo) show(ctx context.Context, s *nbdSession) error {
	p, err := v.painter(v.color)
	if err != nil {
		return err
	}
	info := newServerInfo(s.Conn)
	e, err := s.describe(ctx, v.app, v.at.export, !v.noContent)
	if err != nil {
		return err
	}
	if info.Exports = append(info.Exports, e); v.json {
		return v.printJSON(info)
	}
	printServer(p, info)
	printExport(p, e, info.Extended)
	return nil
}

// answer ends with the code that answers a question.
func (v *nbdInfo) answer(ctx context.Context, word string, opposite bool) error {
	name := strings.NewReplacer("-", "", "_", "", " ", "").Replace(strings.ToLower(word))
	i := slices.IndexFunc(questions, func(q question) bool { return slices.Contains(q.names, name) })
	if i < 0 {
		return usagef("%q is nothing that can be asked; imgtool nbd info --help lists what can", word)
	}
	s, err := v.at.connect(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	e, err := s.used(v.at.export)
	if err != nil {
		return err
	}
	if questions[i].answer(s.Conn, e) == opposite {
		return &codeError{exitNo, nil}
	}
	return nil
}

// question is what --is and --can ask.
type question struct {
	names  []string // in lower case, without what parts the words
	answer func(c *client.Conn, e client.ExportInfo) bool
}

// questions lists them all.
var questions = []question{
	{[]string{"connect", "read"}, func(*client.Conn, client.ExportInfo) bool { return true }},
	{[]string{"tls"}, func(c *client.Conn, _ client.ExportInfo) bool { return c.Secure() }},
	{[]string{"structuredreply", "structuredreplies", "structured", "sr"}, func(c *client.Conn, _ client.ExportInfo) bool { return c.Structured() }},
	{[]string{"extendedheaders", "extendedheader", "extended", "eh"}, func(c *client.Conn, _ client.ExportInfo) bool { return c.Extended() }},
	{[]string{"write"}, func(_ *client.Conn, e client.ExportInfo) bool { return e.Flags&wire.ReadOnly == 0 }},
	flagged(wire.ReadOnly, "readonly"),
	flagged(wire.Rotational, "rotational"),
	flagged(wire.SendCache, "cache"),
	flagged(wire.SendDF, "df"),
	flagged(wire.SendFastZero, "fastzero"),
	flagged(wire.SendFlush, "flush"),
	flagged(wire.SendFUA, "fua"),
	flagged(wire.CanMultiConn, "multiconn"),
	flagged(wire.SendTrim, "trim"),
	flagged(wire.SendWriteZeroes, "zero"),
	flagged(wire.BlockStatusPayload, "blockstatuspayload"),
}

// flagged returns a question that a transmission flag answers.
func flagged(f wire.TransmissionFlags, name string) question {
	return question{[]string{name}, func(_ *client.Conn, e client.ExportInfo) bool { return e.Flags&f != 0 }}
}
