package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// nbdTarget is what commands take that speak to an NBD server step by step: a URI, or a program in brackets.
type nbdTarget struct {
	uri     nbd.URI
	argv    []string // of the program; nil with a URI
	export  string
	timeout time.Duration
}

// programHelp says what brackets are.
const programHelp = `In place of a URI, [ PROGRAM ARG... ] is a server that is started for the purpose and ended afterwards; it is handed its socket as systemd does
(nbdkit and qemu-nbd know that). The brackets are words of their own.`

// flags adds the flags of t to a command.
func (t *nbdTarget) flags(c *cobra.Command) {
	c.Flags().DurationVar(&t.timeout, "timeout", time.Minute, "how long the server may take until it lets us in; 0 is any time")
}

// parse reads the argument of a command.
func (t *nbdTarget) parse(text string) (err error) {
	if strings.HasPrefix(text, "[") {
		t.argv, err = chain.ProgramWords(text)
		return err
	}
	t.uri, err = nbd.ParseURI(text)
	if err != nil {
		if !strings.Contains(text, ":") {
			err = block.WithHint(err, "a file or another image is served by [ imgtool serve IMAGE ]")
		}
		return &usageError{err: err}
	}
	t.export = t.uri.Export
	return nil
}

// name returns what messages call it.
func (t *nbdTarget) name() string {
	if t.argv != nil {
		return chain.Program(t.argv)
	}
	return t.uri.String()
}

// uriOf returns the URI of an export, "" where there will be none afterwards. As in nbdinfo the port is there always, and so is the slash.
func (t *nbdTarget) uriOf(export string) string {
	if t.argv != nil {
		return ""
	}
	u := t.uri
	u.Export = export
	scheme, rest, _ := strings.Cut(u.String(), "://")
	if u.Network == "unix" {
		return scheme + "://" + rest
	}
	end := strings.IndexAny(rest+"/", "/?")
	host, path := rest[:end], rest[end:]
	if port := fmt.Sprintf(":%d", wire.DefaultPort); strings.HasSuffix(u.Address, port) && !strings.HasSuffix(host, port) {
		host += port
	}
	return scheme + "://" + host + "/" + strings.TrimPrefix(path, "/")
}

// nbdSession is a connection to a server, with all that could be agreed on. Errors of its methods name the server.
type nbdSession struct {
	*client.Conn
	at     *nbdTarget
	user   context.Context // ends when the user does not want any more
	ctx    context.Context // ends as well with the time that the server has until transmission
	stop   context.CancelFunc
	dialer *nbd.Dialer
}

// connect connects to the server, agrees on TLS where the URI says so, and on structured replies and extended headers where the server knows them.
func (t *nbdTarget) connect(ctx context.Context) (*nbdSession, error) {
	s := &nbdSession{at: t, user: ctx, ctx: ctx, stop: func() {}}
	if t.timeout > 0 {
		s.ctx, s.stop = context.WithTimeoutCause(ctx, t.timeout, fmt.Errorf("the server has not let us in within %v", t.timeout))
	}
	if err := s.open(); err != nil {
		s.Close()
		return nil, s.named(err)
	}
	return s, nil
}

func (s *nbdSession) open() (err error) {
	if s.at.argv != nil {
		s.dialer, err = nbd.StartDialer(s.at.argv)
	} else {
		s.dialer, err = nbd.NewDialer(s.at.uri, true)
	}
	if err == nil {
		s.Conn, err = s.dialer.Conn(s.ctx, client.Config{})
	}
	if err != nil || !s.Negotiating() || s.Protocol() != "newstyle-fixed" {
		return err
	}
	err = s.RequestExtendedHeaders(s.ctx)
	if isRefusal(err) {
		err = s.RequestStructuredReplies(s.ctx)
	}
	if isRefusal(err) {
		err = nil
	}
	return s.dialer.Advise(err)
}

// partingTime is how long a server may take to hear that we leave.
const partingTime = time.Second

