// Compare times imgtool beside the programs that do the same, and prints the result as Markdown.
//
//	compare -imgtool PROGRAM [-n RUNS] [-run REGEXP] [-work DIR] [-big] [-levels] [-check] [-list] [DIR]
//
// DIR (default /tmp/images) holds debian.raw, a disk image with a GPT and a partition named boot; -image names another one.
//
// The programs of a comparison run in turn (A B A B ...), each once to warm up and then RUNS times, so that a slow spell of the machine
// touches all of them. Before a run its output is removed and the machine's write-back is done (sync). No output is synced within
// the time, unless both sides do it. Numbers are medians, with the fastest and the slowest run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := compare(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// settings are the flags.
type settings struct {
	imgtool string // the program to compare
	image   string // a GPT disk image
	work    string // an empty folder for outputs
	runs    int
	big     bool
	levels  bool
	check   bool
}

// errFailed says that a run went wrong; the table has said how.
var errFailed = errors.New("some programs failed, see the table")

// compare runs the comparisons that the flags ask for, and prints a table for each.
func compare(ctx context.Context) error {
	var s settings
	flag.StringVar(&s.imgtool, "imgtool", "imgtool", "the `program` to compare")
	flag.StringVar(&s.image, "image", "", "the disk `image`; default DIR/debian.raw")
	flag.IntVar(&s.runs, "n", 5, "counted `runs` of each program")
	flag.BoolVar(&s.big, "big", false, "also 60 GiB and 1 TiB images")
	flag.BoolVar(&s.levels, "levels", false, "also each level of compression")
	flag.BoolVar(&s.check, "check", false, "read every output back")
	parent := flag.String("work", os.TempDir(), "a `folder` on the disk to measure; needs four times the image's data")
	run := flag.String("run", "", "only comparisons whose name matches the `regexp`")
	list := flag.Bool("list", false, "print the names of the comparisons")
	flag.Parse()
	if s.image == "" {
		dir := "/tmp/images"
		if flag.NArg() > 0 {
			dir = flag.Arg(0)
		}
		s.image = filepath.Join(dir, "debian.raw")
	}
	if s.runs < 1 || flag.NArg() > 1 {
		flag.Usage()
		return errors.New("-n is at least 1, and there is one folder at most")
	}
	wanted, err := regexp.Compile(*run)
	if err != nil {
		return err
	}
	if *list {
		for _, c := range comparisons(s) {
			fmt.Println(c.name)
		}
		for _, name := range serveNames() {
			fmt.Println(name)
		}
		return nil
	}
	if _, err := os.Stat(s.image); err != nil {
		return fmt.Errorf("%w\nhint: name a folder that holds debian.raw, or any GPT disk image with a partition named boot by -image", err)
	}
	if s.work, err = os.MkdirTemp(*parent, "compare-"); err != nil {
		return err
	}
	defer os.RemoveAll(s.work)

	var failed error
	printMachine(os.Stdout, s)
	for _, c := range comparisons(s) {
		if !wanted.MatchString(c.name) {
			continue
		}
		rows, err := c.measure(ctx, s)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		printTable(os.Stdout, c, rows)
		for _, r := range rows {
			if r.failure != "" && r.failure != notInstalled {
				failed = errFailed
			}
		}
	}
	return errors.Join(failed, serve(ctx, os.Stdout, s, wanted.MatchString))
}
