package formats_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// image is a device over a byte slice that counts reads and fails them from failFrom on.
type image struct {
	block.ReadOnly
	data     []byte
	failFrom int64
	reads    []int64
}

var errBad = errors.New("bad sector")

func newImage(data []byte) *image { return &image{data: data, failFrom: int64(len(data))} }

func (d *image) Info() block.Info {
	return block.Info{Name: "image", MinBlock: 1, PreferredBlock: 4096}
}
func (d *image) Size() int64  { return int64(len(d.data)) }
func (d *image) Close() error { return nil }
func (d *image) Read(_ context.Context, p []byte, off int64) error {
	if err := block.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return err
	}
	d.reads = append(d.reads, off)
	if off+int64(len(p)) > d.failFrom {
		return errBad
	}
	copy(p, d.data[off:])
	return nil
}
func (d *image) Prefetch(context.Context, int64, int64) error { return nil }
func (d *image) Extents(_ context.Context, _ block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	return append(buf, block.Extent{Off: off, Len: n, Flags: block.ExtData}), nil
}

func TestHead(t *testing.T) {
	data := make([]byte, 3*formats.HeadSize)
	for i := range data {
		data[i] = byte(i >> 8)
	}
	copy(data, "MAGIC")
	copy(data[len(data)-8:], "conectix")
	d := newImage(data)
	h := formats.NewHead(context.Background(), d)
	if !bytes.Equal(h.First(), data[:formats.HeadSize]) || h.Size() != int64(len(data)) || !h.HasPrefix("MAGIC") || h.HasPrefix("MAGIK") {
		t.Error("the head does not show the first bytes")
	}
	if got := h.At(5, 100); !bytes.Equal(got, data[5:105]) {
		t.Error("At inside the first bytes is wrong")
	}
	if len(d.reads) != 1 {
		t.Errorf("%d reads for the first bytes, want 1", len(d.reads))
	}
	if got := h.Tail(8); string(got) != "conectix" {
		t.Errorf("Tail = %q", got)
	}
	if got := h.At(formats.HeadSize-1, 2); !bytes.Equal(got, data[formats.HeadSize-1:formats.HeadSize+1]) {
		t.Error("At across the end of the first bytes is wrong")
	}
	for _, r := range []struct {
		off int64
		n   int
	}{{-1, 1}, {0, -1}, {0, 0}, {0, formats.HeadSize + 1}, {int64(len(data)) - 1, 2}, {1<<63 - 1, 1}, {1<<63 - 1, 2}} {
		if got := h.At(r.off, r.n); got != nil {
			t.Errorf("At(%d, %d) = %d bytes, want none", r.off, r.n, len(got))
		}
	}
	if h.Err() != nil {
		t.Errorf("Err = %v for ranges that are not there", h.Err())
	}
	if len(d.reads) != 3 {
		t.Errorf("%d reads, want 3: %v", len(d.reads), d.reads)
	}
}

func TestHeadShort(t *testing.T) {
	for _, data := range []string{"", "ab"} {
		h := formats.NewHead(context.Background(), newImage([]byte(data)))
		if string(h.First()) != data || h.HasPrefix("abc") || h.Tail(3) != nil || h.Err() != nil {
			t.Errorf("wrong head of %q: %q, %v", data, h.First(), h.Err())
		}
	}
}

func TestHeadError(t *testing.T) {
	d := newImage(make([]byte, 2*formats.HeadSize))
	d.failFrom = formats.HeadSize
	h := formats.NewHead(context.Background(), d)
	if h.Err() != nil || h.Tail(512) != nil || !errors.Is(h.Err(), errBad) {
		t.Errorf("a failed read is not remembered: %v", h.Err())
	}
	d.failFrom = 0
	if h := formats.NewHead(context.Background(), d); !errors.Is(h.Err(), errBad) || h.First() != nil {
		t.Errorf("a failed first read is not remembered: %v", h.Err())
	}
}

func TestStreamHead(t *testing.T) {
	h := formats.StreamHead([]byte("abcdef"), false)
	if h.Size() != -1 || string(h.At(2, 3)) != "cde" || h.At(4, 3) != nil || h.Tail(1) != nil || h.Err() != nil {
		t.Error("wrong head of a pipe")
	}
	if h := formats.StreamHead([]byte("abc"), true); h.Size() != 3 || string(h.Tail(2)) != "bc" {
		t.Error("wrong head of a short pipe")
	}
}

