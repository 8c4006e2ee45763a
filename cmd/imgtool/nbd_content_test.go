package main

import (
	"regexp"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/all"
	"github.com/imgtool/imgtool/partition"
	"github.com/imgtool/imgtool/testimages"
)

// TestContent says what devices hold.
func TestContent(t *testing.T) {
	disk := block.NewMemory(testimages.MinDisk)
	if _, err := testimages.Disk(t.Context(), disk, testimages.DiskOptions{Size: testimages.MinDisk, Data: testimages.MinData}); err != nil {
		t.Fatal(err)
	}
	table, err := partition.Read(t.Context(), disk)
	if err != nil {
		t.Fatal(err)
	}
	begins := func(text string, size int64) block.Device {
		d := block.NewMemory(size)
		if err := d.Write(t.Context(), []byte(text), 0, 0); err != nil {
			t.Fatal(err)
		}
		return d
	}
	part := func(n int) block.Device {
		d, err := table.Window(disk, table.Partitions[n-1])
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, c := range []struct {
		dev  block.Device
		want string
	}{
		{block.NewMemory(0), "empty"},
		{block.NewMemory(1), "data"},
		{block.NewMemory(1 << 20), "data"},
		{begins("hello", 5), "data"},
		{begins("QFI\xfb\x00\x00\x00\x03", 1<<16), "qcow2 image"},
		{begins("\x1f\x8b\x08\x00\x00\x00\x00\x00", 1000), "gz image"},
		{disk, "gpt partition table, 3 partitions"},
		{part(1), `vfat, label "[^"]*", UUID [0-9A-F]{4}-[0-9A-F]{4}`},
		{part(2), `ext4, label "boot", UUID [0-9a-f-]{36}`},
	} {
		got, err := contentOf(t.Context(), c.dev, all.Drivers())
		if err != nil || !regexp.MustCompile("^"+c.want+"$").MatchString(got) {
			t.Errorf("%s, %v; want %s", got, err, c.want)
		}
	}
}
