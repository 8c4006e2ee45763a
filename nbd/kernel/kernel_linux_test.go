package kernel

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgtool/imgtool/nbd/wire"
)

// fromHex returns the bytes of a dump.
func fromHex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// needLittle skips tests that have bytes of little-endian processors.
func needLittle(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the bytes are those of a little-endian processor")
	}
}

// TestRequests pins the messages for the kernel.
func TestRequests(t *testing.T) {
	needLittle(t)
	a, b, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	fd := func(f *os.File) string { return hex.EncodeToString(attr32(nil, socketFD, uint32(f.Fd()))) }
	c := Config{
		Index: 3, Size: 1<<30 + 100, Block: 512, Flags: wire.HasFlags | wire.CanMultiConn | wire.SendFlush, Timeout: 1500 * time.Millisecond,
		DeadConnTimeout: time.Minute, Connections: []*os.File{a, b},
	}
	want := `
		0800 0100 03000000
		0c00 0200 0000004000000000
		0c00 0300 0002000000000000
		0c00 0500 0501000000000000
		0c00 0400 0200000000000000
		0c00 0800 3c00000000000000
		1c00 0780
			0c00 0180 ` + fd(a) + `
			0c00 0180 ` + fd(b)
	attrs := connectAttrs(c)
	if !bytes.Equal(attrs, fromHex(t, want)) {
		t.Errorf("attributes of CONNECT:\n% x\nwant\n% x", attrs, fromHex(t, want))
	}
	whole := request(0x1c, cmdConnect, familyVersion, 7, attrs)
	if head := fromHex(t, "74000000 1c00 0500 07000000 00000000 01 01 0000"); !bytes.Equal(whole[:20], head) || !bytes.Equal(whole[20:], attrs) {
		t.Errorf("header\n% x\nwant\n% x", whole[:20], head)
	}
	any := connectAttrs(Config{Index: Any, Size: 4096, Block: 4096, Connections: []*os.File{a}})
	if ne.Uint16(any[2:]) != attrSizeBytes {
		t.Errorf("for any device the first attribute is\n% x", any[:8])
	}
	name := attr(nil, unix.CTRL_ATTR_FAMILY_NAME, []byte("nbd\x00"))
	if want := fromHex(t, "0800 0200 6e626400"); !bytes.Equal(name, want) {
		t.Errorf("the name of the family\n% x\nwant\n% x", name, want)
	}
}

// TestReplies takes apart what a kernel has sent.
func TestReplies(t *testing.T) {
	needLittle(t)
	connected := fromHex(t, "1c000000 1c00 0000 07000000 341b0000 01 00 0000  0800 0100 03000000")
	ack := fromHex(t, "24000000 0200 0001 07000000 341b0000  00000000  74000000 1c00 0500 07000000 341b0000")
	attrs, done, err := reply(append(bytes.Clone(connected), ack...), 0x1c, 7)
	if err != nil || !done {
		t.Fatalf("done %v: %v", done, err)
	}
	if index, err := uint32At(attrs, attrIndex); err != nil || index != 3 {
		t.Errorf("index %d: %v", index, err)
	}
	if attrs, done, err := reply(connected, 0x1c, 7); len(attrs) != 8 || done || err != nil {
		t.Errorf("without the acknowledgement: % x %v %v", attrs, done, err)
	}
	if attrs, done, err := reply(append(bytes.Clone(connected), ack...), 0x1c, 8); attrs != nil || done || err != nil {
		t.Errorf("for another request: % x %v %v", attrs, done, err)
	}
	busy := fromHex(t, "24000000 0200 0000 07000000 341b0000  f0ffffff  74000000 1c00 0500 07000000 341b0000")
	if _, done, err := reply(busy, 0x1c, 7); !done || !errors.Is(err, unix.EBUSY) {
		t.Errorf("an error: %v %v", done, err)
	}
	status := fromHex(t, "2c00 0900  1400 0100  0800 0100 03000000  0500 0200 01 000000  1400 0100  0800 0100 04000000  0500 0200 00 000000")
	for index, want := range map[uint32]bool{3: true, 4: false, 5: false} {
		if got, err := connectedIn(status, index); got != want || err != nil {
			t.Errorf("device %d: %v, want %v: %v", index, got, want, err)
		}
	}
}

