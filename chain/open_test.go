package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/all"
	"github.com/imgtool/imgtool/formats/raw"
	"github.com/imgtool/imgtool/partition"
)

// wrapOptions are those of the format wrap.
type wrapOptions struct {
	Member string `option:"member" help:"nothing"`
	Quick  bool   `option:"quick" help:"nothing"`
}

const wrapMagic, diskMagic = "WRAP", "DISK"

// window is a device that gives itself a format's name.
type window struct {
	*block.Window
	format string
}

func (w window) Info() block.Info {
	i := w.Window.Info()
	i.Format = w.format
	return i
}

// registry returns the formats of these tests: wrap, a transport that puts four bytes before an image; oneway, the same for sources that
// are read from front to back only; disk, the like for a disk format; picky, which finds out late that it is not meant; and raw.
func registry() formats.Registry {
	probe := func(magic string, s formats.Score) func(formats.Head) formats.Score {
		return func(h formats.Head) formats.Score {
			if h.HasPrefix(magic) {
				return s
			}
			return formats.No
		}
	}
	open := func(magic string) func(context.Context, block.Device, formats.OpenOptions) (block.Device, error) {
		return func(ctx context.Context, dev block.Device, o formats.OpenOptions) (block.Device, error) {
			if h := formats.NewHead(ctx, dev); !h.HasPrefix(magic) {
				return nil, block.ErrNotFormat
			}
			w, err := block.NewWindow(dev, 4, dev.Size()-4)
			return window{w, strings.ToLower(magic)}, err
		}
	}
	decode := func(_ context.Context, r io.Reader, o formats.OpenOptions) (block.Stream, error) {
		if _, err := io.ReadFull(r, make([]byte, 4)); err != nil {
			return nil, err
		}
		return &pieces{r: r}, nil
	}
	return formats.Registry{
		{Name: "picky", Probe: probe("DISK?", formats.Certain), Open: open("?")},
		{Name: "wrap", Aliases: []string{"parcel"}, Transport: true, OpenOptions: &wrapOptions{}, Probe: probe(wrapMagic, formats.Likely), Open: open(wrapMagic), Decode: decode},
		{Name: "oneway", Transport: true, Probe: probe("ONEW", formats.Likely), Decode: decode},
		{Name: "disk", Probe: probe(diskMagic, formats.Likely), Open: open(diskMagic)},
		raw.Driver(),
	}
}

// pieces is a stream of runs of seven bytes; dots are zeros and the byte ! is damage.
type pieces struct{ r io.Reader }

var errDamage = block.Corrupt("wrap", "piece", 7, "it has a !: %w", io.EOF)

func (s *pieces) Size() (int64, bool) { return 0, false }
func (s *pieces) Close() error        { return nil }
func (s *pieces) Next(context.Context) (block.Run, error) {
	p := make([]byte, 7)
	n, err := io.ReadFull(s.r, p)
	if n == 0 {
		return block.Run{}, err
	}
	if bytes.Contains(p, []byte("!")) {
		return block.Run{}, errDamage
	}
	if bytes.Count(p[:n], []byte(".")) == n {
		return block.Run{Len: int64(n), Zero: true}, nil
	}
	return block.Run{Len: int64(n), Data: p[:n]}, nil
}

