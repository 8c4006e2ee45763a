package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/partition"
	"github.com/imgtool/imgtool/segment"
	"github.com/imgtool/imgtool/source/file"
	"github.com/imgtool/imgtool/testimages"
)

func newDemo(a *app) *cobra.Command {
	dir, bytes := "imgtool-demo", size(300<<20)
	c := &cobra.Command{
		Use:   "demo [--dir DIR]",
		Short: "Show the main job, on an image it makes itself",
		Long: `Make a disk image, compress it with its /boot kept modifiable, change the configuration of the boot loader inside the .gz, and prove that
nothing else has changed. The files stay in DIR to be looked at.`,
		Args: noCommand,
		RunE: func(c *cobra.Command, _ []string) error {
			d := &demo{app: a, raw: filepath.Join(dir, "disk.raw"), gz: filepath.Join(dir, "disk.raw.gz"), size: int64(bytes)}
			if d.size < testimages.MinDisk || d.size > testimages.MaxDisk || d.size%512 != 0 {
				return usagef("--size %d: from %s to %s, in sectors of 512 bytes", d.size, sizes.FormatSize(testimages.MinDisk), sizes.FormatSize(testimages.MaxDisk))
			}
			if err := os.MkdirAll(dir, 0o777); err != nil {
				return nameFile(dir, err)
			}
			return d.run(c.Context())
		},
	}
	c.Flags().StringVar(&dir, "dir", dir, "folder for the files")
	c.Flags().Var(&bytes, "size", "size of the disk")
	c.Flags().Lookup("size").DefValue = "300M"
	return c
}

// demo is one run of the demonstration.
type demo struct {
	*app
	raw, gz string // paths
	size    int64

	manifest *testimages.Manifest
	layout   *gzipmod.Layout
	steps    []demoStep
}

// demoStep is what a step did. Took is in seconds.
type demoStep struct {
	What   string  `json:"what"`
	Result string  `json:"result"`
	Took   float64 `json:"seconds"`
}

// demoEntry is the file that the demonstration changes: its length stays, since a file system would have to be told of another.
const demoEntry = "loader/entries/linux-1.conf"

const demoOld, demoNew = "ignition.platform.id=metal", "ignition.platform.id=aws  "

func (d *demo) run(ctx context.Context) error {
	if err := d.step("make the disk image", func() (string, error) { return d.makeDisk(ctx) }); err != nil {
		return err
	}
	if err := d.step("compress it, /boot and the partition table kept", func() (string, error) { return d.makeGzip(ctx) }); err != nil {
		return err
	}
	if err := d.showTable(ctx); err != nil {
		return err
	}
	f, found := d.manifest.Find("boot", demoEntry)
	if !found || f.Off < 0 {
		return fmt.Errorf("%s: %s is not in one piece in /boot", d.raw, demoEntry)
	}
	d.say("\nThe file /boot/%s says %q.\nNow %q is written over it, inside the .gz.", demoEntry, demoOld, demoNew)
	if err := d.step("change a file in /boot, inside the .gz", func() (string, error) { return d.patch(ctx, f.Off, f.Size) }); err != nil {
		return err
	}
	if err := d.step("verify every chunk and checksum", func() (string, error) { return d.verify(ctx) }); err != nil {
		return err
	}
	if err := d.step("unpack it with another gzip reader, and compare", func() (string, error) { return d.compare(ctx, f) }); err != nil {
		return err
	}
	return d.summary()
}

// say prints for people.
func (d *demo) say(format string, args ...any) {
	if !d.json {
		d.printf(format, args...)
	}
}

// step runs a step and notes what it cost.
func (d *demo) step(what string, do func() (result string, err error)) error {
	start := time.Now()
	result, err := do()
	d.steps = append(d.steps, demoStep{what, result, time.Since(start).Seconds()})
	return err
}

func (d *demo) makeDisk(ctx context.Context) (string, error) {
	p, err := file.Create(d.raw, file.CreateOptions{})
	if err != nil {
		return "", nameFile(d.raw, err)
	}
	defer p.Abort()
	if d.manifest, err = testimages.Disk(ctx, p.Device(), testimages.DiskOptions{Size: d.size, Seed: 1}); err != nil {
		return "", nameFile(d.raw, err)
	}
	return sizes.FormatSize(d.size) + " of disk", nameFile(d.raw, p.Commit(false))
}

func (d *demo) makeGzip(ctx context.Context) (string, error) {
	selectors, err := parseSelectors([]string{"name=boot", "gpt"})
	if err != nil {
		return "", err
	}
	img, err := d.openDevice(ctx, d.raw, reading{format: "raw"})
	if err != nil {
		return "", err
	}
	defer img.Close()
	var o gzipmod.Options
	if d.layout, err = planDevice(ctx, img, selectors, &o); err != nil {
		return "", err
	}
	plan, err := d.layout.Plan(img.Device, o)
	if err != nil {
		return "", err
	}
	p, err := file.Create(d.gz, file.CreateOptions{})
	if err != nil {
		return "", nameFile(d.gz, err)
	}
	defer p.Abort()
	n, err := segment.Write(ctx, segment.ToDevice(p.Device()), plan, segment.Options{})
	if err == nil {
		err = p.Commit(false)
	}
	if err != nil {
		return "", nameFile(d.gz, err)
	}
	return sizes.FormatSize(n) + " of .gz", clearMark(ctx, d.gz)
}