// FuzzReplies takes apart whatever comes.
func FuzzReplies(f *testing.F) {
	f.Add([]byte("\x1c\x00\x00\x00\x1c\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x08\x00\x01\x00\x03\x00\x00\x00"))
	f.Add([]byte("\x14\x00\x00\x00\x02\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\xf0\xff\xff\xff"))
	f.Add([]byte("\x11\x00\x00\x00\x1c\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		attrs, _, err := reply(b, 0x1c, 7)
		if err != nil {
			return
		}
		_, _ = uint32At(attrs, attrIndex)
		_, _ = connectedIn(attrs, 3)
	})
}

// TestFamily asks the kernel for what every kernel has, over a real link.
func TestFamily(t *testing.T) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		t.Skip(err)
	}
	l := &link{fd: fd}
	defer l.close()
	attrs, err := l.ask(unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, 1, attr(nil, unix.CTRL_ATTR_FAMILY_NAME, []byte("nlctrl\x00")))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := find(attrs, unix.CTRL_ATTR_FAMILY_ID); err != nil || len(id) != 1 || ne.Uint16(id[0]) != unix.GENL_ID_CTRL {
		t.Errorf("nlctrl has the number %x: %v", id, err)
	}
	if _, err := l.ask(unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, 1, attr(nil, unix.CTRL_ATTR_FAMILY_NAME, []byte("absent\x00"))); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a family that is not there: %v", err)
	}
}

// TestWithout asks a kernel that has no NBD devices; another one is left alone.
func TestWithout(t *testing.T) {
	if _, err := os.Stat("/sys/module/nbd"); err == nil {
		t.Skip("this kernel has NBD devices")
	}
	for _, err := range []error{
		func() error { _, err := Connected(0); return err }(), Disconnect(0),
		func() error {
			_, err := Connect(Config{Index: Any, Size: 512, Block: 512, Connections: []*os.File{os.Stdin}})
			return err
		}(),
	} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("without NBD devices: %v", err)
		}
	}
}

// TestCheck refuses what the kernel would, with a reason.
func TestCheck(t *testing.T) {
	good := Config{Index: Any, Size: 1 << 20, Block: 512, Connections: []*os.File{os.Stdin}}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"index": func(c *Config) { c.Index = -2 }, "block": func(c *Config) { c.Block = 256 }, "power": func(c *Config) { c.Block = 1000 },
		"large": func(c *Config) { c.Block = 8192 }, "short": func(c *Config) { c.Size = 511 }, "time": func(c *Config) { c.Timeout = -1 },
		"none": func(c *Config) { c.Connections = nil }, "two": func(c *Config) { c.Connections = []*os.File{os.Stdin, os.Stdin} },
	} {
		c := good
		change(&c)
		if c.check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestPath reads names of devices.
func TestPath(t *testing.T) {
	for path, want := range map[string]int{"/dev/nbd0": 0, "/dev/nbd15": 15, "/dev/nbd1048575": 1<<20 - 1} {
		if got, err := ParsePath(path); err != nil || got != want || Path(got) != path {
			t.Errorf("%s is %d: %v", path, got, err)
		}
	}
	for _, path := range []string{"", "/dev/nbd", "/dev/nbd01", "/dev/nbd-1", "/dev/nbd0p1", "/dev/sda", "nbd0", "/dev/nbd1048576", "/dev/nbd" + string(rune(math.MaxInt16))} {
		if got, err := ParsePath(path); err == nil {
			t.Errorf("%s is %d", path, got)
		}
	}
}
