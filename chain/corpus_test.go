package chain

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/all"
	"github.com/imgtool/imgtool/internal/peers"
)

// corpusFormats are the formats of the corpus that are expected to be as its manifest says.
var corpusFormats = []string{"qcow2", "qcow"}

// corpusRow is a row of the corpus's manifest.
type corpusRow struct {
	File, Format, Expect, Note string
	corpusContent
	Snapshots map[string]corpusContent
}

// corpusContent is what an image, or a snapshot in it, holds.
type corpusContent struct {
	Size   int64  `json:"virtual_size"`
	Sum    string `json:"sparse64k_sha256"`
	Blocks int    `json:"nonzero_64k_blocks"`
}

// incomplete are rows whose images refer to files that the corpus has not.
var incomplete = []string{"hostile/b-loop-a.qcow2.gz", "reference-tools/chain-mid.qcow2"}

// TestCorpus opens images that other people made, good ones and hostile ones.
func TestCorpus(t *testing.T) {
	var rows []corpusRow
	corpus := peers.OpenCorpus(t, &rows)
	seen := 0
	for _, r := range rows {
		if !slices.Contains(corpusFormats, r.Format) {
			continue
		}
		seen++
		t.Run(r.File, func(t *testing.T) {
			path := corpus.Unwrap(t, r.File)
			if r.File == "reference-tools/q3-datafile-on.qcow2" { // its data file is not there, but what it holds is
				writeRaw(t, corpus.Unwrap(t, "reference-tools/q3-cs64k.qcow2.gz"), filepath.Join(filepath.Dir(path), "q3-datafile-on.bin"))
			}
			r.test(t, path)
		})
	}
	if seen < 50 {
		t.Errorf("the corpus has %d images of %v", seen, corpusFormats)
	}
}

// test checks that the image at path is as the row says.
func (r corpusRow) test(t *testing.T, path string) {
	content, err := readCorpus(t, path)
	switch r.Expect {
	case "error":
		if err == nil {
			t.Errorf("it is read without an error: %s", r.Note)
		} else if errors.Is(err, block.ErrDenied) {
			t.Errorf("it is refused by policy: %v", err)
		}
		return
	case "policy-error":
		if !errors.Is(err, block.ErrDenied) && !(errors.Is(err, fs.ErrNotExist) && slices.Contains(incomplete, r.File)) {
			t.Errorf("%v, want a refusal", err)
		}
		return
	}
	if slices.Contains(incomplete, r.File) {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v, want that a file is missing", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if content != r.corpusContent {
		t.Errorf("it holds %+v, want %+v", content, r.corpusContent)
	}
	for name, want := range r.Snapshots {
		if got, err := readCorpus(t, path+"::qcow2,snapshot="+name); err != nil || got != want {
			t.Errorf("snapshot %s holds %+v, %v; want %+v", name, got, err, want)
		}
	}
	r.check(t, path)
}

// check runs the format's own check, where it has one and the row says what it finds.
func (r corpusRow) check(t *testing.T, path string) {
	d := all.Drivers().Lookup(r.Format)
	if d.Check == nil || r.Expect == "ok" && strings.HasPrefix(r.File, "cdi/") {
		return
	}
	img, err := Open(t.Context(), path+"::raw", Options{Registry: all.Drivers()})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	res, err := d.Check(t.Context(), img.Device, formats.CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if corrupt, leaks := res.Corruptions > 0, res.Leaks > 0; corrupt != (r.Expect == "check-error") || leaks != (r.Expect == "check-leak") && !corrupt {
		t.Errorf("the check finds %+v, want %s: %s", res, r.Expect, r.Note)
	}
}

// readCorpus reads all of an image as a user would who does not trust it.
func readCorpus(t *testing.T, text string) (corpusContent, error) {
	ctx := t.Context()
	img, err := Open(ctx, text, Options{Registry: all.Drivers(), Gate: formats.DirGate})
	if err != nil {
		return corpusContent{}, err
	}
	defer img.Close()
	if img.Format() == "raw" {
		return corpusContent{}, errors.New("it is taken for a raw image")
	}
	content := corpusContent{Size: img.Device.Size()}
	sum := sha256.New()
	err = eachBlock(ctx, img.Device, func(off int64, p []byte) {
		if block.IsZero(p) {
			return
		}
		content.Blocks++
		sum.Write(binary.BigEndian.AppendUint64(nil, uint64(off)))
		sum.Write(p)
	})
	content.Sum = hex.EncodeToString(sum.Sum(nil))
	return content, err
}

// eachBlock calls f for each block of 64 KiB, the last of which may be shorter, that is not known to be zero.
func eachBlock(ctx context.Context, d block.Device, f func(off int64, p []byte)) error {
	const unit = 64 << 10
	buf := make([]byte, unit)
	for off := int64(0); off < d.Size(); {
		ext, err := d.Extents(ctx, block.Map{}, off, d.Size()-off, nil)
		if err != nil {
			return err
		}
		if e := ext[0]; e.Flags&block.ExtZero != 0 && e.Len >= unit {
			off = block.RoundDown(e.End(), unit)
			if e.End() == d.Size() {
				off = d.Size()
			}
			continue
		}
		p := buf[:min(unit, d.Size()-off)]
		if err := d.Read(ctx, p, off); err != nil {
			return err
		}
		f(off, p)
		off += int64(len(p))
	}
	return nil
}

// writeRaw writes what the image at path holds to a raw file.
func writeRaw(t *testing.T, path, raw string) {
	t.Helper()
	img, err := Open(t.Context(), path, Options{Registry: all.Drivers()})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	out, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := out.Truncate(img.Device.Size()); err != nil {
		t.Fatal(err)
	}
	err = eachBlock(t.Context(), img.Device, func(off int64, p []byte) {
		if _, err := out.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
