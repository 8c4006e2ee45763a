package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"github.com/cheggaaa/pb/v3"
	"golang.org/x/term"

	"github.com/imgtool/imgtool/internal/sizes"
)

// report is told how far something is. total is 0 where that is not known. Calls come one at a time.
type report func(done, total int64)

// showProgress returns what to report the progress of what to, which is a word, and a function to call at the end. Besides what the user has asked
// for, one line is printed for every signal that asks how far things are.
func (a *app) showProgress(what string) (r report, end func()) {
	if a.percent != nil {
		return a.percent.report, func() {}
	}
	shown, finish := a.progressMode(what)
	var mu sync.Mutex
	var done, total int64
	ignore := onStatusSignal(func() {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(a.stderr, statusLine(what, done, total))
	})
	return func(d, t int64) {
			mu.Lock()
			done, total = d, t
			mu.Unlock()
			if shown != nil {
				shown(d, t)
			}
		}, func() {
			ignore()
			finish()
		}
}

// statusLine says how far something is.
func statusLine(what string, done, total int64) string {
	if what != "" {
		what += ": "
	}
	if total <= 0 {
		return what + sizes.FormatSize(done)
	}
	return fmt.Sprintf("%s%.0f %%: %d of %d bytes", what, math.Floor(float64(done)/float64(total)*100), done, total)
}

// progressMode returns what the user has asked for, nil for nothing.
func (a *app) progressMode(what string) (r report, end func()) {
	mode := a.progress
	if mode == "auto" {
		mode = "lines"
		if term.IsTerminal(int(a.stderr.Fd())) {
			mode = "bar"
		}
	}
	switch {
	case mode == "json": // asked for by a program, which -q does not concern
		return jsonProgress(a.stderr, what), func() {}
	case a.quiet:
	case mode == "lines":
		return a.lineProgress(), func() {}
	case mode == "bar":
		return a.barProgress(what)
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

// progressInfo is a line of JSON. Sizes are in bytes; Done and Transferred are the same, and so are Total and Size, which are 0 where that is not known.
type progressInfo struct {
	Done        int64   `json:"done"`
	Total       int64   `json:"total"`
	Transferred int64   `json:"transferred"`
	Size        int64   `json:"size"`
	Elapsed     float64 `json:"elapsed"` // seconds
	Description string  `json:"description,omitempty"`
}

// jsonProgress prints a JSON object in a line from time to time, and when all is done.
func jsonProgress(w io.Writer, what string) report {
	start := time.Now()
	var next time.Time
	return func(done, total int64) {
		now := time.Now()
		if !now.After(next) && done != total {
			return
		}
		next = now.Add(jsonInterval)
		elapsed := math.Round(now.Sub(start).Seconds()*1000) / 1000
		line, err := json.Marshal(map[string]progressInfo{"progress": {done, total, done, total, elapsed, what}})
		if err == nil {
			fmt.Fprintf(w, "%s\n", line)
		}
	}
}

// barProgress draws a bar.
func (a *app) barProgress(what string) (report, func()) {
	var bar *pb.ProgressBar
	draw := func(done, total int64) {
		if bar == nil {
			bar = pb.New64(total).Set(pb.Bytes, true).SetWriter(a.stderr)
			if what != "" {
				bar.Set("prefix", what+" ")
			}
			bar.Start()
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
