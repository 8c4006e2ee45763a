package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/partition"
)

// tableInfo is a partition table in JSON.
type tableInfo struct {
	Scheme        string          `json:"scheme"`
	SectorSize    int64           `json:"sector-size"`
	DiskGUID      string          `json:"disk-guid,omitempty"`
	DiskSignature string          `json:"disk-signature,omitempty"`
	Partitions    []partitionInfo `json:"partitions"`
	Problems      []string        `json:"problems"`
}

// partitionInfo is a partition in JSON. Sizes are in bytes.
type partitionInfo struct {
	Number     int    `json:"number"`
	Start      int64  `json:"start"`
	Size       int64  `json:"size"`
	Name       string `json:"name"`
	Type       string `json:"type"`
	TypeID     string `json:"type-id"`
	GUID       string `json:"guid,omitempty"`
	Attributes uint64 `json:"attributes"`
	Bootable   bool   `json:"bootable"`
	Logical    bool   `json:"logical"`
	FileSystem string `json:"file-system,omitempty"`
	Label      string `json:"label,omitempty"`
	UUID       string `json:"uuid,omitempty"`
}

func newPartitions(a *app) *cobra.Command {
	from := reading{glance: true}
	c := &cobra.Command{
		Use:   "partitions [flags] IMAGE",
		Short: "List the partitions of a disk, and what is in them",
		Args:  exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			img, err := a.openDevice(c.Context(), args[0], from)
			if err != nil {
				return err
			}
			defer img.Close()
			t, err := readTable(c.Context(), img)
			if err != nil {
				return err
			}
			if err := t.ProbeFileSystems(c.Context(), img.Device); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(describeTable(t))
			}
			return a.printTable(img, t)
		},
	}
	from.flags(c)
	return c
}

// readTable reads the partition table of an image. Its errors name the image.
func readTable(ctx context.Context, img *chain.Image) (*partition.Table, error) {
	t, err := partition.Read(ctx, block.NoClose(img.Device))
	if err != nil {
		return nil, nameError(img, err)
	}
	return t, nil
}

func describeTable(t *partition.Table) tableInfo {
	info := tableInfo{
		Scheme: t.Scheme, SectorSize: t.SectorSize, DiskGUID: t.DiskGUID, DiskSignature: t.DiskSignature,
		Partitions: []partitionInfo{}, Problems: append([]string{}, t.Problems...),
	}
	for _, p := range t.Partitions {
		info.Partitions = append(info.Partitions, partitionInfo{
			Number: p.Number, Start: p.Start, Size: p.Size, Name: p.Name, Type: p.Type, TypeID: p.TypeID, GUID: p.GUID,
			Attributes: p.Attributes, Bootable: p.Bootable, Logical: p.Logical,
			FileSystem: p.FS.Type, Label: p.FS.Label, UUID: p.FS.UUID,
		})
	}
	return info
}

func (a *app) printTable(img *chain.Image, t *partition.Table) error {
	id := t.DiskGUID + t.DiskSignature
	a.printf("%s: %s %s, sectors of %d bytes", img.Name(), t.Scheme, id, t.SectorSize)
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "Number\tStart\tSize\tType\tFile system\tLabel\tName")
	for _, p := range t.Partitions {
		fmt.Fprintf(w, "%d\t%d\t%s\t%s\t%s\t%q\t%q\n", p.Number, p.Start, sizes.FormatSize(p.Size), p.Type, p.FS.Type, p.FS.Label, p.Name)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range t.Problems {
		a.log().Warn(p, "image", img.Name())
	}
	return nil
}
