package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
)

// snapshotInfo is a snapshot in JSON, with the names that qemu-img has.
type snapshotInfo struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	VMStateSize int64  `json:"vm-state-size"` // bytes
	DateSec     int64  `json:"date-sec"`
	DateNsec    int    `json:"date-nsec"`
	VMClockSec  int64  `json:"vm-clock-sec"`
	VMClockNsec int64  `json:"vm-clock-nsec"`
	ICount      *int64 `json:"icount,omitempty"`
}

func describeSnapshot(s formats.Snapshot) snapshotInfo {
	info := snapshotInfo{
		ID: s.ID, Name: s.Name, VMStateSize: s.VMStateSize, DateSec: s.Date.Unix(), DateNsec: s.Date.Nanosecond(),
		VMClockSec: int64(s.VMClock / time.Second), VMClockNsec: int64(s.VMClock % time.Second),
	}
	if s.ICount >= 0 {
		info.ICount = &s.ICount
	}
	return info
}

// snapshotChange is what was done, in JSON.
type snapshotChange struct {
	Filename string `json:"filename"`
	Action   string `json:"action"`   // create, apply or delete
	Snapshot string `json:"snapshot"` // as it was given: a name, or the ID of one that was applied
}

// snapshotting is one run of snapshot.
type snapshotting struct {
	*app
	list                  bool
	create, apply, remove string
}

func newSnapshot(a *app) *cobra.Command {
	v := &snapshotting{app: a}
	var from reading
	c := &cobra.Command{
		Use:   "snapshot [-l | -c NAME | -a NAME | -d NAME] [flags] IMAGE",
		Short: "List, create, apply or delete the snapshots inside an image",
		Long: `List, create, apply or delete the snapshots inside an image. Without a flag they are listed. -a takes an ID or a name, and the ID wins;
-d takes a name alone. Of several with one name the first is meant.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 the image is corrupt.`,
		Example: `  imgtool snapshot -c before-upgrade disk.qcow2
  imgtool snapshot -l disk.qcow2
  imgtool snapshot -a before-upgrade disk.qcow2`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if given(c, "list", "create", "apply", "delete") > 1 {
				return usageOf(c, errors.New("one of -l, -c, -a and -d at a time"))
			}
			if given(c, "create", "apply", "delete") == 0 {
				return v.show(c.Context(), args[0], from)
			}
			if from.share {
				return usageOf(c, errors.New("-U is for -l alone"))
			}
			return v.run(c, args[0], from)
		},
	}
	from.formatFlag(c)
	from.shareFlag(c)
	f := c.Flags()
	f.BoolVarP(&v.list, "list", "l", false, "list the snapshots")
	f.StringVarP(&v.create, "create", "c", "", "keep the present state under this name")
	f.StringVarP(&v.apply, "apply", "a", "", "make the disk what it was; what it is now is lost")
	f.StringVarP(&v.remove, "delete", "d", "", "forget a state, by its name")
	return c
}

// given returns how many of the flags are on the command line.
func given(c *cobra.Command, names ...string) (n int) {
	for _, name := range names {
		if c.Flags().Changed(name) {
			n++
		}
	}
	return n
}

// show lists the snapshots. An image of a format that keeps none has none.
func (v *snapshotting) show(ctx context.Context, image string, from reading) error {
	from.lazy = true
	img, err := v.openDevice(ctx, image, from)
	if err != nil {
		return err
	}
	defer img.Close()
	infos := []snapshotInfo{}
	if keeper, err := feature[formats.Snapshotter](img, "keeps no snapshots"); err == nil {
		for _, s := range keeper.Snapshots() {
			infos = append(infos, describeSnapshot(s))
		}
	}
	if v.json {
		return v.printJSON(infos)
	}
	if len(infos) > 0 {
		v.printSnapshots(infos)
	}
	return nil
}

func (v *snapshotting) run(c *cobra.Command, image string, from reading) error {
	at, err := sourceDateEpoch()
	if err != nil {
		return err
	}
	if at.IsZero() {
		at = time.Now()
	}
	from.lazy = true
	ctx := c.Context()
	var info snapshotChange
	err = v.change(ctx, image, from, func(img *chain.Image) error {
		keeper, err := feature[formats.Snapshotter](img, "keeps no snapshots")
		switch {
		case err != nil:
			return err
		case given(c, "create") > 0:
			info = snapshotChange{img.Name(), "create", v.create}
			return keeper.CreateSnapshot(ctx, v.create, at)
		case given(c, "apply") > 0:
			info = snapshotChange{img.Name(), "apply", v.apply}
			return noSnapshot(v.apply, keeper.ApplySnapshot(ctx, v.apply))
		}
		info = snapshotChange{img.Name(), "delete", v.remove}
		return noSnapshot(v.remove, deleteNamed(ctx, keeper, v.remove))
	})
	if err == nil && v.json {
		return v.printJSON(info)
	}
	return err
}

// deleteNamed deletes a snapshot by its name alone: whoever deletes "1" does not mean the one that happens to have this ID.
func deleteNamed(ctx context.Context, keeper formats.Snapshotter, name string) error {
	for _, s := range keeper.Snapshots() {
		if s.Name == name {
			return keeper.DeleteSnapshot(ctx, s.ID)
		}
	}
	return fs.ErrNotExist
}

// noSnapshot says which snapshot there is not, and passes on other errors.
func noSnapshot(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return block.WithHint(block.ErrorOf(fs.ErrNotExist, "there is no snapshot %q", name), "imgtool snapshot -l lists those there are")
	}
	return err
}

// printSnapshots prints a table in qemu-img's columns. Times are local.
func (a *app) printSnapshots(list []snapshotInfo) {
	const columns = "%-10s%-17s%8s%20s%13s%11s"
	a.printf("Snapshot list:")
	a.printf(columns, "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT")
	for _, s := range list {
		icount := ""
		if s.ICount != nil {
			icount = fmt.Sprint(*s.ICount)
		}
		clock := fmt.Sprintf("%02d:%02d:%02d.%03d", s.VMClockSec/3600, s.VMClockSec/60%60, s.VMClockSec%60, s.VMClockNsec/1e6)
		date := time.Unix(s.DateSec, int64(s.DateNsec)).Format(time.DateTime)
		a.printf(columns, printable(s.ID), printable(s.Name), shortSize(s.VMStateSize), date, clock, icount)
	}
}

// shortSize returns a size in three digits, as qemu-img has it.
func shortSize(n int64) string {
	v, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i := 0
	for ; v >= 999.5; i++ {
		v /= 1024
	}
	return fmt.Sprintf("%.3g %s", v, units[i])
}
