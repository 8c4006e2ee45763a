package conformance_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"testing"
	"time"

	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// step is a call of the client, what it has to send to the byte, and what the server answers.
type step struct {
	call       string
	do         func(context.Context, *client.Conn) error
	sends, got string
}

var comment = regexp.MustCompile(`#.*|\s`)

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(comment.ReplaceAllString(text, ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestClientTranscript plays a connection with extended headers and payloads of BLOCK_STATUS that was written down from the specification. No server of
// Debian 12 speaks them.
func TestClientTranscript(t *testing.T) {
	here, there := net.Pipe()
	there.SetDeadline(time.Now().Add(20 * time.Second))
	defer there.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var c *client.Conn
	for _, s := range extendedSteps() {
		ended := make(chan error, 1)
		go func() {
			if s.do != nil {
				ended <- s.do(ctx, c)
				return
			}
			var err error
			c, err = client.New(ctx, here, client.Config{})
			ended <- err
		}()
		if s.do == nil { // the server speaks first
			there.Write(unhex(t, "4e42444d41474943 49484156454f5054 0003"))
		}
		want := unhex(t, s.sends)
		sent := make([]byte, len(want))
		if _, err := io.ReadFull(there, sent); err != nil || !bytes.Equal(sent, want) {
			t.Fatalf("%s sends\n%x, %v; want\n%x", s.call, sent, err, want)
		}
		if got := unhex(t, s.got); len(got) > 0 {
			if _, err := there.Write(got); err != nil {
				t.Fatalf("%s: %v", s.call, err)
			}
		}
		if err := <-ended; err != nil {
			t.Fatalf("%s: %v", s.call, err)
		}
	}
	c.Close()
}

func extendedSteps() []step {
	return []step{
		{"New", nil, "00000003  # fixed newstyle, no zeroes", ""},
		{"RequestExtendedHeaders", func(ctx context.Context, c *client.Conn) error { return c.RequestExtendedHeaders(ctx) },
			"49484156454f5054 0000000b 00000000",
			"0003e889045565a9 0000000b 00000001 00000000"},
		{"SetMetaContexts", func(ctx context.Context, c *client.Conn) error {
			all, err := c.SetMetaContexts(ctx, "d", "a:", "x:y")
			if len(all) != 2 || all[1] != (client.MetaContext{ID: 9, Name: "x:y"}) {
				return fmt.Errorf("%v, %w", all, err)
			}
			return err
		}, "49484156454f5054 0000000a 00000016 00000001 64 00000002 00000002 613a 00000003 783a79",
			"0003e889045565a9 0000000a 00000004 00000007 00000008 613a62" +
				"0003e889045565a9 0000000a 00000004 00000007 00000009 783a79" +
				"0003e889045565a9 0000000a 00000001 00000000"},
		{"Go", func(ctx context.Context, c *client.Conn) error {
			e, err := c.Go(ctx, "d")
			if e.Size != 1<<40 || e.Flags&wire.BlockStatusPayload == 0 {
				return fmt.Errorf("%+v, %w", e, err)
			}
			return err
		}, "49484156454f5054 00000007 0000000d 00000001 64 0003 0001 0002 0003  # wants name, description and block sizes",
			`0003e889045565a9 00000007 00000003 0000000c 0000 0000010000000000 116d  # 1 TiB; FLUSH, FUA, TRIM, WRITE_ZEROES, several connections, BLOCK_STATUS_PAYLOAD
			0003e889045565a9 00000007 00000001 00000000`},
		{"Write", func(ctx context.Context, c *client.Conn) error {
			return c.Write(ctx, []byte("abc"), 0x1000, wire.FlagFUA)
		},
			"21e41c71 0021 0001 0000000000000001 0000000000001000 0000000000000003 616263  # FUA and PAYLOAD_LEN",
			"6e8a278c 0001 0000 0000000000000001 0000000000001000 0000000000000000  # NONE, DONE"},
		{"Read", func(ctx context.Context, c *client.Conn) error {
			p := []byte("????")
			err := c.Read(ctx, p, 0xfff, 0)
			if string(p) != "\x00abc" {
				return fmt.Errorf("%q, %w", p, err)
			}
			return err
		}, "21e41c71 0000 0000 0000000000000002 0000000000000fff 0000000000000004",
			`6e8a278c 0000 0001 0000000000000002 0000000000000fff 000000000000000b 0000000000001000 616263
			6e8a278c 0001 0002 0000000000000002 0000000000000fff 000000000000000c 0000000000000fff 00000001`},
		{"WriteZeroes of more than 4 GiB", func(ctx context.Context, c *client.Conn) error { return c.WriteZeroes(ctx, 0, 1<<33, wire.FlagNoHole) },
			"21e41c71 0002 0006 0000000000000003 0000000000000000 0000000200000000",
			"6e8a278c 0001 0000 0000000000000003 0000000000000000 0000000000000000"},
		{"BlockStatus", func(ctx context.Context, c *client.Conn) error { return status(ctx, c, nil, "a:b", "x:y") },
			"21e41c71 0000 0007 0000000000000004 0000000000001000 0000000300000000",
			`6e8a278c 0000 0006 0000000000000004 0000000000001000 0000000000000018 00000008 00000001 0000000300000000 ffffffff00000001
			6e8a278c 0001 0006 0000000000000004 0000000000001000 0000000000000018 00000009 00000001 0000000300000000 ffffffff00000001`},
		{"BlockStatus of one context", func(ctx context.Context, c *client.Conn) error { return status(ctx, c, []uint32{9}, "x:y") },
			"21e41c71 0020 0007 0000000000000005 0000000000001000 000000000000000c 0000000300000000 00000009",
			"6e8a278c 0001 0006 0000000000000005 0000000000001000 0000000000000018 00000009 00000001 0000000300000000 ffffffff00000001"},
		{"Trim that fails", func(ctx context.Context, c *client.Conn) error {
			err := c.Trim(ctx, 0x1000, 1<<33, 0)
			var e *client.CommandError
			if !errors.As(err, &e) || e.Errno != wire.EOVERFLOW || e.Text != "no" || e.Offset != 0x2000 {
				return fmt.Errorf("it returns %w", err)
			}
			return nil
		}, "21e41c71 0000 0004 0000000000000006 0000000000001000 0000000200000000",
			"6e8a278c 0001 8002 0000000000000006 0000000000001000 0000000000000010 0000004b 0002 6e6f 0000000000002000"},
	}
}

// status asks for 12 GiB from 4096 on, and expects of some contexts one extent of that length, with flags of 64 bits.
func status(ctx context.Context, c *client.Conn, ids []uint32, want ...string) error {
	var names []string
	err := c.BlockStatus(ctx, 0x1000, 3<<32, 0, ids, func(m client.MetaContext, e []client.Extent) {
		if len(e) == 1 && e[0] == (client.Extent{Length: 3 << 32, Flags: 0xffffffff00000001}) {
			names = append(names, m.Name)
		}
	})
	if fmt.Sprint(names) != fmt.Sprint(want) {
		return fmt.Errorf("status of %q, want %q; %w", names, want, err)
	}
	return err
}
