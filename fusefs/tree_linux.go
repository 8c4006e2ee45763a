package fusefs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/imgtool/imgtool/block"
)

// Numbers of the two files. Where the mount point is a file, it is the root.
const (
	rootNode = fuse.FUSE_ROOT_ID
	diskNode = rootNode + 1
)

// valid is how long the kernel may keep what it knows of the files; only times and space ever change.
const valid = time.Second

// tree is the file system. The kernel calls its methods from many goroutines.
type tree struct {
	fuse.RawFileSystem
	ctx      context.Context // of all calls to the device
	dev      block.Device
	size     int64
	name     string // of the file in the root; "" where the root is the file
	writable bool
	mode     uint32 // permissions of the file
	log      *slog.Logger
	made     time.Time
	changed  atomic.Int64 // when the content last changed, in nanoseconds of Unix time
	space    space

	failing sync.Mutex
	last    string // failure that was logged last
}

func newTree(ctx context.Context, dev block.Device, o Options, log *slog.Logger) *tree {
	t := &tree{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), ctx: ctx, dev: dev, size: dev.Size(), log: log, made: time.Now(),
		writable: dev.Info().Caps.Write && !o.ReadOnly, mode: 0o600,
	}
	t.changed.Store(t.made.UnixNano())
	if o.AllowOther {
		t.mode = 0o666
	}
	if !t.writable {
		t.mode &^= 0o222
	}
	return t
}

// isDisk reports whether a node is the file, and not the folder around it.
func (t *tree) isDisk(node uint64) bool { return node == diskNode || t.name == "" }

// attr describes a node.
func (t *tree) attr(node uint64) fuse.Attr {
	a := fuse.Attr{Ino: node, Mode: unix.S_IFDIR | 0o755, Nlink: 2, Blksize: 4096}
	a.Owner = fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
	at := t.made
	if t.isDisk(node) {
		at = time.Unix(0, t.changed.Load())
		a.Mode, a.Nlink, a.Size, a.Blocks = unix.S_IFREG|t.mode, 1, uint64(t.size), uint64(t.blocks())
		a.Blksize = uint32(min(max(t.dev.Info().PreferredBlock, 4096), maxRequest))
	}
	a.SetTimes(&at, &at, &at)
	return a
}

// Lookup implements fuse.RawFileSystem.
func (t *tree) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if t.isDisk(in.NodeId) || name != t.name {
		return fuse.ENOENT
	}
	out.NodeId, out.Attr = diskNode, t.attr(diskNode)
	out.SetAttrTimeout(valid)
	out.SetEntryTimeout(24 * time.Hour)
	return fuse.OK
}

// GetAttr implements fuse.RawFileSystem.
func (t *tree) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.Attr = t.attr(in.NodeId)
	out.SetTimeout(valid)
	return fuse.OK
}

// SetAttr accepts new times, which it does not keep, and the length that the file has.
func (t *tree) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	const owner = fuse.FATTR_MODE | fuse.FATTR_UID | fuse.FATTR_GID
	size, resize := in.GetSize()
	if in.Valid&owner != 0 || resize && (!t.isDisk(in.NodeId) || size != uint64(t.size)) {
		return fuse.EPERM
	}
	out.Attr = t.attr(in.NodeId)
	out.SetTimeout(valid)
	return fuse.OK
}

// OpenDir implements fuse.RawFileSystem.
func (t *tree) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

// ReadDir lists the file.
func (t *tree) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	entries := []fuse.DirEntry{
		{Name: ".", Ino: rootNode, Mode: unix.S_IFDIR},
		{Name: "..", Ino: rootNode, Mode: unix.S_IFDIR},
		{Name: t.name, Ino: diskNode, Mode: unix.S_IFREG},
	}
	for i := in.Offset; i < uint64(len(entries)) && out.AddDirEntry(entries[i]); i++ {
	}
	return fuse.OK
}

