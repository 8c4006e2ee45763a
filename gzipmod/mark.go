package gzipmod

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/imgtool/imgtool/block"
)

// Mark keeps a small journal beside an image, in which a change is announced before it begins: it says how the file was and which blocks
// may differ. It lies outside the image because not every container has room for it inside.
//
// What Save and Append were given is durable when they return. Methods are called by one goroutine at a time.
type Mark interface {
	// Load returns the journal, or nil where there is none.
	Load(ctx context.Context) ([]byte, error)
	// Save starts a new journal.
	Save(ctx context.Context, p []byte) error
	// Append adds to the journal that Save started.
	Append(ctx context.Context, p []byte) error
	// Clear removes the journal. It need not be durable: a journal that comes back is still true.
	Clear(ctx context.Context) error
}

// MarkSuffix is what FileMark appends to an image's name.
const MarkSuffix = ".imgtool-mark"

// FileMark returns the Mark of the image at path: a file beside it, which exists only while a change is under way. Where path is a symbolic
// link it lies beside the image itself, so that it is found under every name of the image.
func FileMark(path string) Mark {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return &fileMark{path: path + MarkSuffix}
}

type fileMark struct {
	path string
	mu   sync.Mutex
	f    *os.File
}

const saveHint = "while an image is changed a small file lies beside it: its folder must be writable, and have room for it"

// maxMark bounds what is read of a mark: the blocks of 3 TiB of kept ranges.
const maxMark = 1 << 30

func (m *fileMark) Load(context.Context) ([]byte, error) {
	if there, err := m.stat(); err != nil || !there {
		return nil, err
	}
	p, err := os.ReadFile(m.path)
	if len(p) == 0 && err == nil {
		p = []byte{} // it exists
	}
	return p, err
}

// stat reports whether there is a file that may be a mark. It can be asked by those who may not read the mark.
func (m *fileMark) stat() (bool, error) {
	st, err := os.Lstat(m.path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENAMETOOLONG) { // the image's name may leave no room for the suffix
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxMark {
		return false, block.WithHint(fmt.Errorf("%s is not a mark of an unfinished change: %d bytes, %v", m.path, st.Size(), st.Mode()),
			"something else has this name: move it away")
	}
	return true, nil
}

func (m *fileMark) Save(_ context.Context, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	// There is none, since an image with a mark is not opened for writing.
	f, err := os.OpenFile(m.path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return block.WithHint(err, saveHint)
	}
	_, err = f.Write(p)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(filepath.Dir(m.path))
	}
	if err != nil {
		return block.WithHint(errors.Join(err, f.Close(), os.Remove(m.path)), saveHint)
	}
	m.f = f
	return nil
}

func (m *fileMark) Append(_ context.Context, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.f == nil {
		return fs.ErrClosed
	}
	if _, err := m.f.Write(p); err != nil {
		return err
	}
	return m.f.Sync()
}

func (m *fileMark) Clear(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.f != nil {
		_ = m.f.Close() // what it held does not matter any more; open files cannot be removed everywhere
		m.f = nil
	}
	if err := os.Remove(m.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncDir makes the names in a directory durable, where the system can.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return nil // a directory that can be written but not read
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrInvalid) {
		return err
	}
	return nil
}

// Marked reports whether there is a mark: whether a change was interrupted, or is under way. m may be nil; then it is not known to be.
func Marked(ctx context.Context, m Mark) (bool, error) {
	switch m := m.(type) {
	case nil:
		return false, nil
	case *fileMark:
		return m.stat()
	}
	p, err := m.Load(ctx)
	return p != nil, err
}

// A journal is a base and batches, all little-endian:
//
//	base   "IMGMARK1", u64 size of the file, u32 length of the header, the gzip header as it was, u32 CRC-32 of all this
//	batch  u32 number of records, the records, u32 CRC-32 of both
//	record u32 region, u32 stored block in the region, u32 CRC-32 of the block's data as it was
const (
	markMagic = "IMGMARK1"
	recordLen = 12
)

// record says that a stored block may have changed, and how it was.
type record struct {
	region, block uint32
	crc           uint32
}

func appendSum(p []byte, from int) []byte {
	return binary.LittleEndian.AppendUint32(p, crc32.ChecksumIEEE(p[from:]))
}

func marshalBase(fileSize int64, header []byte) []byte {
	le := binary.LittleEndian
	p := le.AppendUint64([]byte(markMagic), uint64(fileSize))
	p = le.AppendUint32(p, uint32(len(header)))
	return appendSum(append(p, header...), 0)
}

func marshalBatch(p []byte, records []record) []byte {
	le, from := binary.LittleEndian, len(p)
	p = le.AppendUint32(p, uint32(len(records)))
	for _, r := range records {
		p = le.AppendUint32(p, r.region)
		p = le.AppendUint32(p, r.block)
		p = le.AppendUint32(p, r.crc)
	}
	return appendSum(p, from)
}

// journal is what a mark holds.
type journal struct {
	fileSize int64
	header   []byte
	records  []record // the first of a block counts
}

// parseJournal reads a journal. It returns nil where the base is not whole: then no change had begun. A batch that is not whole
// ends it: the change that it announces had not begun.
func parseJournal(p []byte) *journal {
	le := binary.LittleEndian
	const fixed = len(markMagic) + 12
	if len(p) < fixed || string(p[:len(markMagic)]) != markMagic {
		return nil
	}
	n := int64(le.Uint32(p[fixed-4:]))
	if int64(len(p)-fixed) < n+4 {
		return nil
	}
	end := fixed + int(n)
	if crc32.ChecksumIEEE(p[:end]) != le.Uint32(p[end:]) {
		return nil
	}
	j := &journal{fileSize: int64(le.Uint64(p[len(markMagic):])), header: p[fixed:end]}
	for p = p[end+4:]; len(p) >= 8; {
		n := int64(le.Uint32(p))
		end := 4 + n*recordLen
		if int64(len(p)) < end+4 || crc32.ChecksumIEEE(p[:end]) != le.Uint32(p[end:]) {
			break
		}
		for q := p[4:end]; len(q) > 0; q = q[recordLen:] {
			j.records = append(j.records, record{le.Uint32(q), le.Uint32(q[4:]), le.Uint32(q[8:])})
		}
		p = p[end+4:]
	}
	return j
}

// NoMark is the Mark of a file that is thrown away if its change is interrupted, such as a copy that has no name yet.
type NoMark struct{}

// Load returns nil.
func (NoMark) Load(context.Context) ([]byte, error) { return nil, nil }

// Save does nothing.
func (NoMark) Save(context.Context, []byte) error { return nil }

// Append does nothing.
func (NoMark) Append(context.Context, []byte) error { return nil }

// Clear does nothing.
func (NoMark) Clear(context.Context) error { return nil }
