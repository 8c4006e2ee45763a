package client

import (
	"testing"

	"github.com/imgtool/imgtool/nbd/wire"
)

// TestCommandErrorText: what the server says is told with its number, but where it says the same.
func TestCommandErrorText(t *testing.T) {
	for want, e := range map[string]CommandError{
		"nbd: READ: server says: input/output error":                   {Command: wire.CmdRead, Errno: wire.EIO},
		"nbd: READ: server says: cable out (input/output error)":       {Command: wire.CmdRead, Errno: wire.EIO, Text: "cable out"},
		"nbd: WRITE: server says: a.raw: no space left on device":      {Command: wire.CmdWrite, Errno: wire.ENOSPC, Text: "a.raw: no space left on device"},
		"nbd: WRITE: server says: Disk 7: No space left on device (!)": {Command: wire.CmdWrite, Errno: wire.ENOSPC, Text: "Disk 7: No space left on device (!)"},
	} {
		if got := e.Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
