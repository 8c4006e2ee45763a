package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/cmd/imgtool/qemuimg"
	"github.com/imgtool/imgtool/convert"
	"github.com/imgtool/imgtool/formats"
)

// finishQemuImg is finish for qemu-img: its texts, and its exit codes only.
func (a *app) finishQemuImg(err error) int {
	var own *codeError
	code := exitFailed
	switch {
	case errors.Is(err, context.Canceled):
		code, err = exitInterrupted, errors.New("interrupted")
	case errors.As(err, &own) && a.qemu.Command == "convert" && own.code == exitSalvaged: // as asked for with --salvage; the log has told it
		return exitDone
	case errors.As(err, &own):
		code = own.code
	}
	var misused *qemuimg.Error
	switch {
	case err == nil:
		return exitDone
	case own != nil && own.err == nil, isBrokenPipe(err):
		return code
	case errors.As(err, &misused):
		code = misused.Exit
	}
	fmt.Fprintf(a.stderr, "qemu-img: %s\n", a.qemuText(err))
	if misused != nil && misused.Try {
		fmt.Fprintln(a.stderr, "Try 'qemu-img --help' for more information")
	}
	return code
}

// qemuText returns an error in the words that qemu-img has for it, as far as callers match on them.
func (a *app) qemuText(err error) string {
	var misused *qemuimg.Error
	if errors.As(err, &misused) {
		return misused.Text
	}
	if text := a.qemuCommandText(err); text != "" {
		return text
	}
	var notYet *chain.UsageError
	for source, typed := range a.qemu.Typed {
		if errors.As(err, &notYet) && strings.Contains(source, "://") { // a URL that this version has no source for
			return fmt.Sprintf("Could not open '%s': %s", typed, message(err))
		}
	}
	var at *convert.Error
	if errors.As(err, &at) && at.Op != convert.Describe {
		if a.qemu.Command == "compare" {
			return fmt.Sprintf("Error while reading offset %d of %s: %s", at.Off, a.nameOf(at.Err), strerror(at.Err))
		}
		return fmt.Sprintf("error while %s at byte %d: %s", map[string]string{convert.Read: "reading", convert.Write: "writing"}[at.Op], at.Off, strerror(at.Err))
	}
	var named *chain.Error
	if !errors.As(err, &named) {
		return message(err)
	}
	outer := named
	for inner := (*chain.Error)(nil); errors.As(outer.Err, &inner); outer = inner {
		named = inner
	}
	cause := a.qemuCause(named)
	errors.As(err, &outer)
	switch {
	case !outer.Opening && !named.Opening && !(a.qemu.Creates && slices.Contains(a.qemu.Written, named.Name)) && !errors.Is(err, block.ErrBusy) && !errors.Is(err, block.ErrNotFormat):
		return a.typed(named.Name) + ": " + strerror(named.Err)
	case outer == named, a.qemu.Command == "info":
		return a.qemuOpening(named.Name, cause)
	}
	return a.qemuOpening(outer.Name, "Could not open backing file: "+cause)
}

// qemuOpening says that an image cannot be opened, or made where it is the target.
func (a *app) qemuOpening(name, cause string) string {
	typed := a.typed(name)
	target := slices.Contains(a.qemu.Written, name)
	switch {
	case a.qemu.Command == "create" && !target:
		return fmt.Sprintf("%s: %s\nCould not open backing image.", a.qemu.Typed[a.qemu.Written[0]], cause)
	case a.qemu.Command == "rebase" && !target:
		return fmt.Sprintf("Could not open new backing file '%s': %s", a.qemu.Operand, cause)
	case a.qemu.Command == "create":
		return typed + ": " + strings.Replace(cause, "Could not open", "Could not create", 1)
	case target && a.qemu.Command == "convert" && a.qemu.Creates:
		return fmt.Sprintf("%s: error while converting %s: %s", typed, a.qemu.Format, strings.Replace(cause, "Could not open", "Could not create", 1))
	}
	return fmt.Sprintf("Could not open '%s': %s", typed, cause)
}

// nameOf returns what the user has called the image that an error is of; "" where it does not say.
func (a *app) nameOf(err error) string {
	var named *chain.Error
	if !errors.As(err, &named) {
		return ""
	}
	return a.typed(named.Name)
}

// typed returns what the user has called a file.
func (a *app) typed(name string) string {
	return cmp.Or(a.qemu.Typed[name], name)
}

