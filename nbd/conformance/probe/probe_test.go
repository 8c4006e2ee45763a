package probe

import (
	"encoding/hex"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/nbd/wire"
)

// bytesOf reads hexadecimal digits, among which spaces may be.
func bytesOf(t *testing.T, digits string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// speak returns a Conn to a server that takes whatever comes, says so many bytes, and hangs up.
func speak(t *testing.T, digits string) *Conn {
	t.Helper()
	b := bytesOf(t, digits)
	here, there := net.Pipe()
	go func() {
		buf := make([]byte, 1024)
		for {
			if _, err := there.Read(buf); err != nil {
				return
			}
		}
	}()
	go func() {
		there.Write(b)
		there.Close()
	}()
	here.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { here.Close() })
	c := New(here)
	c.Size, c.cookie = 1<<20, 0
	return c
}

// judge expects a violation whose text holds some words, or none.
func judge(t *testing.T, name string, err error, words string) {
	t.Helper()
	var v *Violation
	switch {
	case words == "" && err != nil:
		t.Errorf("%s: %v", name, err)
	case words != "" && (!errors.As(err, &v) || !strings.Contains(v.Text, words)):
		t.Errorf("%s: %v, want a violation with %q", name, err, words)
	}
}

func TestGreet(t *testing.T) {
	for _, x := range []struct{ name, said, words string }{
		{"fixed newstyle", "4e42444d41474943 49484156454f5054 0003", ""},
		{"oldstyle", "4e42444d41474943 0000420281861253", ""},
		{"another protocol", "5353482d322e302d 4f70656e53534820", "instead of NBDMAGIC"},
		{"half", "4e42444d41474943 0000000000000000", "instead of IHAVEOPT"},
	} {
		_, err := speak(t, x.said).Greet()
		judge(t, x.name, err, x.words)
	}
}

const (
	replyMagic = "0003e889045565a9"
	ack        = replyMagic + "00000003 00000001 00000000"
)

func TestReplies(t *testing.T) {
	for _, x := range []struct {
		name   string
		option wire.Option
		said   string
		words  string
	}{
		{"list", 3, replyMagic + "00000003 00000002 00000009 00000003 616263 6465" + ack, ""},
		{"no magic", 3, "0003e889045565aa 00000003 00000001 00000000", "instead of its magic number"},
		{"another option", 3, replyMagic + "00000007 00000001 00000000", "says that it answers GO"},
		{"a huge reply", 3, replyMagic + "00000003 00000002 7fffffff", "2147483647 bytes long"},
		{"ACK with data", 3, replyMagic + "00000003 00000001 00000001 00", "carries 1 bytes"},
		{"a name that is longer", 3, replyMagic + "00000003 00000002 00000006 00000003 6162", "holds a name that is longer"},
		{"a name with NUL", 3, replyMagic + "00000003 00000002 00000006 00000002 6100", "holds a NUL"},
		{"a name that is no UTF-8", 3, replyMagic + "00000003 00000002 00000005 00000001 ff", "is not UTF-8"},
		{"an unknown reply", 3, replyMagic + "00000003 00000063 00000000", "is answered with reply 0x63"},
		{"another option's reply", 3, replyMagic + "00000003 00000004 00000000", "is answered with META_CONTEXT"},
		{"a refusal", 3, replyMagic + "00000003 80000002 00000002 6e6f", ""},
		{"a refusal in no language", 3, replyMagic + "00000003 80000002 00000001 fe", "is not UTF-8"},
		{"a short export", 7, replyMagic + "00000007 00000003 0000000b 0000 000000000000100000", "11 bytes long instead of 12"},
		{"short block sizes", 7, replyMagic + "00000007 00000003 00000006 0003 00000001", "6 bytes long instead of 14"},
		{"an empty INFO", 7, replyMagic + "00000007 00000003 00000001 00", "1 bytes long"},
		{"a context without namespace", 10, replyMagic + "0000000a 00000004 00000008 00000001 62617365", "without a namespace"},
	} {
		_, err := speak(t, x.said).Option(x.option, nil)
		judge(t, x.name, err, x.words)
	}
}

