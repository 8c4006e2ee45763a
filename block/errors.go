package block

import (
	"errors"
	"fmt"
)

var (
	// ErrReadOnly: the device, or this range of it, cannot be written.
	ErrReadOnly = errors.New("read-only")
	// ErrNotFormat: these bytes are not an image of this format; a prober goes on to the next.
	ErrNotFormat = errors.New("not an image of this format")
	// ErrDenied: a policy refuses what an image refers to.
	ErrDenied = errors.New("refused by policy")
	// ErrKey: no passphrase or key given opens the device.
	ErrKey = errors.New("wrong key")
	// ErrBusy: another program, or the running system, holds the device.
	ErrBusy = errors.New("in use")
)

// RangeError says that a request leaves the device.
type RangeError struct {
	Off, Len int64 // the request
	Size     int64 // of the device, in bytes
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("range at byte %d, length %d, is outside the device of %d bytes", e.Off, e.Len, e.Size)
}

// CorruptError says which part of an image contradicts its format, and where.
type CorruptError struct {
	Format string // the driver's name: gz, qcow2
	Part   string // the structure, in the specification's words: header, trailer, L1 table
	Off    int64  // byte offset in the image file; -1 where there is none
	Err    error  // what is wrong
}

func (e *CorruptError) Error() string {
	if e.Off < 0 {
		return fmt.Sprintf("%s: corrupt %s: %v", e.Format, e.Part, e.Err)
	}
	return fmt.Sprintf("%s: corrupt %s at byte %d: %v", e.Format, e.Part, e.Off, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// Corrupt returns a CorruptError whose cause is formatted as by fmt.Errorf.
func Corrupt(format, part string, off int64, cause string, args ...any) error {
	return &CorruptError{Format: format, Part: part, Off: off, Err: fmt.Errorf(cause, args...)}
}

// Hint adds to err what the user can do about it. The command line prints it on a line of its own.
type Hint struct {
	Err  error
	Text string
}

func (h *Hint) Error() string { return h.Err.Error() }
func (h *Hint) Unwrap() error { return h.Err }

// WithHint returns err with a hint, or nil for a nil err.
func WithHint(err error, text string) error {
	if err == nil {
		return nil
	}
	return &Hint{Err: err, Text: text}
}

// kindError is an error of a kind that its text does not mention.
type kindError struct{ err, kind error }

func (e *kindError) Error() string   { return e.err.Error() }
func (e *kindError) Unwrap() []error { return []error{e.err, e.kind} }

// ErrorOf returns an error whose text is formatted as by fmt.Errorf, and for which errors.Is(err, kind) holds: for what a sentence says better than
// the text of kind, such as that of errors.ErrUnsupported or fs.ErrNotExist, behind it would.
func ErrorOf(kind error, format string, args ...any) error {
	return &kindError{fmt.Errorf(format, args...), kind}
}
