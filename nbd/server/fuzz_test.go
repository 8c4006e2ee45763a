package server_test

import (
	"context"
	"testing"

	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

// fuzzed plays input to a new server and checks what it leaves behind.
func fuzzed(t *testing.T, input []byte) {
	s := server.New(server.Config{
		Open: func(context.Context, server.Client) (*server.Export, error) {
			return &server.Export{Device: mappedDevice(), Depth: true, Bitmaps: []string{"b"}}, nil
		},
		List:   list("", "other"),
		Memory: 1 << 20,
	})
	play(s, input)
	if st := s.Stats(); st.Active != 0 || st.InFlight != 0 || st.Memory != 0 {
		t.Errorf("%+v", st)
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add(session()[4:])
	f.Add(optionBytes(wire.OptExportName, nil))
	f.Add(optionBytes(wire.OptInfo, infoData("x", wire.InfoName, wire.InfoBlockSize)))
	f.Add(optionBytes(wire.OptListMetaContext, metaData("", "base:", "qemu:")))
	f.Fuzz(func(t *testing.T, options []byte) {
		fuzzed(t, append([]byte{0, 0, 0, 3}, options...))
	})
}

func FuzzTransmission(f *testing.F) {
	s := session()
	for mode := range byte(3) {
		f.Add(mode, s[len(s)-500:])
		p := &peer{extended: mode == 2}
		f.Add(mode, p.reqBytes(wire.Request{Type: wire.CmdRead, Flags: df, Offset: 1, Length: 1 << 20}))
		f.Add(mode, append(p.reqBytes(wire.Request{Type: wire.CmdWrite, Flags: pay, Offset: 1, Length: 3}), "abc"...))
		f.Add(mode, p.reqBytes(wire.Request{Type: wire.CmdBlockStatus, Flags: reqOne, Length: 1 << 20}))
		f.Add(mode, p.reqBytes(wire.Request{Type: wire.CmdWriteZeroes, Flags: noHole, Offset: mib, Length: 7 * mib}))
	}
	f.Fuzz(func(t *testing.T, mode byte, requests []byte) {
		input := []byte{0, 0, 0, 3}
		switch mode % 3 {
		case 1:
			input = append(input, optionBytes(wire.OptStructuredReply, nil)...)
		case 2:
			input = append(input, optionBytes(wire.OptExtendedHeaders, nil)...)
		}
		input = append(input, optionBytes(wire.OptSetMetaContext, metaData("", wire.BaseAllocation, wire.DirtyBitmap+"b"))...)
		input = append(input, optionBytes(wire.OptGo, infoData(""))...)
		fuzzed(t, append(input, requests...))
	})
}
