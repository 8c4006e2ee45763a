package main

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/imgtool/imgtool/nbd/wire"
)

// evil is what a server would say to a terminal.
const evil = "a\x1b]0;owned\x07\x1b[2J\r\n\u202eb\u009b31m\x7f\xff"

// evilServer serves NBD clients, and puts evil into every text that there is a place for. Options in refused it refuses, with that text.
type evilServer struct {
	refused map[wire.Option]wire.Reply
}

// listen serves until the test ends, and returns the URI.
func (s evilServer) listen(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "imgtool") // the path of a socket has to be short
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		os.RemoveAll(dir)
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				s.serve(c)
			}()
		}
	}()
	return "nbd+unix:///?socket=" + filepath.Join(dir, "s")
}

func (s evilServer) serve(c net.Conn) {
	be := binary.BigEndian
	greeting := be.AppendUint64(be.AppendUint64(nil, wire.InitMagic), wire.OptionMagic)
	_, _ = c.Write(be.AppendUint16(greeting, uint16(wire.FixedNewstyle|wire.NoZeroes))) // who has left does not answer either
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		return
	}
	text := func(s string) []byte { return append(be.AppendUint32(nil, uint32(len(s))), s...) }
	for {
		b := make([]byte, wire.OptionHeaderSize)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		h, _ := wire.ParseOptionHeader(b)
		if _, err := io.CopyN(io.Discard, c, int64(h.Length)); err != nil {
			return
		}
		reply := func(r wire.Reply, data []byte) {
			b := make([]byte, wire.ReplyHeaderSize)
			wire.ReplyHeader{Option: h.Option, Type: r, Length: uint32(len(data))}.Put(b)
			_, _ = c.Write(append(b, data...))
		}
		if r, ok := s.refused[h.Option]; ok {
			reply(r, []byte(evil))
			continue
		}
		switch h.Option {
		case wire.OptList:
			reply(wire.RepServer, append(text(evil), evil...))
		case wire.OptInfo, wire.OptGo:
			flags := wire.HasFlags | wire.SendDF
			reply(wire.RepInfo, be.AppendUint16(be.AppendUint64(be.AppendUint16(nil, uint16(wire.InfoExport)), 1<<20), uint16(flags)))
			reply(wire.RepInfo, append(be.AppendUint16(nil, uint16(wire.InfoName)), evil...))
			reply(wire.RepInfo, append(be.AppendUint16(nil, uint16(wire.InfoDescription)), evil...))
		case wire.OptListMetaContext, wire.OptSetMetaContext:
			reply(wire.RepMetaContext, append(be.AppendUint32(nil, 7), evil...))
		case wire.OptExtendedHeaders:
			reply(wire.RepErrUnsup, []byte(evil))
			continue
		}
		reply(wire.RepAck, nil)
		if h.Option == wire.OptGo {
			s.transmit(c)
			return
		}
	}
}

// transmit answers every request with an error.
func (evilServer) transmit(c net.Conn) {
	be := binary.BigEndian
	for {
		b := make([]byte, wire.RequestSize)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		r, _ := wire.ParseRequest(b)
		message := append(be.AppendUint16(be.AppendUint32(nil, uint32(wire.EIO)), uint16(len(evil))), evil...)
		h := make([]byte, wire.StructuredReplySize)
		wire.Chunk{Flags: wire.ChunkDone, Type: wire.ChunkError, Cookie: r.Cookie, Length: uint64(len(message))}.Put(h)
		_, _ = c.Write(append(h, message...))
	}
}

// TestNBDHostileText lets no text of a server reach the terminal as it is.
func TestNBDHostileText(t *testing.T) {
	plain := evilServer{}.listen(t)
	refusing := map[wire.Option]string{}
	for _, o := range []wire.Option{wire.OptList, wire.OptInfo, wire.OptGo, wire.OptSetMetaContext, wire.OptListMetaContext, wire.OptStructuredReply} {
		refusing[o] = evilServer{map[wire.Option]wire.Reply{o: wire.RepErrPolicy, wire.OptInfo: wire.RepErrPolicy}}.listen(t)
	}
	for _, c := range []struct {
		args string
		uri  string
		code int
	}{
		{"nbd info", plain, exitDone},
		{"nbd info --json", plain, exitDone},
		{"nbd list", plain, exitDone},
		{"nbd list --json", plain, exitDone},
		{"nbd list --content", plain, exitDone},
		{"nbd map", plain, exitFailed},
		{"nbd map --all", plain, exitFailed},
		{"nbd map --all --json", plain, exitFailed},
		{"dump", plain, exitFailed},
		{"nbd list", refusing[wire.OptList], exitFailed},
		{"nbd info", refusing[wire.OptGo], exitFailed},
		{"nbd info --json", refusing[wire.OptGo], exitFailed},
		{"nbd map --all", refusing[wire.OptListMetaContext], exitFailed},
		{"nbd map --all", refusing[wire.OptSetMetaContext], exitFailed},
		{"nbd map", refusing[wire.OptStructuredReply], exitFailed},
		{"nbd zero --yes", plain, exitFailed},
	} {
		cmd := exec.Command("imgtool", append(strings.Fields(c.args), c.uri)...)
		out, _ := cmd.CombinedOutput() // the code is looked at
		if code := cmd.ProcessState.ExitCode(); code != c.code {
			t.Errorf("%s: code %d, %q", c.args, code, out)
		}
		if bad := strings.IndexFunc(string(out), func(r rune) bool {
			return r != '\n' && r != '\t' && (!unicode.IsPrint(r) || r == unicode.ReplacementChar)
		}); bad >= 0 {
			t.Errorf("%s: prints %q at byte %d of %q", c.args, out[bad:min(bad+4, len(out))], bad, out)
		}
	}
}