func TestAnswers(t *testing.T) {
	const (
		c1     = "0000000000000001" // the cookie of the request
		simple = "67446698"
		chunk  = "668e33ef"
		ext    = "6e8a278c"
	)
	read := wire.Request{Type: wire.CmdRead, Offset: 0x1000, Length: 4, Cookie: 1}
	df := read
	df.Flags = wire.FlagDF
	status := wire.Request{Type: wire.CmdBlockStatus, Offset: 0x1000, Length: 0x1000, Cookie: 1}
	one := status
	one.Flags = wire.FlagReqOne
	flush := wire.Request{Type: wire.CmdFlush, Cookie: 1}
	for _, x := range []struct {
		name  string
		mode  Mode
		r     wire.Request
		said  string
		words string
	}{
		{"a simple read", Simple, read, simple + "00000000" + c1 + "61626364", ""},
		{"a simple error", Simple, read, simple + "00000016" + c1, ""},
		{"an error number that there is not", Simple, read, simple + "0000001f" + c1, "which the protocol does not have"},
		{"another cookie", Simple, read, simple + "00000000 0000000000000002 61626364", "of no request in flight"},
		{"no reply", Simple, read, "25609513 00000000" + c1, "not one of simple mode"},
		{"chunks that were not agreed on", Simple, flush, chunk + "0001 0000" + c1 + "00000000", "not one of simple mode"},
		{"a simple reply to a structured read", Structured, read, simple + "00000000" + c1 + "61626364", "although structured replies were agreed on"},
		{"a simple error to a structured flush", Structured, flush, simple + "00000016" + c1, ""},
		{"one chunk", Structured, read, chunk + "0001 0001" + c1 + "0000000c 0000000000001000 61626364", ""},
		{"two chunks and a hole", Structured, read, chunk + "0000 0001" + c1 + "00000009 0000000000001003 64" + chunk + "0000 0002" + c1 + "0000000c 0000000000001000 00000003" +
			chunk + "0001 0000" + c1 + "00000000", ""},
		{"chunks that overlap", Structured, read, chunk + "0000 0001" + c1 + "0000000a 0000000000001000 6162" + chunk + "0001 0001" + c1 + "0000000b 0000000000001001 626364", "chunks overlap"},
		{"a chunk before the range", Structured, read, chunk + "0001 0001" + c1 + "0000000c 0000000000000fff 61626364", "did not ask for"},
		{"a chunk beyond the range", Structured, read, chunk + "0001 0001" + c1 + "0000000d 0000000000001000 6162636465", "did not ask for"},
		{"a hole beyond the range", Structured, read, chunk + "0001 0002" + c1 + "0000000c 0000000000001001 00000004", "did not ask for"},
		{"an empty hole", Structured, read, chunk + "0001 0002" + c1 + "0000000c 0000000000001000 00000000", "describes no byte"},
		{"too little", Structured, read, chunk + "0001 0001" + c1 + "0000000b 0000000000001000 616263", "succeeds with chunks of 3 bytes"},
		{"nothing", Structured, read, chunk + "0001 0000" + c1 + "00000000", "succeeds with chunks of 0 bytes"},
		{"two chunks with DF", Structured, df, chunk + "0000 0001" + c1 + "0000000a 0000000000001000 6162" + chunk + "0001 0001" + c1 + "0000000a 0000000000001002 6364", "with DF"},
		{"NONE that is not the last", Structured, read, chunk + "0000 0000" + c1 + "00000000", "type NONE"},
		{"an unknown chunk", Structured, read, chunk + "0001 0003" + c1 + "00000000", "has the type"},
		{"an unknown flag", Structured, read, chunk + "0003 0000" + c1 + "00000000", "has the flags 0x3"},
		{"an error without number", Structured, read, chunk + "0001 8001" + c1 + "00000006 00000000 0000", "error number 0"},
		{"an error", Structured, read, chunk + "0001 8001" + c1 + "00000008 00000005 0002 6e6f", ""},
		{"a message that does not fit", Structured, read, chunk + "0001 8001" + c1 + "00000008 00000005 0003 6e6f", "that does not fit"},
		{"an error elsewhere", Structured, read, chunk + "0001 8002" + c1 + "0000000e 00000005 0000 0000000000001004", "not in the request"},
		{"a huge chunk", Structured, read, chunk + "0001 0001" + c1 + "7fffffff", "payload of 2147483647 bytes"},
		{"data for a flush", Structured, flush, chunk + "0001 0001" + c1 + "00000009 0000000000000000 61", "FLUSH is answered with OFFSET_DATA"},
		{"a status", Structured, status, chunk + "0001 0005" + c1 + "00000014 00000007 00000800 00000000 00000900 00000003", ""},
		{"a status of another context", Structured, status, chunk + "0001 0005" + c1 + "0000000c 00000008 00001000 00000000", "was not asked for"},
		{"no status", Structured, status, chunk + "0001 0000" + c1 + "00000000", "answered for 0 contexts"},
		{"two of one", Structured, status, chunk + "0000 0005" + c1 + "0000000c 00000007 00001000 00000000" + chunk + "0001 0005" + c1 + "0000000c 00000007 00001000 00000000", "answered twice"},
		{"an empty extent", Structured, status, chunk + "0001 0005" + c1 + "0000000c 00000007 00000000 00000000", "is empty"},
		{"an extent too many", Structured, status, chunk + "0001 0005" + c1 + "00000014 00000007 00001000 00000000 00001000 00000003", "beyond what was asked for"},
		{"an extent past the end", Structured, status, chunk + "0001 0005" + c1 + "0000000c 00000007 00100000 00000000", "beyond the end of the export"},
		{"two extents with REQ_ONE", Structured, one, chunk + "0001 0005" + c1 + "00000014 00000007 00000800 00000000 00000800 00000003", "with REQ_ONE"},
		{"a long extent with REQ_ONE", Structured, one, chunk + "0001 0005" + c1 + "0000000c 00000007 00001001 00000000", "with REQ_ONE"},
		{"half an extent", Structured, status, chunk + "0001 0005" + c1 + "00000008 00000007 00001000", "has 8 bytes"},
		{"a wide status that was not agreed on", Structured, status, chunk + "0001 0006" + c1 + "00000018 00000007 00000001 0000000000001000 0000000000000000", "in structured mode"},
		{"an extended read", Extended, read, ext + "0001 0001" + c1 + "0000000000001000 000000000000000c 0000000000001000 61626364", ""},
		{"another offset", Extended, read, ext + "0001 0001" + c1 + "0000000000001001 000000000000000c 0000000000001000 61626364", "repeats the offset"},
		{"a simple reply in extended mode", Extended, flush, simple + "00000000" + c1, "not one of extended mode"},
		{"a wide status", Extended, status, ext + "0001 0006" + c1 + "0000000000001000 0000000000000018 00000007 00000001 0000000000001000 0000000000000003", ""},
		{"a wrong count", Extended, status, ext + "0001 0006" + c1 + "0000000000001000 0000000000000018 00000007 00000002 0000000000001000 0000000000000003", "says that it holds 2 extents"},
		{"a narrow status", Extended, status, ext + "0001 0005" + c1 + "0000000000001000 000000000000000c 00000007 00001000 00000003", "in extended mode"},
	} {
		c := speak(t, x.said)
		c.Mode = x.mode
		c.Contexts = []Context{{ID: 7, Name: wire.BaseAllocation}}
		_, err := c.Do(x.r, nil)
		judge(t, x.name, err, x.words)
	}
}

