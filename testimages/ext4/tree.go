package ext4

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/imgtool/imgtool/block"
)

// node is one inode.
type node struct {
	ino      uint32
	name     string
	parent   *node
	children []*node // of a directory, in the order in which they were made
	mode     uint16
	size     int64
	link     string
	file     int // index in Format's files; -1 for a directory
	zone     int
	runs     []run // data
	leaves   []run // blocks of the extent tree, single ones
}

func (n *node) isDir() bool { return n.file < 0 }

// tree holds all nodes. nodes[0] is the root; nodes[i] for i > 0 has the inode firstInode+i-1.
type tree struct {
	nodes []*node
	dirs  map[string]*node // by path
	names map[string]bool  // of files, by path
}

func newTree(files []File) (*tree, error) {
	root := &node{ino: rootInode, mode: modeDir | 0o755, file: -1}
	root.parent = root
	t := &tree{nodes: []*node{root}, dirs: map[string]*node{"": root}, names: map[string]bool{}}
	if _, err := t.dir("lost+found"); err != nil {
		return nil, err
	}
	t.nodes[1].mode = modeDir | 0o700
	for i, f := range files {
		if err := t.add(i, f); err != nil {
			return nil, err
		}
	}
	for _, n := range t.nodes {
		if n.isDir() {
			n.size = int64(len(n.entries()))
		}
	}
	return t, nil
}

func (t *tree) lastInode() uint32 { return t.nodes[len(t.nodes)-1].ino }

// add makes the inode of one file.
func (t *tree) add(i int, f File) error {
	if f.Size < 0 || f.Size > maxFile {
		return fmt.Errorf("ext4: %s: a size of %d bytes is outside 0 to %d", f.Path, f.Size, maxFile)
	}
	dir, name := "", f.Path
	if at := strings.LastIndexByte(f.Path, '/'); at > 0 {
		dir, name = f.Path[:at], f.Path[at+1:]
	}
	parent, err := t.dir(dir)
	if err != nil {
		return err
	}
	n, err := t.node(parent, name, f.Path)
	if err != nil {
		return err
	}
	n.file, n.mode, n.size = i, modeFile|f.Mode&0o7777, f.Size
	if f.Link != "" {
		// A longer target would need a block of its own.
		if len(f.Link) >= len(inode{}.Block) {
			return fmt.Errorf("ext4: %s: the target of the link is longer than %d bytes", f.Path, len(inode{}.Block)-1)
		}
		n.mode, n.link, n.size = modeLink|0o777, f.Link, int64(len(f.Link))
	}
	t.names[f.Path] = true
	return nil
}

// dir returns the directory at path, and makes it and its parents where they are missing.
func (t *tree) dir(path string) (*node, error) {
	if d, ok := t.dirs[path]; ok {
		return d, nil
	}
	parent, name := t.nodes[0], path
	if at := strings.LastIndexByte(path, '/'); at > 0 {
		var err error
		if parent, err = t.dir(path[:at]); err != nil {
			return nil, err
		}
		name = path[at+1:]
	}
	d, err := t.node(parent, name, path)
	if err != nil {
		return nil, err
	}
	d.file, d.mode = -1, modeDir|0o755
	t.dirs[path] = d
	return d, nil
}

// node makes an inode with a name.
func (t *tree) node(parent *node, name, path string) (*node, error) {
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("ext4: %q: %q is no file name", path, name)
	}
	if t.names[path] || t.dirs[path] != nil {
		return nil, fmt.Errorf("ext4: %s: there are two of that name", path)
	}
	n := &node{ino: uint32(firstInode + len(t.nodes) - 1), name: name, parent: parent}
	parent.children = append(parent.children, n)
	t.nodes = append(t.nodes, n)
	return n, nil
}

// place gives every node its blocks.
func (t *tree) place(a *allocator) error {
	for _, n := range t.nodes {
		n.zone = n.parent.zone
		if n.isDir() {
			n.zone = a.pick(n.parent.zone, n.parent == t.nodes[0])
		}
		if n.link != "" || n.size == 0 {
			continue
		}
		var err error
		if n.runs, err = a.take(n.zone, (n.size+BlockSize-1)/BlockSize); err != nil {
			return err
		}
		if len(n.runs) <= extentsInline {
			continue
		}
		if len(n.runs) > maxExtents {
			return fmt.Errorf("ext4: %s: comes in %d pieces, at most %d can be written: make it smaller", n.name, len(n.runs), maxExtents)
		}
		for range (len(n.runs) + extentsLeaf - 1) / extentsLeaf {
			leaf, err := a.take(n.zone, 1)
			if err != nil {
				return err
			}
			n.leaves = append(n.leaves, leaf[0])
		}
	}
	return nil
}

// content returns where the bytes of each of n files lie.
func (t *tree) content(n int) [][]block.Extent {
	ranges := make([][]block.Extent, n)
	for _, n := range t.nodes {
		if n.isDir() || n.link != "" {
			continue
		}
		left := n.size
		for _, r := range n.runs {
			k := min(r.len*BlockSize, left)
			ranges[n.file] = block.AppendExtent(ranges[n.file], 0, block.Extent{Off: r.start * BlockSize, Len: k})
			left -= k
		}
	}
	return ranges
}

// Types of directory entries.
const (
	entryFile = 1
	entryDir  = 2
	entryLink = 7
)

const entryHeader = 8 // bytes of a directory entry before the name

// entries returns the content of a directory: whole blocks, none of which an entry crosses. See "Linear (Classic) Directories".
func (n *node) entries() []byte {
	var b []byte
	last := 0 // where the last entry starts
	add := func(ino uint32, name string, kind byte) {
		size := (entryHeader + len(name) + 3) &^ 3
		if room := -len(b) & (BlockSize - 1); room < size {
			// The last entry of a block reaches to its end.
			if room > 0 {
				b = append(b, make([]byte, room)...)
				binary.LittleEndian.PutUint16(b[last+4:], uint16(len(b)-last))
			}
		}
		last = len(b)
		b = binary.LittleEndian.AppendUint32(b, ino)
		b = binary.LittleEndian.AppendUint16(b, uint16(size))
		b = append(b, byte(len(name)), kind)
		b = append(b, name...)
		b = append(b, make([]byte, last+size-len(b))...)
	}
	add(n.ino, ".", entryDir)
	add(n.parent.ino, "..", entryDir)
	for _, c := range n.children {
		kind := byte(entryFile)
		switch {
		case c.isDir():
			kind = entryDir
		case c.link != "":
			kind = entryLink
		}
		add(c.ino, c.name, kind)
	}
	b = append(b, make([]byte, -len(b)&(BlockSize-1))...)
	binary.LittleEndian.PutUint16(b[last+4:], uint16(len(b)-last))
	return b
}
