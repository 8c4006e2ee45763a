package server_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

// TestNoNames: a client learns what is wrong with an image, and not where it lies.
func TestNoNames(t *testing.T) {
	hot := errors.New("the motor is hot")
	for _, err := range []error{
		&chain.Error{Name: "/srv/tenant/disk.qcow2", Err: hot},
		fmt.Errorf("zero: %w", &chain.Error{Name: "https://host/disk?signature=1", Err: &chain.Error{Name: "/srv/base.raw", Err: hot}}),
	} {
		_, dial := serve(t, server.Config{Open: fixed(blocktest.NewFaulty(block.NewMemory(1<<20), blocktest.Fault{Err: err}))})
		p := dial().enter("structured", "")
		if a := p.do(wire.Request{Type: wire.CmdRead, Length: 4096}); a.errno != wire.EIO || a.text != hot.Error() {
			t.Errorf("%v: %v %q", err, a.errno, a.text)
		}
	}
}