// qemuCause says what is wrong with an image.
func (a *app) qemuCause(e *chain.Error) string {
	var errno syscall.Errno
	switch {
	case errors.Is(e.Err, syscall.EISDIR) && !slices.Contains(a.qemu.Written, e.Name):
		return fmt.Sprintf("'file' driver requires '%s' to be a regular file", e.Name)
	case errors.Is(e.Err, block.ErrBusy):
		lock := `shared "write"`
		if slices.Contains(a.qemu.Written, e.Name) {
			lock = `"write"`
		}
		return lockText(lock, e.Name)
	case errors.Is(e.Err, block.ErrKey) && len(a.qemu.Secrets) == 0:
		return "Parameter 'encrypt.key-secret' is required for cipher"
	case errors.Is(e.Err, block.ErrNotFormat):
		return fmt.Sprintf("Image is not in %s format", a.qemu.Formats[e.Name])
	case errors.Is(e.Err, fs.ErrNotExist), errors.As(e.Err, &errno) && !errors.Is(e.Err, errors.ErrUnsupported):
		return fmt.Sprintf("Could not open '%s': %s", e.Name, strerror(e.Err))
	}
	return message(e.Err)
}

// strerror returns the text that the C library has for the cause of an error.
func strerror(err error) string {
	var errno syscall.Errno
	var named *chain.Error
	text := ""
	switch {
	case errors.As(err, &errno):
		text = errno.Error()
	case errors.Is(err, fs.ErrNotExist):
		text = syscall.ENOENT.Error()
	case errors.As(err, &named):
		return message(named.Err)
	default:
		return message(err)
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

// qemuCommandText returns what a command of qemu-img says of an error, or "" where it has no words of its own.
func (a *app) qemuCommandText(err error) string {
	q := a.qemu
	var named *chain.Error
	var lack *lackError
	var errno syscall.Errno
	opened := !errors.As(err, &errno) && !errors.Is(err, block.ErrBusy) // and not found wanting by the system
	missing := opened && errors.Is(err, fs.ErrNotExist)
	unsupported := opened && errors.Is(err, errors.ErrUnsupported)
	lacking := errors.As(err, &lack)
	switch q.Command {
	case "map":
		if errors.Is(err, errNotPlain) {
			return "File contains external, encrypted or compressed clusters."
		}
	case "check":
		if unsupported {
			return "This image format does not support checks"
		}
	case "resize":
		return resizeText(err, q.Action, unsupported)
	case "snapshot":
		return snapshotText(q.Action, q.Operand, missing, lacking)
	case "bitmap":
		return bitmapText(err, q, missing)
	case "rebase":
		if lacking {
			return fmt.Sprintf("Could not change the backing file to '%s': Operation not supported", q.Operand)
		}
	case "commit":
		switch {
		case errors.Is(err, block.ErrBusy) && errors.As(err, &named) && named.Name != q.Written[0]:
			return lockText(`"write"`, named.Name)
		case errors.Is(err, errNoBacking):
			return "Image does not have a backing file"
		case errors.Is(err, errNotBelow):
			return fmt.Sprintf("Did not find '%s' in the backing chain of '%s'", q.Operand, q.Typed[q.Written[0]])
		}
	case "convert", "create", "measure":
		return makingText(err, q, missing, unsupported)
	case "amend":
		if lacking {
			return fmt.Sprintf("Format driver '%s' does not support option amendment", lack.format)
		}
		if opened {
			return a.amendText(err)
		}
	}
	return ""
}

func lockText(lock, name string) string {
	return fmt.Sprintf("Failed to get %s lock\nIs another process using the image [%s]?", lock, name)
}

func resizeText(err error, preallocation string, unsupported bool) string {
	switch {
	case errors.Is(err, errShorter):
		return "Use the --shrink option to perform a shrink operation.\nqemu-img: warning: Shrinking an image will delete all data beyond the shrunken image's end. " +
			"Before performing such an operation, make sure there is no important data there."
	case errors.Is(err, errNotSectors):
		return fmt.Sprintf("The new size must be a multiple of %d", sectorSize)
	case errors.Is(err, errNotPositive):
		return "New image size must be positive"
	case errors.Is(err, errPreallocate):
		return "Preallocation can only be used for growing images"
	case unsupported && preallocation != "" && preallocation != string(formats.PreallocOff):
		return "Unsupported preallocation mode: " + preallocation
	case unsupported:
		return "Image format driver does not support resize"
	}
	return ""
}

// makingText is for the commands that may read a snapshot, or make an image.
func makingText(err error, q *qemuimg.Call, missing, unsupported bool) string {
	var lack *lackError
	lacking := errors.As(err, &lack)
	mode := q.Options["preallocation"]
	switch {
	case q.Action != "" && lacking:
		return "Source lacks bitmap support"
	case len(q.Written) > 0 && !q.Creates && errors.As(err, new(*block.RangeError)):
		return "output file is smaller than input file"
	case q.Operand != "" && missing:
		return "Failed to load snapshot: Can't find snapshot"
	case q.Operand != "" && lacking:
		return fmt.Sprintf("Failed to load snapshot: Block format '%s' used by device '' does not support temporarily loading internal snapshots", lack.format)
	case mode == "" || !unsupported || len(q.Written) == 0:
		return ""
	case q.Command == "create":
		return fmt.Sprintf("%s: Unsupported preallocation mode: %s", q.Typed[q.Written[0]], mode)
	}
	return fmt.Sprintf("%s: error while converting %s: Unsupported preallocation mode: %s", q.Typed[q.Written[0]], q.Format, mode)
}

func snapshotText(action, name string, missing, lacking bool) string {
	switch {
	case action == "create" && lacking:
		return fmt.Sprintf("Could not create snapshot '%s': -95 (Operation not supported)", name)
	case action == "apply" && lacking:
		return fmt.Sprintf("Could not apply snapshot '%s': Block driver does not support snapshots", name)
	case action == "apply" && missing:
		return fmt.Sprintf("Could not apply snapshot '%s': Failed to load snapshot: No such file or directory", name)
	case action == "delete" && (missing || lacking):
		return fmt.Sprintf("Could not delete snapshot '%s': snapshot not found", name)
	}
	return ""
}

// amendText returns the text for options that cannot be changed, of an image that could be opened.
func (a *app) amendText(err error) string {
	var newOnly *newOnlyError
	errors.As(err, &newOnly)
	for _, name := range slices.Sorted(maps.Keys(a.qemu.Options)) {
		known := func(d formats.Driver) bool { return hasOption(&d, name) }
		value := a.qemu.Options[name]
		switch {
		case !slices.ContainsFunc(a.registry(), known):
			return fmt.Sprintf("Invalid parameter '%s'", name)
		case newOnly != nil && newOnly.option == name:
			return fmt.Sprintf("Invalid parameter '%s'\nThis option is only supported for image creation", name)
		case name == "lazy_refcounts" && value != "on" && value != "off":
			return fmt.Sprintf("Parameter '%s' expects 'on' or 'off'", name)
		case name == "compat" && !slices.Contains([]string{"0.10", "v2", "1.1", "v3"}, value):
			return "Unknown compatibility level " + value
		case name == "data_file_raw" && value == "on":
			return "data-file-raw cannot be set on existing images"
		case name == "refcount_bits" && !slices.Contains([]string{"1", "2", "4", "8", "16", "32", "64"}, value):
			return "Refcount width must be a power of two and may not exceed 64 bits"
		}
	}
	return ""
}

// bitmapText returns the text for an error that says which action it was.
func bitmapText(err error, q *qemuimg.Call, missing bool) string {
	text := err.Error()
	for _, action := range []string{"add", "remove", "clear", "enable", "disable", "merge"} {
		_, why, found := strings.Cut(text, fmt.Sprintf("%s bitmap %q: ", action, q.Operand))
		switch {
		case !found:
			continue
		case errors.Is(err, fs.ErrExist):
			why = "Bitmap already exists: " + q.Operand
		case missing && action == "merge":
			why = fmt.Sprintf("Dirty bitmap '%s' not found", q.Source)
		case missing:
			why = fmt.Sprintf("Dirty bitmap '%s' not found", q.Operand)
		}
		return fmt.Sprintf("Operation %s on bitmap %s failed: %s", action, q.Operand, why)
	}
	if errors.As(err, new(*lackError)) {
		return fmt.Sprintf("Operation %s on bitmap %s failed: Can't store persistent bitmaps: Operation not supported", q.Action, q.Operand)
	}
	return ""
}