// TestCut makes sure that an answer that is cut off anywhere is the end of the connection, and no violation.
func TestCut(t *testing.T) {
	const whole = "668e33ef 0001 0001 0000000000000001 0000000c 0000000000001000 61626364"
	for n := range len(bytesOf(t, whole)) {
		c := speak(t, strings.ReplaceAll(whole, " ", "")[:2*n])
		c.Mode = Structured
		if _, err := c.Do(wire.Request{Type: wire.CmdRead, Offset: 0x1000, Length: 4, Cookie: 1}, nil); !errors.Is(err, ErrDropped) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

// FuzzAnswer makes sure that whatever a server says is an answer or an error.
func FuzzAnswer(f *testing.F) {
	f.Add(1, uint16(0), []byte("\x66\x8e\x33\xef\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x10\x00abcd"))
	f.Add(2, uint16(7), []byte("\x6e\x8a\x27\x8c\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00\x00\x01"))
	f.Add(0, uint16(0), []byte("\x67\x44\x66\x98\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01abcd"))
	f.Fuzz(func(t *testing.T, mode int, cmd uint16, said []byte) {
		c := speak(t, hex.EncodeToString(said))
		c.Mode = Mode(uint(mode) % 3)
		c.Contexts = []Context{{ID: 7, Name: wire.BaseAllocation}}
		a, err := c.Do(wire.Request{Type: wire.Command(cmd % 9), Offset: 0x1000, Length: 4, Cookie: 1}, nil)
		if err == nil && a.Errno == wire.OK && a.Request.Type == wire.CmdRead && len(a.Data) != 4 {
			t.Errorf("a READ of 4 bytes succeeds with %d", len(a.Data))
		}
	})
}

// FuzzOption makes sure that whatever a server replies to an option is replies or an error.
func FuzzOption(f *testing.F) {
	f.Add(uint32(3), []byte("\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x03\x00\x00\x00\x01\x00\x00\x00\x00"))
	f.Add(uint32(7), []byte("\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x03\x00\x00\x00\x0c"))
	f.Fuzz(func(t *testing.T, o uint32, said []byte) {
		replies, err := speak(t, hex.EncodeToString(said)).Option(wire.Option(o), nil)
		if err == nil && len(replies) == 0 {
			t.Error("no reply, and no error")
		}
	})
}
