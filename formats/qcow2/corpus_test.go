package qcow2

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/check"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/source/file"
)

// corpusEntry is a row of the manifest.
type corpusEntry struct {
	File, Wrap, Format, Expect string
	Size                       int64  `json:"virtual_size"`
	Sum                        string `json:"sparse64k_sha256"`
	Deps                       []string
}

// TestCorpus reads the images of the corpus: good ones as they should be, and none that is damaged or wants too much.
func TestCorpus(t *testing.T) {
	dir := peers.Corpus(t)
	p, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	ok(t, err)
	var manifest []corpusEntry
	ok(t, json.Unmarshal(p, &manifest))
	wraps := map[string]string{}
	for _, e := range manifest {
		wraps[strings.TrimSuffix(e.File, ".gz")] = e.Wrap
	}
	seen := 0
	for _, e := range manifest {
		if e.Format != Name {
			continue
		}
		seen++
		t.Run(e.File, func(t *testing.T) {
			path := unwrap(t, dir, e, wraps)
			sum, size, err := readCorpus(path)
			judge(t, e, sum, size, err)
			if strings.HasPrefix(e.Expect, "check-") {
				f, err := file.Open(ctx, path, file.Options{})
				ok(t, err)
				defer f.Close()
				res, err := check.Check(ctx, f, formats.CheckOptions{})
				if bad := res.Corruptions+res.CheckErrors > 0; err != nil || bad != (e.Expect == "check-error") || !bad && res.Leaks == 0 {
					t.Errorf("check: %+v, %v", res, err)
				}
			}
		})
	}
	if seen < 50 {
		t.Errorf("the corpus has %d images", seen)
	}
}

// unwrap puts an image and what it needs into a folder, and returns its path there.
func unwrap(t *testing.T, dir string, e corpusEntry, wraps map[string]string) string {
	t.Helper()
	to := t.TempDir()
	for _, name := range append([]string{e.File}, e.Deps...) {
		plain := strings.TrimSuffix(name, ".gz")
		from, err := os.Open(filepath.Join(dir, plain))
		if wraps[plain] == "gz" {
			from, err = os.Open(filepath.Join(dir, plain+".gz"))
		}
		ok(t, err)
		defer from.Close()
		var r io.Reader = from
		if wraps[plain] == "gz" {
			r, err = gzip.NewReader(from)
			ok(t, err)
		}
		f, err := os.Create(filepath.Join(to, filepath.Base(plain)))
		ok(t, err)
		_, err = io.Copy(f, r)
		ok(t, err)
		ok(t, f.Close())
	}
	return filepath.Join(to, filepath.Base(strings.TrimSuffix(e.File, ".gz")))
}

// guarded opens references as the command line does, by the formats that stand in the images.
func guarded(ctx context.Context, ref formats.Ref, write bool) (block.Device, error) {
	if err := formats.Gate(formats.DirGate).Ask(ctx, ref); err != nil {
		return nil, err
	}
	if ref.Format != Name && ref.Format != "raw" {
		return nil, errors.ErrUnsupported
	}
	return follow(ctx, ref, write)
}

// readCorpus returns the sum that the manifest has of an image's content.
func readCorpus(path string) (sum string, size int64, err error) {
	f, err := file.Open(ctx, path, file.Options{})
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	d, err := Open(ctx, block.NoClose(f), formats.OpenOptions{Name: path, Refer: guarded})
	if err != nil {
		return "", 0, err
	}
	defer d.Close()
	h := sha256.New()
	var list []block.Extent
	last := int64(-1) // block of 64 KiB that was read last
	for off := int64(0); off < d.Size(); off = list[len(list)-1].End() {
		if list, err = d.Extents(ctx, block.Map{}, off, d.Size()-off, list[:0]); err != nil {
			return "", 0, err
		}
		for _, e := range list {
			if e.Flags&block.ExtZero != 0 {
				continue
			}
			for at := max(block.RoundDown(e.Off, 64<<10), (last+1)<<16); at < e.End(); at += 64 << 10 {
				last = at >> 16
				p := make([]byte, min(64<<10, d.Size()-at))
				if err := d.Read(ctx, p, at); err != nil {
					return "", 0, err
				}
				if !block.IsZero(p) {
					h.Write(binary.BigEndian.AppendUint64(nil, uint64(at)))
					h.Write(p)
				}
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)), d.Size(), nil
}

// judge compares what became of an image with what the manifest expects.
func judge(t *testing.T, e corpusEntry, sum string, size int64, err error) {
	t.Helper()
	var corrupt *block.CorruptError
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errors.ErrUnsupported) && e.Expect != "error" {
		t.Skip(err) // not all that images refer to is in the corpus
	}
	switch e.Expect {
	case "ok", "check-error", "check-leak":
		if err != nil || size != e.Size || e.Sum != "" && sum != e.Sum {
			t.Errorf("%d bytes, %s, %v; want %d, %s", size, sum, err, e.Size, e.Sum)
		}
	case "error":
		if !errors.As(err, &corrupt) && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%v, want an error that says what is wrong", err)
		}
	case "policy-error":
		if !errors.Is(err, block.ErrDenied) {
			t.Errorf("%v, want %v", err, block.ErrDenied)
		}
	default:
		t.Errorf("the manifest expects %q", e.Expect)
	}
}
