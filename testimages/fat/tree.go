package fat

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/imgtool/imgtool/block"
)

// dirEntry is described in "FAT 32 Byte Directory Entry Structure".
type dirEntry struct {
	Name         [11]byte // name and extension, padded with spaces
	Attr         uint8
	NTRes        uint8
	CrtTimeTenth uint8
	CrtTime      uint16
	CrtDate      uint16
	LstAccDate   uint16
	FstClusHI    uint16
	WrtTime      uint16
	WrtDate      uint16
	FstClusLO    uint16
	FileSize     uint32
}

const (
	dirEntrySize = 32 // bytes

	attrVolumeID  = 0x08
	attrDirectory = 0x10
	attrArchive   = 0x20
)

const (
	labelChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_- "
	nameChars  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
)

func legal(s, chars string) bool { return strings.Trim(s, chars) == "" }

// directory is one directory, in the order in which entries were added.
type directory struct {
	path    string
	parent  *directory
	entries []byte
	count   int // entries that it will have
	cluster int64
}

// tree gives everything its clusters.
type tree struct {
	geo     geometry
	opt     Options
	dirs    []*directory // parents first
	byPath  map[string]*directory
	seen    map[string]bool
	chains  [][2]int64 // first cluster and number, all consecutive
	next    int64      // first free cluster
	content []block.Extent
}

// newTree places first the directories, whose sizes must be known for that, and then the files.
func newTree(g geometry, o Options, files []File) (*tree, error) {
	root := &directory{count: 1} // the label
	t := &tree{
		geo: g, opt: o, dirs: []*directory{root}, byPath: map[string]*directory{"": root}, seen: map[string]bool{}, next: rootCluster,
	}
	for _, f := range files {
		if err := t.name(f.Path); err != nil {
			return nil, err
		}
	}
	for _, d := range t.dirs {
		var err error
		if d.cluster, err = t.take(int64(d.count) * dirEntrySize); err != nil {
			return nil, err
		}
		t.start(d)
	}
	for _, f := range files {
		if f.Size < 0 || f.Size >= 1<<32 {
			return nil, fmt.Errorf("fat: %s: a size of %d bytes is outside 0 to 2³²-1", f.Path, f.Size)
		}
		cluster, err := t.take(f.Size)
		if err != nil {
			return nil, err
		}
		dir, name := split(f.Path)
		t.byPath[dir].add(t.opt, shortName(name), attrArchive, cluster, f.Size)
		t.content = append(t.content, block.Extent{Off: g.offset(max(cluster, rootCluster)), Len: f.Size})
	}
	return t, nil
}

// name checks the name of a file or directory, counts it in its directory, and makes the directories above it where they are missing.
func (t *tree) name(path string) error {
	dir, name := split(path)
	base, ext, dot := strings.Cut(name, ".")
	if base == "" || len(base) > 8 || len(ext) > 3 || dot && ext == "" || !legal(base+ext, nameChars) {
		return fmt.Errorf("fat: %q: %q is no short name (8.3) in upper-case letters, digits and _-", path, name)
	}
	if t.seen[path] {
		return fmt.Errorf("fat: %s: there are two of that name", path)
	}
	t.seen[path] = true
	if t.byPath[dir] == nil {
		if err := t.name(dir); err != nil {
			return err
		}
		above, _ := split(dir)
		d := &directory{path: dir, parent: t.byPath[above], count: 2} // . and ..
		t.dirs = append(t.dirs, d)
		t.byPath[dir] = d
	}
	t.byPath[dir].count++
	return nil
}

// start makes the first entries of a directory, and its entry in the directory above, which has been started before.
func (t *tree) start(d *directory) {
	if d.parent == nil {
		d.add(t.opt, t.opt.label(), attrVolumeID, 0, 0)
		return
	}
	above := d.parent.cluster
	if d.parent.parent == nil {
		above = 0 // as ".." calls the root
	}
	d.add(t.opt, shortName("."), attrDirectory, d.cluster, 0)
	d.add(t.opt, shortName(".."), attrDirectory, above, 0)
	_, name := split(d.path)
	d.parent.add(t.opt, shortName(name), attrDirectory, d.cluster, 0)
}

// take gives out the clusters for n bytes, and returns the first; 0 where n is 0.
func (t *tree) take(n int64) (int64, error) {
	count := (n + t.geo.clusterSize() - 1) / t.geo.clusterSize()
	if count == 0 {
		return 0, nil
	}
	if free := t.geo.clusters + rootCluster - t.next; count > free {
		return 0, fmt.Errorf("fat: the files do not fit: %d clusters of %d bytes are free, %d are needed", free, t.geo.clusterSize(), count)
	}
	t.chains = append(t.chains, [2]int64{t.next, count})
	t.next += count
	return t.next - count, nil
}

// table returns the used part of the file allocation table.
func (t *tree) table() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x0fffff00|media)
	b = binary.LittleEndian.AppendUint32(b, endOfChain)
	for _, c := range t.chains {
		for next := c[0] + 1; next < c[0]+c[1]; next++ {
			b = binary.LittleEndian.AppendUint32(b, uint32(next))
		}
		b = binary.LittleEndian.AppendUint32(b, endOfChain)
	}
	return b
}

// add appends an entry.
func (d *directory) add(o Options, name [11]byte, attr uint8, cluster, size int64) {
	at := o.Time
	date := uint16((at.Year()-1980)<<9 | int(at.Month())<<5 | at.Day())
	clock := uint16(at.Hour()<<11 | at.Minute()<<5 | at.Second()/2)
	d.entries = encode(d.entries, dirEntry{
		Name: name, Attr: attr, CrtTime: clock, CrtDate: date, LstAccDate: date, WrtTime: clock, WrtDate: date,
		FstClusHI: uint16(cluster >> 16), FstClusLO: uint16(cluster), FileSize: uint32(size),
	})
}

// shortName returns a name that was checked, or . or .., in the form of a directory entry.
func shortName(name string) (n [11]byte) {
	base, ext, _ := strings.Cut(name, ".")
	if base == "" { // . and ..
		base, ext = name, ""
	}
	copy(n[:], fmt.Sprintf("%-8s%-3s", base, ext))
	return n
}

// split cuts a path into its directory, "" for the root, and its last element.
func split(path string) (dir, name string) {
	if at := strings.LastIndexByte(path, '/'); at > 0 {
		return path[:at], path[at+1:]
	}
	return "", path
}