// write makes a file and returns its path.
func write(t *testing.T, name, data string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// content reads the whole image, and closes it.
func content(t *testing.T, i *Image) string {
	t.Helper()
	defer func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	}()
	if i.Device != nil {
		p := make([]byte, i.Device.Size())
		if err := i.Device.Read(context.Background(), p, 0); err != nil {
			t.Fatal(err)
		}
		return string(p)
	}
	p, err := io.ReadAll(&streamReader{ctx: context.Background(), s: i.Stream})
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// how prints the layers of an image: found ones in parentheses.
func how(i *Image) string {
	var s []string
	for _, l := range i.Layers {
		if l.How == Sniffed {
			l.Name = "(" + l.Name + ")"
		}
		s = append(s, l.Name)
	}
	return strings.Join(s, " ")
}

func TestOpenLayers(t *testing.T) {
	for _, c := range []struct {
		data, layers, format string
		want, how, last      string
	}{
		{"hello", "", "", "hello", "(raw)", "raw"},
		{"", "", "", "", "(raw)", "raw"},
		{"WRAPhello", "", "", "hello", "(wrap) (raw)", "raw"},
		{"WRAPDISKhello", "", "", "hello", "(wrap) (disk)", "disk"},
		{"WRAPWRAPDISKhello", "", "", "hello", "(wrap) (wrap) (disk)", "disk"},
		{"DISKWRAPhello", "", "", "WRAPhello", "(disk)", "disk"},
		{"DISK?hello", "", "", "?hello", "(disk)", "disk"}, // picky is asked first and declines
		{"WRAPhello", "::raw", "", "WRAPhello", "raw", "raw"},
		{"WRAPhello", "::wrap", "", "hello", "wrap (raw)", "raw"},
		{"WRAPhello", "::parcel", "", "hello", "wrap (raw)", "raw"},
		{"WRAPhello", "::wrap=m,quick=on", "", "hello", "wrap (raw)", "raw"},
		{"WRAPWRAPx", "::wrap::raw", "", "WRAPx", "wrap raw", "raw"},
		{"DISKWRAPhello", "::disk::wrap", "", "hello", "disk wrap (raw)", "raw"},
		{"DISKWRAPhello", "", "raw", "DISKWRAPhello", "raw", "raw"},
		{"WRAPWRAPhello", "", "wrap", "WRAPhello", "wrap", "wrap"},
		{"WRAPDISKhello", "::wrap", "disk", "hello", "wrap disk", "disk"},
		{"WRAPDISKWRAPhello", "::window,offset=1,size=6", "", "RAPhel", "(wrap) (disk) window", "disk"},
		{"WRAPDISKhello", "::raw::window,offset=4", "", "DISKhello", "raw window", "raw"},
		{"WRAPDISKhello", "::raw::window,offset=4::disk", "", "hello", "raw window disk", "disk"},
		{"hello", "::window,offset=5", "", "", "(raw) window", "raw"},
		{"hello", "::part=range=1+2", "", "el", "(raw) part", "raw"},
		{"hello", "::readonly", "", "hello", "(raw) readonly", "raw"},
	} {
		t.Run(c.data+c.layers+" "+c.format, func(t *testing.T) {
			path := write(t, "image", c.data)
			img, err := Open(context.Background(), path+c.layers, Options{Registry: registry(), Format: c.format})
			if err != nil {
				t.Fatal(err)
			}
			if how(img) != c.how || img.Format() != c.last || img.Path != path || img.Stream != nil {
				t.Errorf("layers %s, format %s, path %s", how(img), img.Format(), img.Path)
			}
			if !SameFile(img, path) {
				t.Error("the image is not its own file")
			}
			if got := content(t, img); got != c.want {
				t.Errorf("content %q, want %q", got, c.want)
			}
		})
	}
}

func TestOpenNesting(t *testing.T) {
	for n, ok := range map[int]bool{maxSniffed - 1: true, maxSniffed: false} {
		path := write(t, "image", strings.Repeat(wrapMagic, n)+"end")
		img, err := Open(context.Background(), path, Options{Registry: registry()})
		if (err == nil) != ok {
			t.Errorf("%d wrappers: %v", n, err)
		}
		if ok {
			content(t, img)
		}
	}
	path := write(t, "image", strings.Repeat(wrapMagic, 20)+"end")
	img, err := Open(context.Background(), path+strings.Repeat("::wrap", 19), Options{Registry: registry()})
	if err != nil {
		t.Fatal("written layers are bounded:", err)
	}
	if got := content(t, img); got != "end" {
		t.Errorf("content %q", got)
	}
}

func TestOpenErrors(t *testing.T) {
	path := write(t, "image", "DISKhello")
	for _, c := range []struct {
		text, format string
		usage        bool
		is           error
		want         string
	}{
		{path + "::wrap", "", false, block.ErrNotFormat, path + ": not an image"},
		{path + "::nosuch", "", true, nil, `unknown layer "nosuch": known are picky, wrap, oneway, disk, raw, part, window, readonly`},
		{path, "nosuch", true, nil, `unknown format "nosuch": known are picky, wrap`},
		{path, "part", true, nil, `unknown format "part"`},
		{path + "::disk=x", "", true, nil, "nothing can follow its ="},
		{path + "::wrap=x,member=y", "", true, nil, "member is given twice"},
		{path + "::wrap,size=1", "", true, nil, `layer wrap: unknown option "size": known are member, quick`},
		{path + "::part", "", true, nil, "which partition"},
		{path + "::part=nosuch=1", "", true, nil, "layer part: "},
		{path + "::part=1,x=y", "", true, nil, `unknown option "x"`},
		{path + "::part=1", "", false, partition.ErrNone, path + ": "},
		{path + "::window=1", "", true, nil, "takes nothing after its name"},
		{path + "::window,ofset=1", "", true, nil, "known are offset, size"},
		{path + "::window,offset=x", "", true, nil, "offset=x"},
		{path + "::window,offset=6", "", false, nil, path + ": window: range at byte 6"},
		{path + "::window,offset=1,size=5", "", false, nil, "length 5, is outside"},
		{path + "x", "", false, fs.ErrNotExist, path + "x: "},
		{filepath.Dir(path), "", false, nil, filepath.Dir(path) + ": "},
		{"https://host/x::nosuch", "", true, nil, "unknown layer"},
		{"https://host/x", "", true, nil, "HTTP sources are not supported by this version"},
		{"[ '' x ]", "", true, nil, "no program"},
		{"[", "", true, nil, "[ CMD ARG... ]"},
		{"ssh://host/x", "", true, nil, "ssh:// is not a kind of source"},
		{"null:", "", true, nil, "memory:1G"},
		{"null:1x", "", true, nil, "1x"},
		{"file://host/x", "", true, nil, "another host"},
		{"file:///x?y", "", true, nil, "%3F"},
		{"file:///%zz", "", true, nil, "%zz"},
		{"", "", true, nil, "names no image"},
	} {
		_, err := Open(context.Background(), c.text, Options{Registry: registry(), Format: c.format})
		var u *UsageError
		switch {
		case err == nil:
			t.Errorf("%s opens", c.text)
		case errors.As(err, &u) != c.usage:
			t.Errorf("%s: %v; want a usage error: %v", c.text, err, c.usage)
		case c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: %v; want %v, %s", c.text, err, c.is, c.want)
		case strings.Count(err.Error(), path) > 1:
			t.Errorf("%v: the name is there twice", err)
		}
	}
	_, err := Open(context.Background(), path, Options{Registry: registry()[:2]})
	if !errors.Is(err, block.ErrNotFormat) {
		t.Errorf("no format fits: %v", err)
	}
}

// TestOpenClosesOnError checks that a failed opening leaves the file unlocked: it can be opened for writing.
func TestOpenClosesOnError(t *testing.T) {
	path := write(t, "image", "DISKhello")
	for _, layers := range []string{"::wrap", "::oneway::disk", "::window,offset=100", "::disk::wrap"} {
		if img, err := Open(context.Background(), path+layers, Options{Registry: registry()}); err == nil {
			t.Fatalf("%s opens as %s", layers, how(img))
		}
		img, err := Open(context.Background(), path, Options{Registry: registry(), Write: true})
		if err != nil {
			t.Fatalf("after %s: %v", layers, err)
		}
		content(t, img)
	}
}

func TestOpenWrite(t *testing.T) {
	path := write(t, "image", "WRAPDISKhello")
	ctx := context.Background()
	img, err := Open(ctx, path+"::window,offset=1,size=3", Options{Registry: registry(), Write: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Device.Write(ctx, []byte("ipp"), 0, 0); err != nil {
		t.Error(err)
	}
	var outside *block.RangeError
	var e *Error
	err = img.Device.Write(ctx, []byte("y"), 3, 0)
	if !errors.As(err, &outside) || !errors.As(err, &e) || e.Name != path {
		t.Errorf("write past the window: %v", err)
	}
	content(t, img)
	if got, err := os.ReadFile(path); err != nil || string(got) != "WRAPDISKhippo" {
		t.Errorf("the file holds %q, %v", got, err)
	}
	for _, text := range []string{path + "::readonly", path} {
		img, err := Open(ctx, text, Options{Registry: registry(), Write: strings.HasSuffix(text, "readonly")})
		if err != nil {
			t.Fatal(err)
		}
		if err := img.Device.Write(ctx, []byte("y"), 0, 0); !errors.Is(err, block.ErrReadOnly) {
			t.Errorf("%s: write: %v", text, err)
		}
		content(t, img)
	}
	if _, err := Open(ctx, write(t, "image", "ONEWx"), Options{Registry: registry(), Write: true}); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("a format that goes one way is opened for writing: %v", err)
	}
}

func TestOpenSources(t *testing.T) {
	ctx := context.Background()
	path := write(t, "a b", "hello")
	url := "file://" + strings.ReplaceAll(filepath.ToSlash("/"+strings.TrimPrefix(path, "/")), " ", "%20")
	for text, want := range map[string]string{
		url:          "hello",
		"null:3":     "\x00\x00\x00",
		"memory:2":   "\x00\x00",
		"pattern:16": "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x08",
	} {
		img, err := Open(ctx, text, Options{Registry: all.Drivers()})
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if text != url && (img.Path != "" || SameFile(img, path)) {
			t.Errorf("%s has the path %q", text, img.Path)
		}
		if got := content(t, img); got != want {
			t.Errorf("%s holds %q", text, got)
		}
	}
	img, err := Open(ctx, "memory:1M", Options{Registry: all.Drivers(), Write: true})
	if err != nil || img.Device.Write(ctx, []byte("x"), 0, 0) != nil {
		t.Errorf("memory cannot be written: %v", err)
	}
	if _, err := Open(ctx, "pattern:1M", Options{Registry: all.Drivers(), Write: true}); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("a pattern is opened for writing: %v", err)
	}
	if len(SourcesHelp()) < 5 || len(LayersHelp()) != len(layers()) {
		t.Error("the help is not whole")
	}
}

func TestOpenPart(t *testing.T) {
	ctx := context.Background()
	path := write(t, "disk", "")
	if err := os.Truncate(path, 4<<20); err != nil {
		t.Fatal(err)
	}
	disk, err := Open(ctx, path, Options{Registry: all.Drivers(), Write: true})
	if err != nil {
		t.Fatal(err)
	}
	err = partition.WriteGPT(ctx, disk.Device, partition.Table{DiskGUID: "7A2E6F0C-0D4B-4F6B-9C7D-0123456789AB", Partitions: []partition.Partition{
		{Number: 1, Start: 1 << 20, Size: 512 << 10, Type: "esp", Name: "first"},
		{Number: 2, Start: 2 << 20, Size: 1 << 20, Type: "linux", Name: "a,b::c"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Device.Write(ctx, []byte("DISKsecond"), 2<<20, 0); err != nil {
		t.Fatal(err)
	}
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
	for layers, want := range map[string]string{
		"::part=2":                        "DISKsecond",
		`::part=name=a\,b\::c`:            "DISKsecond",
		"::part=type=linux":               "DISKsecond",
		"::part=2::disk":                  "second",
		"::raw::part=2":                   "DISKsecond",
		"::part=2::window,offset=4":       "second",
		"::part=range=2M+1M":              "DISKsecond",
		"::window,offset=2M":              "DISKsecond",
		"::part=1::window,size=4":         "\x00\x00\x00\x00",
		"::part=1::part=range=0+512::raw": "\x00",
	} {
		img, err := Open(ctx, path+layers, Options{Registry: registry()})
		if err != nil {
			t.Errorf("%s: %v", layers, err)
			continue
		}
		if strings.Contains(how(img), "(disk)") {
			t.Errorf("%s: a guest's bytes are sniffed: %s", layers, how(img))
		}
		if got := content(t, img); !strings.HasPrefix(got, want) {
			t.Errorf("%s begins with %.12q, want %q", layers, got, want)
		}
	}
	_, err = Open(ctx, path+"::part=3", Options{Registry: registry()})
	if err == nil || !strings.HasPrefix(err.Error(), path+": no partition") {
		t.Errorf("a partition that is not there: %v", err)
	}
}

// stdin returns the end of a pipe that gives data.
func stdin(t *testing.T, data string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.WriteString(w, data) // fails where the test stops reading
		_ = w.Close()
	}()
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestOpenPipe(t *testing.T) {
	big := strings.Repeat("x", 3*formats.HeadSize+1)
	for _, c := range []struct{ data, text, want, how string }{
		{"hello", "-", "hello", "(raw)"},
		{"", "-", "", "(raw)"},
		{big, "-", big, "(raw)"},
		{"WRAPhello", "-", "hello", "(wrap) (raw)"},
		{"WRAPWRAP" + big, "-", big, "(wrap) (wrap) (raw)"},
		{"WRAPhello world" + strings.Repeat(".", 70) + "end", "-", "hello world" + strings.Repeat(".", 3) + strings.Repeat("\x00", 63) + "....end", "(wrap) (raw)"},
		{"WRAPhello", "-::raw", "WRAPhello", "raw"},
		{"WRAPWRAPhello", "-::wrap::raw", "WRAPhello", "wrap raw"},
	} {
		img, err := Open(context.Background(), c.text, Options{Registry: registry(), Stdin: stdin(t, c.data)})
		if err != nil {
			t.Errorf("%.20q: %v", c.data, err)
			continue
		}
		if img.Device != nil || img.Path != "" || how(img) != c.how {
			t.Errorf("%.20q: layers %s", c.data, how(img))
		}
		if got := content(t, img); got != c.want {
			t.Errorf("%.20q holds %.40q, want %.40q", c.data, got, c.want)
		}
	}
	for data, text := range map[string]string{"DISKx": "-", "WRAPDISKx": "-", "x": "-::part=1", "y": "-::readonly", "DISKy": "-::disk"} {
		_, err := Open(context.Background(), text, Options{Registry: registry(), Stdin: stdin(t, data)})
		var hint *block.Hint
		if err == nil || !errors.As(err, &hint) || !strings.Contains(hint.Text, "save it to a file") || !strings.HasPrefix(err.Error(), "standard input: ") {
			t.Errorf("%s of %s: %v", text, data, err)
		}
	}
	_, err := Open(context.Background(), "-", Options{Registry: registry(), Stdin: stdin(t, ""), Write: true})
	var u *UsageError
	if !errors.As(err, &u) {
		t.Errorf("standard input is opened for writing: %v", err)
	}
}

// TestOpenStandardFile reads standard input that is a file, which is a device.
func TestOpenStandardFile(t *testing.T) {
	path := write(t, "image", "DISKhello")
	for _, off := range []int64{0, 4} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(off, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		img, err := Open(context.Background(), "-", Options{Registry: registry(), Stdin: f})
		if err != nil {
			t.Fatal(err)
		}
		if (img.Device != nil) != (off == 0) || !SameFile(img, path) {
			t.Errorf("from offset %d: device %v", off, img.Device)
		}
		if got := content(t, img); got != "hello" {
			t.Errorf("content %q", got)
		}
		_ = f.Close() // the image may have done so
	}
}

// TestOpenOneWay reads a file in a format that goes one way only.
func TestOpenOneWay(t *testing.T) {
	path := write(t, "image", "ONEWWRAPhello")
	img, err := Open(context.Background(), path, Options{Registry: registry()})
	if err != nil {
		t.Fatal(err)
	}
	if img.Stream == nil || img.Path != path || how(img) != "(oneway) (wrap) (raw)" {
		t.Errorf("layers %s", how(img))
	}
	if got := content(t, img); got != "hello" {
		t.Errorf("content %q", got)
	}
}

// TestStreamDamage checks that damage is reported with the file, the structure and the offset, even where io.EOF is its cause, and both
// inside and after the bytes that are read ahead.
func TestStreamDamage(t *testing.T) {
	for _, before := range []int{0, 70, 7 * formats.HeadSize} {
		path := write(t, "image", "ONEW"+strings.Repeat("x", before)+"!")
		img, err := Open(context.Background(), path, Options{Registry: registry()})
		if err == nil {
			_, err = io.ReadAll(&streamReader{ctx: context.Background(), s: img.Stream})
			_ = img.Close() // only its reading is looked at
		}
		var damage *block.CorruptError
		if !errors.As(err, &damage) || damage != errDamage || err.Error() != path+": wrap: corrupt piece at byte 7: it has a !: EOF" {
			t.Errorf("damage after %d bytes: %v", before, err)
		}
	}
}

func TestReplay(t *testing.T) {
	data := "abcdefg" + "......." + "hij"
	s := &replay{Stream: &pieces{r: strings.NewReader(data)}}
	first, whole, err := s.peek(context.Background(), 10)
	if string(first) != "abcdefg\x00\x00\x00" || whole || err != nil {
		t.Errorf("peek = %q, %v, %v", first, whole, err)
	}
	var runs []string
	for {
		r, err := s.Next(context.Background())
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, fmt.Sprintf("%d %v %s", r.Len, r.Zero, r.Data))
	}
	if want := []string{"7 false abcdefg", "7 true ", "3 false hij"}; !reflect.DeepEqual(runs, want) {
		t.Errorf("runs %q", runs)
	}
	s = &replay{Stream: &pieces{r: strings.NewReader(data)}}
	first, whole, err = s.peek(context.Background(), 100)
	if string(first) != "abcdefg\x00\x00\x00\x00\x00\x00\x00hij" || !whole || err != nil {
		t.Errorf("peek of all = %q, %v, %v", first, whole, err)
	}
}