// StatFs tells of a full file system whose size is that of the device.
func (t *tree) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	const unit = 4096
	blocks, _ := block.RoundUp(t.size, unit)
	*out = fuse.StatfsOut{Blocks: uint64(blocks / unit), Files: 1, Bsize: unit, Frsize: unit, NameLen: unix.NAME_MAX}
	return fuse.OK
}

// Open implements fuse.RawFileSystem.
func (t *tree) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// Read implements fuse.RawFileSystem.
func (t *tree) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	off, n := t.clip(in.Offset, uint64(min(int(in.Size), len(buf))))
	if n > 0 {
		if err := t.dev.Read(t.ctx, buf[:n], off); err != nil {
			return nil, t.fail("read", off, n, err)
		}
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write stores what fits into the device.
func (t *tree) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	off, n := t.clip(in.Offset, uint64(len(data)))
	if n == 0 && len(data) > 0 {
		return 0, fuse.Status(unix.ENOSPC)
	}
	defer t.touched()
	if err := t.dev.Write(t.ctx, data[:n], off, 0); err != nil {
		return 0, t.fail("write", off, n, err)
	}
	return uint32(n), fuse.OK
}

// Fsync makes durable what has been written.
func (t *tree) Fsync(_ <-chan struct{}, _ *fuse.FsyncIn) fuse.Status {
	return t.fail("flush", 0, t.size, t.dev.Flush(t.ctx))
}

// FsyncDir has nothing to do.
func (t *tree) FsyncDir(_ <-chan struct{}, _ *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Fallocate makes ranges zero. It does not allocate: no device can promise that there will be room.
func (t *tree) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	const keep = unix.FALLOC_FL_KEEP_SIZE
	off, n := t.clip(in.Offset, in.Length)
	var flags block.Flags
	switch in.Mode {
	case unix.FALLOC_FL_PUNCH_HOLE | keep, unix.FALLOC_FL_ZERO_RANGE | keep:
	case unix.FALLOC_FL_ZERO_RANGE:
		if uint64(n) < in.Length {
			return fuse.Status(unix.ENOSPC)
		}
	default:
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if in.Mode&unix.FALLOC_FL_ZERO_RANGE != 0 {
		flags = block.NoHole
	}
	if n == 0 {
		return fuse.OK
	}
	defer t.touched()
	return t.fail("zero", off, n, t.dev.Zero(t.ctx, off, n, flags))
}

// clip returns the part of a range that lies in the device.
func (t *tree) clip(off, n uint64) (int64, int64) {
	if off >= uint64(t.size) {
		return t.size, 0
	}
	return int64(off), int64(min(n, uint64(t.size)-off))
}

// touched notes that the content has changed.
func (t *tree) touched() {
	t.changed.Store(time.Now().UnixNano())
	t.space.stale.Store(true)
}

// fail returns what the kernel is told of an error, and logs it where it is not the one before.
func (t *tree) fail(what string, off, n int64, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	status := statusOf(err)
	t.failing.Lock()
	text := what + err.Error()
	again := t.last == text
	t.last = text
	t.failing.Unlock()
	if !again {
		t.log.Error(what, "offset", off, "length", n, "error", err)
	}
	return status
}

// statusOf returns the error number for an error of a device: EIO where nothing says more.
func statusOf(err error) fuse.Status {
	var outside *block.RangeError
	switch {
	case errors.Is(err, block.ErrReadOnly):
		return fuse.EROFS
	case errors.As(err, &outside):
		return fuse.EINVAL
	case errors.Is(err, errors.ErrUnsupported):
		return fuse.Status(unix.EOPNOTSUPP)
	case errors.Is(err, fs.ErrPermission):
		return fuse.EPERM
	}
	for _, e := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.ENOMEM, unix.ETIMEDOUT} {
		if errors.Is(err, e) {
			return fuse.Status(e)
		}
	}
	return fuse.EIO
}