func fake(name, magic string, s formats.Score, aliases ...string) formats.Driver {
	return formats.Driver{Name: name, Aliases: aliases, Probe: func(h formats.Head) formats.Score {
		if h.HasPrefix(magic) {
			return s
		}
		return formats.No
	}}
}

func TestRegistry(t *testing.T) {
	r := formats.Registry{
		fake("one", "AB", formats.Likely, "uno"),
		fake("two", "AB", formats.Likely),
		fake("sure", "ABC", formats.Certain),
		{Name: "unseen", Extensions: []string{".un"}},
		fake("any", "", formats.Fallback),
	}
	for data, want := range map[string]string{"ABx": "one", "ABC": "sure", "zzz": "any", "": "any"} {
		d, score := r.Probe(formats.StreamHead([]byte(data), true))
		if d == nil || d.Name != want || score == formats.No {
			t.Errorf("Probe(%q) = %v, %d; want %s", data, d, score, want)
		}
	}
	if d, score := r[:3].Probe(formats.StreamHead([]byte("zzz"), true)); d != nil || score != formats.No {
		t.Errorf("Probe found %v in bytes of no format", d)
	}
	if d := r.Lookup("UNO"); d != &r[0] {
		t.Error("an alias is not found")
	}
	if d := r.Lookup("due"); d != nil {
		t.Errorf("Lookup of an unknown name returned %s", d.Name)
	}
	if d := r.ForFile("x/disk.raw.UN"); d != &r[3] {
		t.Error("an ending is not found")
	}
	if d := r.ForFile("x.un/disk"); d != nil {
		t.Error("a folder's ending counts as the file's")
	}
	if got := strings.Join(r.Names(), " "); got != "one two sure unseen any" {
		t.Errorf("Names = %s", got)
	}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	if err := append(r, fake("UNO", "", 0)).Check(); err == nil {
		t.Error("a name that is another's alias is not found")
	}
	if err := (formats.Registry{{}}).Check(); err == nil {
		t.Error("a driver without a name is not found")
	}
}

func TestDirGate(t *testing.T) {
	dir := t.TempDir()
	images := filepath.Join(dir, "images")
	must(t, os.MkdirAll(filepath.Join(images, "sub", "deep"), 0o755))
	for _, name := range []string{"secret", "images/base.img", "images/sub/b.img", "images/disk"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644))
	}
	refs := map[string]error{
		"base.img":                           nil,
		"./base.img":                         nil,
		"sub/b.img":                          nil,
		"sub/../base.img":                    nil,
		"missing.img":                        os.ErrNotExist,
		"sub":                                block.ErrDenied,
		".":                                  block.ErrDenied,
		"":                                   block.ErrDenied,
		"../secret":                          block.ErrDenied,
		"sub/../../secret":                   block.ErrDenied,
		filepath.Join(images, "base.img"):    block.ErrDenied,
		"/etc/passwd":                        block.ErrDenied,
		`C:\x`:                               block.ErrDenied,
		"https://host/base.img":              block.ErrDenied,
		"file:base.img":                      block.ErrDenied,
		"nbd:localhost:10809":                block.ErrDenied,
		`json:{"file.filename":"base.img"}`:  block.ErrDenied,
		"base.img\x00":                       block.ErrDenied,
		"json:":                              block.ErrDenied,
		"sub/deep/../../../images/../secret": block.ErrDenied,
	}
	if runtime.GOOS != "windows" {
		must(t, os.Symlink("../secret", filepath.Join(images, "out")))
		must(t, os.Symlink(filepath.Join(dir, "secret"), filepath.Join(images, "abs")))
		must(t, os.Symlink("..", filepath.Join(images, "up")))
		must(t, os.Symlink("../base.img", filepath.Join(images, "sub", "in")))
		must(t, os.Symlink("/dev/zero", filepath.Join(images, "dev")))
		refs["out"], refs["abs"], refs["up/secret"], refs["dev"] = block.ErrDenied, block.ErrDenied, block.ErrDenied, block.ErrDenied
		must(t, os.Symlink("round", filepath.Join(images, "round")))
		refs["sub/in"] = nil
		refs["base.img/x"], refs["round"], refs[strings.Repeat("x", 300)] = syscall.ENOTDIR, syscall.ELOOP, syscall.ENAMETOOLONG
	}
	gate := formats.Gate(formats.DirGate)
	for name, want := range refs {
		ref := formats.Ref{Kind: "backing file", Name: name, From: filepath.Join(images, "disk")}
		err := gate.Ask(context.Background(), ref)
		if !errors.Is(err, want) || (err == nil) != (want == nil) || want != block.ErrDenied && errors.Is(err, block.ErrDenied) {
			t.Errorf("gate on %q: %v, want %v", name, err, want)
		}
		if want == block.ErrDenied {
			var hint *block.Hint
			if !errors.As(err, &hint) || !strings.Contains(hint.Text, "--allow-references") {
				t.Errorf("gate on %q gives no hint", name)
			}
		}
	}
	ref := formats.Ref{Kind: "backing file", Name: "base.img"}
	if err := gate.Ask(context.Background(), ref); !errors.Is(err, block.ErrDenied) {
		t.Errorf("an image without a folder: %v", err)
	}
	ref.From = filepath.Join(images, "disk")
	if err := formats.Gate(nil).Ask(context.Background(), ref); !errors.Is(err, block.ErrDenied) {
		t.Errorf("no gate: %v", err)
	}
	ref.Name = "/etc/passwd"
	if err := formats.Gate(formats.AllowAll).Ask(context.Background(), ref); err != nil {
		t.Errorf("a gate that allows everything: %v", err)
	}
}