// showTable prints the partitions as the .gz shows them.
func (d *demo) showTable(ctx context.Context) error {
	if d.json {
		return nil
	}
	m, err := d.openMod(ctx, d.gz, false)
	if err != nil {
		return err
	}
	defer m.Close()
	t, err := partition.Read(ctx, m)
	if err == nil {
		err = t.ProbeFileSystems(ctx, m)
	}
	if err != nil {
		return nameFile(d.gz, err)
	}
	d.printf("%s, read through its index:\n", d.gz)
	w := tabwriter.NewWriter(d.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "  partition\tname\tfile system\tsize\tin the .gz")
	for _, p := range t.Partitions {
		how := "compressed"
		for _, r := range d.layout.Regions {
			if r.Kind == gzipmod.Kept && r.Off <= p.Start && p.End() <= r.End() {
				how = "kept: can be changed in place"
			}
		}
		fmt.Fprintf(w, "  %d\t%s\t%s\t%s\t%s\n", p.Number, p.Name, p.FS.Type, sizes.FormatSize(p.Size), how)
	}
	return w.Flush()
}

// patch writes the changed file over the old one, through the image's device.
func (d *demo) patch(ctx context.Context, off, n int64) (string, error) {
	m, err := d.openMod(ctx, d.gz, true)
	if err != nil {
		return "", err
	}
	text := make([]byte, n)
	if err = m.Read(ctx, text, off); err == nil {
		changed := bytes.Replace(text, []byte(demoOld), []byte(demoNew), 1)
		err = m.Write(ctx, changed, off, block.FUA)
	}
	return fmt.Sprintf("%d bytes of file", n), nameFile(d.gz, errors.Join(err, m.Close()))
}

func (d *demo) verify(ctx context.Context) (string, error) {
	f, err := file.Open(ctx, d.gz, file.Options{})
	if err != nil {
		return "", nameFile(d.gz, err)
	}
	defer f.Close()
	_, problems, err := gzipmod.Verify(ctx, f, gzipmod.VerifyOptions{})
	if err == nil && len(problems) > 0 {
		err = problems[0]
	}
	return sizes.FormatSize(d.size) + " of disk", nameFile(d.gz, err)
}

// compare unpacks the .gz with the standard library, which knows nothing of our index, and counts the bytes that differ from the raw disk.
func (d *demo) compare(ctx context.Context, f testimages.File) (string, error) {
	packed, err := os.Open(d.gz)
	if err != nil {
		return "", err
	}
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	if err != nil {
		return "", nameFile(d.gz, err)
	}
	plain, err := os.Open(d.raw)
	if err != nil {
		return "", err
	}
	defer plain.Close()
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	var off, differ, outside int64
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := io.ReadFull(z, a)
		if _, e := io.ReadFull(plain, b[:n]); e != nil {
			return "", nameFile(d.raw, e)
		}
		for i := range n {
			if a[i] != b[i] {
				differ++
				if at := off + int64(i); at < f.Off || at >= f.Off+f.Size {
					outside++
				}
			}
		}
		off += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF && n > 0 && off == d.size {
			break
		}
		if err != nil {
			return "", nameFile(d.gz, err)
		}
	}
	if off != d.size || outside != 0 || differ == 0 {
		return "", fmt.Errorf("%s: unpacked to %d bytes, of which %d differ, %d outside the changed file", d.gz, off, differ, outside)
	}
	return fmt.Sprintf("%d bytes differ, all of them in that file", differ), nil
}

func (d *demo) summary() error {
	if d.json {
		return d.printJSON(struct {
			Raw   string     `json:"raw"`
			Gz    string     `json:"gz"`
			Steps []demoStep `json:"steps"`
		}{d.raw, d.gz, d.steps})
	}
	d.say("\nWhat each step cost:")
	w := tabwriter.NewWriter(d.out, 0, 8, 2, ' ', 0)
	for _, s := range d.steps {
		fmt.Fprintf(w, "  %s\t%.2f ms\t%s\n", s.What, s.Took*1000, s.Result)
	}
	w.Flush()
	d.say(`
To go on:
  gzip -t %[2]s                                     any gzip reader accepts it
  imgtool mod info %[2]s                            what is kept, and where it lies
  imgtool convert %[2]s::gz::part=2 boot.img        read /boot out of it
  imgtool mod patch %[2]s --part name=boot --from boot.img    and write it back
  imgtool compare %[1]s %[2]s     finds the change`, d.raw, d.gz)
	return nil
}
