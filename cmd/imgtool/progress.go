package main

import (
	"fmt"
	"time"

	"github.com/cheggaaa/pb/v3"
	"golang.org/x/term"

	"github.com/imgtool/imgtool/internal/sizes"
)

// report is told how far something is. total is 0 where that is not known. Calls come one at a time.
type report func(done, total int64)

// showProgress returns what to report to, nil for nothing, and a function to call at the end.
func (a *app) showProgress() (r report, end func()) {
	mode := a.progress
	if mode == "auto" {
		mode = "lines"
		if term.IsTerminal(int(a.stderr.Fd())) {
			mode = "bar"
		}
	}
	switch {
	case mode == "json": // asked for by a program, which -q does not concern
		return a.jsonProgress(), func() {}
	case a.quiet:
	case mode == "lines":
		return a.lineProgress(), func() {}
	case mode == "bar":
		return a.barProgress()
	}
	return nil, func() {}
}

// lineProgress prints a line for every tenth that is done, or for every GiB where the whole is not known.
func (a *app) lineProgress() report {
	last := int64(0)
	return func(done, total int64) {
		if total > 0 {
			if tenth := int64(float64(done) / float64(total) * 10); tenth > last {
				last = tenth
				fmt.Fprintf(a.stderr, "%d %%\n", tenth*10)
			}
		} else if gib := done >> 30; gib > last {
			last = gib
			fmt.Fprintln(a.stderr, sizes.FormatSize(done))
		}
	}
}

// jsonInterval is the least time between two lines of JSON.
const jsonInterval = 100 * time.Millisecond

// jsonProgress prints a JSON object in a line from time to time, and when all is done.
func (a *app) jsonProgress() report {
	var next time.Time
	return func(done, total int64) {
		if now := time.Now(); now.After(next) || done == total {
			next = now.Add(jsonInterval)
			fmt.Fprintf(a.stderr, "{\"progress\": {\"done\": %d, \"total\": %d}}\n", done, total)
		}
	}
}

// barProgress draws a bar.
func (a *app) barProgress() (report, func()) {
	var bar *pb.ProgressBar
	draw := func(done, total int64) {
		if bar == nil {
			bar = pb.New64(total).Set(pb.Bytes, true).SetWriter(a.stderr).Start()
		}
		bar.SetCurrent(done)
	}
	end := func() {
		if bar != nil {
			bar.Finish()
		}
	}
	return draw, end
}