type options struct {
	Level  int    `option:"level" help:"how hard to try"`
	Block  int64  `option:"block_size" help:"unit of compression"`
	Fast   bool   `option:"fast" help:"be quick"`
	Mode   string `option:"mode" enum:"auto|plain" help:"how to begin"`
	Text   string `option:"text" help:"anything"`
	Hidden []byte
}

func TestParseOptions(t *testing.T) {
	def := &options{Level: 6, Block: 64 << 10, Mode: "auto", Hidden: []byte("kept")}
	got, err := formats.ParseOptions(def, map[string]string{
		"level": "-9", "block_size": "1M", "fast": "on", "mode": "plain", "text": "a=b",
	})
	want := &options{Level: -9, Block: 1 << 20, Fast: true, Mode: "plain", Text: "a=b", Hidden: []byte("kept")}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseOptions = %+v, %v; want %+v", got, err, want)
	}
	if def.Level != 6 || def.Fast {
		t.Error("the defaults have changed")
	}
	if same, err := formats.ParseOptions(def, nil); err != nil || same == def || !reflect.DeepEqual(same, def) {
		t.Errorf("no options: %+v, %v; want a copy of the defaults", same, err)
	}
	if got, err := formats.ParseOptions[any](def, map[string]string{"fast": "yes"}); err != nil || !got.(*options).Fast {
		t.Errorf("through any: %+v, %v", got, err)
	}
	for _, c := range []struct{ key, value, want string }{
		{"levle", "1", `unknown option "levle": known are level, block_size, fast, mode, text`},
		{"Hidden", "1", "unknown option"},
		{"", "1", "unknown option"},
		{"level", "x", "option level=x: not a number"},
		{"level", "99999999999999999999", "not a number"},
		{"block_size", "-1", "option block_size=-1: "},
		{"fast", "maybe", "option fast=maybe: say on or off"},
		{"mode", "Plain", "option mode=Plain: say one of auto, plain"},
	} {
		if _, err := formats.ParseOptions(def, map[string]string{c.key: c.value}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s=%s: %v; want %s", c.key, c.value, err, c.want)
		}
	}
	if _, err := formats.ParseOptions[any](nil, map[string]string{"a": "b"}); err == nil {
		t.Error("an option where there are none is accepted")
	}
}

func TestOptionsHelp(t *testing.T) {
	got := formats.OptionsHelp(&options{Level: 6, Block: 65536, Mode: "auto"})
	want := []formats.OptionDoc{
		{Name: "level", Kind: "number", Default: "6", Help: "how hard to try"},
		{Name: "block_size", Kind: "size", Default: "65536", Help: "unit of compression"},
		{Name: "fast", Kind: "on|off", Default: "off", Help: "be quick"},
		{Name: "mode", Kind: "auto|plain", Enum: []string{"auto", "plain"}, Default: "auto", Help: "how to begin"},
		{Name: "text", Kind: "text", Help: "anything"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("OptionsHelp = %+v; want %+v", got, want)
	}
	if formats.OptionsHelp(nil) != nil {
		t.Error("help for no options")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