// Close ends the connection, and the program.
func (s *nbdSession) Close() {
	s.stop()
	if s.Conn != nil {
		ctx, stop := context.WithTimeout(s.user, partingTime)
		defer stop()
		if s.Negotiating() {
			_ = s.Abort(ctx) // a server that does not hear it sees the connection end
		} else {
			_ = s.Disconnect(ctx)
		}
		s.Conn.Close()
	}
	if s.dialer != nil {
		_ = s.dialer.Close() // with what code a program ends matters to nobody
	}
}

// named returns err with the name of the server.
func (s *nbdSession) named(err error) error {
	if cause := context.Cause(s.ctx); cause != nil && (errors.Is(err, cause) || errors.Is(err, os.ErrDeadlineExceeded)) {
		err = cause
	}
	var no *client.OptionError
	if errors.As(err, &no) {
		switch asked := no.Option == wire.OptInfo || no.Option == wire.OptGo; {
		case no.Reply == wire.RepErrTLSReqd:
			err = block.WithHint(err, "the server wants encryption: write nbds in place of nbd")
		case asked && (no.Reply == wire.RepErrUnknown || no.Reply == wire.RepErrPolicy):
			err = block.WithHint(err, "imgtool nbd list shows the exports of a server")
		}
	}
	return nameFile(s.at.name(), err)
}

// isRefusal reports whether the server has refused an option, and goes on.
func isRefusal(err error) bool { return errors.As(err, new(*client.OptionError)) }

// export returns what the server tells of an export: by INFO, or where that is refused, by beginning transmission.
func (s *nbdSession) export(export string) (client.ExportInfo, error) {
	if s.Negotiating() && s.Extended() { // there are servers that know payloads of BLOCK_STATUS only where there is something to choose from
		if _, err := s.SetMetaContexts(s.ctx, export, wire.BaseAllocation); err != nil && !isRefusal(err) {
			return client.ExportInfo{}, s.named(err)
		}
	}
	if s.Negotiating() && s.Protocol() == "newstyle-fixed" {
		e, err := s.Info(s.ctx, export)
		if !isRefusal(err) {
			return e, s.named(err)
		}
	}
	return s.begin(export)
}

// used is export for who uses it: there are servers of which only GO tells the size.
func (s *nbdSession) used(export string) (client.ExportInfo, error) {
	if _, err := s.export(export); err != nil {
		return client.ExportInfo{}, err
	}
	return s.begin(export)
}

// begin begins transmission, unless that has been done.
func (s *nbdSession) begin(export string) (client.ExportInfo, error) {
	if !s.Negotiating() {
		return s.Export(), nil
	}
	e, err := s.Go(s.ctx, export)
	return e, s.named(err)
}

// describe returns all that the server tells of an export, and with content what it holds, which begins transmission.
func (s *nbdSession) describe(ctx context.Context, a *app, export string, content bool) (exportInfo, error) {
	e, err := s.export(export)
	if err != nil {
		return exportInfo{}, err
	}
	var contexts []shown
	if s.Negotiating() && s.Structured() {
		found, err := s.ListMetaContexts(s.ctx, export)
		switch {
		case err == nil:
			contexts = []shown{}
		case !isRefusal(err):
			return exportInfo{}, s.named(err)
		}
		for _, c := range found {
			contexts = append(contexts, shown(c.Name))
		}
	}
	if content {
		if e, err = s.begin(export); err != nil {
			return exportInfo{}, err
		}
	}
	info := newExportInfo(export, e)
	info.URI, info.Contexts = shown(s.at.uriOf(export)), contexts
	if !content {
		return info, nil
	}
	text, err := contentOf(ctx, newConnDevice(s.Conn), a.registry())
	if ctx.Err() != nil {
		return exportInfo{}, ctx.Err()
	}
	if err != nil { // which the server's answers do not depend on
		a.log().Warn("what the export holds is not known: "+message(err), "server", s.at.name())
	}
	info.Content = shown(text)
	return info, nil
}
