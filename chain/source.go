package chain

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/source/file"
)

// Standard is the source, and the target, that is the process's own input and output.
const Standard = "-"

// input is what a source gives: a device, or a reader where bytes go one way only.
type input struct {
	dev    block.Device
	reader *bufio.Reader
	close  io.Closer   // of the reader; nil where it is not ours
	path   string      // of a local file
	stat   os.FileInfo // of a local file, opened as a path or not; else nil
}

// abandon closes what is not used after all.
func (in input) abandon() error {
	switch {
	case in.dev != nil:
		return in.dev.Close()
	case in.close != nil:
		return in.close.Close()
	}
	return nil
}

// filePrefix begins the URL of a file.
const filePrefix = "file://"

// nullPrefix begins what has no content.
const nullPrefix = "null:"

// source is a kind of source. What fits none of the list is a path.
type source struct {
	prefix string // of the text
	doc    string
	open   func(ctx context.Context, arg string, o Options) (input, error) // arg is the text without the prefix
	path   func(arg string) (string, error)                                // where it is a file: its path
	target bool                                                            // it can be a target, which is written in place
}

// sources lists the kinds of sources, in the order in which they are tried.
func sources() []source {
	return append([]source{
		{prefix: filePrefix, doc: "file:///PATH    a local file, as a URL", open: openFileURL, path: filePath},
		{prefix: nullPrefix, doc: "null:SIZE       reads as zero, forgets what is written; as a target null: has any size", open: sized(block.NewNull)},
		{prefix: "pattern:", doc: "pattern:SIZE    every 8 bytes are their own offset, big-endian", open: sized(block.NewPattern)},
		{prefix: "memory:", doc: "memory:SIZE     empty, writable, in memory", open: sized(func(n int64) block.Device { return block.NewMemory(n) })},
		{prefix: "http://", open: notYet("HTTP sources")},
		{prefix: "https://", open: notYet("HTTP sources")},
	}, exports()...)
}

// SourcesHelp returns one line for every kind of source, for the help of commands.
func SourcesHelp() []string {
	lines := []string{"PATH            a local file, disk or FIFO", "-               standard input"}
	for _, s := range sources() {
		if s.doc != "" {
			lines = append(lines, s.doc)
		}
	}
	return append(lines, "[ CMD ARG... ]  an NBD server that is started for the purpose: '[ nbdkit memory 1G ]'")
}

// begins reports whether text names a source of this kind.
func (s source) begins(text string) bool {
	return len(text) >= len(s.prefix) && strings.EqualFold(text[:len(s.prefix)], s.prefix)
}

// findSource returns the kind of source that text names, and its argument.
func findSource(text string) (source, string, error) {
	for _, s := range sources() {
		if s.begins(text) {
			return s, text[len(s.prefix):], nil
		}
	}
	if text == Standard {
		return source{open: openStandard}, "", nil
	}
	if isProgram(text) {
		return source{open: openProgram, target: true}, text, nil
	}
	if text == "[" {
		return source{}, "", usage("[ begins a program, [ CMD ARG... ], of which the brackets are words of their own; a file of this name is written as ./[")
	}
	if scheme, _, ok := strings.Cut(text, "://"); ok && len(scheme) > 1 && isName(strings.ReplaceAll(scheme, "+", "")) { // C:// is a drive
		return source{}, "", usage("%s:// is not a kind of source; a file of this name is written as ./%s", scheme, text)
	}
	return source{open: openPath, path: func(arg string) (string, error) { return arg, nil }}, text, nil
}

// notYet is a source that is refused before anything is opened.
func notYet(what string) func(context.Context, string, Options) (input, error) {
	return func(context.Context, string, Options) (input, error) {
		return input{}, usage("%s are not supported by this version", what)
	}
}

// sized is a source that needs nothing but its size.
func sized(make func(int64) block.Device) func(context.Context, string, Options) (input, error) {
	return func(_ context.Context, arg string, o Options) (input, error) {
		if arg == "" {
			return input{}, usage("a size has to stand behind the colon, as in memory:1G")
		}
		n, err := sizes.ParseSize(arg)
		if err != nil {
			return input{}, &UsageError{err}
		}
		dev := make(n)
		if o.Write && !dev.Info().Caps.Write {
			return input{}, block.ErrReadOnly
		}
		return input{dev: dev}, nil
	}
}

func openFileURL(ctx context.Context, arg string, o Options) (input, error) {
	path, err := filePath(arg)
	if err != nil {
		return input{}, err
	}
	return openPath(ctx, path, o)
}

// filePath returns the path that a file:// URL means (RFC 8089); arg is what follows the two slashes.
func filePath(arg string) (string, error) {
	u, err := url.Parse(filePrefix + arg)
	switch {
	case err != nil:
		return "", &UsageError{err}
	case u.Host != "" && !strings.EqualFold(u.Host, "localhost"):
		return "", usage("file://%s names a file of another host; a local path begins with a third slash", arg)
	case u.RawQuery != "" || u.Fragment != "" || u.Path == "":
		return "", usage("file://%s is not the URL of a path; ? is written %%3F and # is written %%23", arg)
	}
	if runtime.GOOS == "windows" {
		return filepath.FromSlash(strings.TrimPrefix(u.Path, "/")), nil
	}
	return u.Path, nil
}

func openPath(ctx context.Context, path string, o Options) (input, error) {
	d, err := file.Open(ctx, path, o.file())
	if errors.Is(err, file.ErrNotSeekable) && !o.Write {
		return openPipe(ctx, path)
	}
	if err != nil {
		return input{}, err
	}
	return fileInput(d, path)
}

// fileInput describes an open file.
func fileInput(d *file.Device, path string) (input, error) {
	stat, err := d.File().Stat()
	if err != nil {
		return input{}, errors.Join(err, d.Close())
	}
	return input{dev: block.Align(d, 0), path: path, stat: stat}, nil
}

// openPipe opens a FIFO or what behaves like one. It waits for the other end.
func openPipe(ctx context.Context, path string) (input, error) {
	s, err := file.OpenStream(ctx, path, false)
	if err != nil {
		return input{}, err
	}
	stat, err := s.Stat()
	if err != nil {
		return input{}, errors.Join(bare(err), s.Close())
	}
	return input{reader: bufio.NewReaderSize(s, formats.HeadSize), close: s, stat: stat}, nil
}

// openStandard opens standard input: as a device where it is a file that stands at its beginning, else as a pipe.
func openStandard(_ context.Context, _ string, o Options) (input, error) {
	f := o.Stdin
	if f == nil {
		f = os.Stdin
	}
	if o.Write {
		return input{}, usage("standard input cannot be written")
	}
	if off, err := f.Seek(0, io.SeekCurrent); err == nil && off == 0 {
		if d, err := file.New(f, o.file()); err == nil {
			return fileInput(d, "")
		}
	}
	stat, err := f.Stat()
	if err != nil {
		return input{}, bare(err)
	}
	return input{reader: bufio.NewReaderSize(f, formats.HeadSize), stat: stat}, nil
}

// bare returns what is wrong without the name of the file, which this package puts before every error.
func bare(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return fmt.Errorf("%s: %w", p.Op, p.Err)
	}
	return err
}
