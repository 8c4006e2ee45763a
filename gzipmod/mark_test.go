package gzipmod

import (
	"bytes"
	"errors"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// TestNoMark opens for writing without a place for a mark.
func TestNoMark(t *testing.T) {
	file := mod(t, device(t, image(1, 100000)), Options{Keep: []Range{span(0, 4096)}}, 1)
	_, err := Open(ctx, file, OpenOptions{Write: true})
	_, repair := Repair(ctx, file, nil)
	for _, err := range []error{err, repair, Rebuild(ctx, file, nil, nil)} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("without a mark: %v", err)
		}
	}
}

// TestRepairStranger gives Repair the mark of an image that was made in the same way from a disk with other bytes.
func TestRepairStranger(t *testing.T) {
	p := image(3, 1<<20)
	o := Options{Keep: []Range{span(65536, 65536), span(262144, 65536)}}
	file, mark := mod(t, device(t, p), o, 1), &memoryMark{}
	d, err := Open(ctx, block.NoClose(file), OpenOptions{Write: true, Mark: mark})
	check(t, err)
	check(t, d.Write(ctx, []byte("text"), 65536, 0))
	crashed, journal := file.Clone(), bytes.Clone(mark.p)
	check(t, d.Close())

	p[262144] ^= 1
	other := mod(t, device(t, p), o, 1)
	before := content(t, other)
	if _, err := Repair(ctx, other, &memoryMark{p: journal}); err == nil {
		t.Error("the mark of another image was accepted")
	}
	if !bytes.Equal(content(t, other), before) {
		t.Error("an image was changed by the mark of another")
	}
	done, err := Repair(ctx, crashed, &memoryMark{p: journal})
	check(t, err)
	if done != (Repaired{Marked: true, Blocks: 1, Bytes: StoredLen, Wrong: 1}) {
		t.Errorf("repair of its own image: %+v", done)
	}
	verify(t, crashed)
}

// TestMarkOfAnotherCopy repairs a sound image by a mark that tells of a change of another copy of the same image.
func TestMarkOfAnotherCopy(t *testing.T) {
	p := image(80, 400000)
	golden := mod(t, device(t, p), Options{Keep: []Range{span(0, 400000)}}, 1)
	change := func(file *block.Memory, mark *memoryMark, off int64) (left []byte) {
		d, err := Open(ctx, block.NoClose(file), OpenOptions{Write: true, Mark: mark})
		check(t, err)
		check(t, d.Write(ctx, []byte("changed"), off, 0))
		left = bytes.Clone(mark.p)
		check(t, d.Close())
		return left
	}
	stale := change(golden.Clone(), &memoryMark{}, 10)
	file := golden.Clone()
	change(file, &memoryMark{}, 300000)
	copy(p[300000:], "changed")
	_, err := Repair(ctx, file, &memoryMark{p: stale})
	check(t, err)
	verify(t, file)
	if !bytes.Equal(gunzip(t, content(t, file)), p) {
		t.Fatal("the content is another")
	}
}
