package main

import (
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// printMachine says where, when and with what the numbers were made.
func printMachine(w io.Writer, s settings) {
	fmt.Fprintf(w, "%s, %s/%s, %d processors, image %s; medians of %d runs in turn.\n\n",
		time.Now().Format(time.DateOnly), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), s.image, s.runs)
	for _, peer := range []string{"gzip", "pigz", "qemu-img", "nbdkit", "nbdcopy", "fio", "cp", "dd"} {
		version := notInstalled
		if out, err := exec.Command(peer, "--version").CombinedOutput(); err == nil {
			version, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
		}
		fmt.Fprintf(w, "- %s: %s\n", peer, version)
	}
	fmt.Fprintln(w, "\n× imgtool is a program's time over imgtool's: 2.00 means that imgtool took half as long.")
}

// printTable prints a comparison as a Markdown table.
func printTable(w io.Writer, c comparison, rows []row) {
	fmt.Fprintf(w, "\n### %s\n\n", c.name)
	if c.note != "" {
		fmt.Fprintf(w, "%s\n\n", c.note)
	}
	fmt.Fprintln(w, "| program | wall s | fastest to slowest | × imgtool | CPU s | RSS MiB | output bytes |")
	fmt.Fprintln(w, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, r := range rows {
		fmt.Fprintln(w, line(r, rows[0]))
	}
}

// line formats a row of the table; ours is imgtool's.
func line(r, ours row) string {
	if r.failure != "" {
		return fmt.Sprintf("| %s | %s | | | | | |", r.program.label, r.failure)
	}
	wall := func(s sample) time.Duration { return s.wall }
	cpu := func(s sample) time.Duration { return s.cpu }
	fastest, slowest := spread(r.samples)
	ratio := ""
	if ours.failure == "" {
		ratio = fmt.Sprintf("%.2f", median(r.samples, wall).Seconds()/median(ours.samples, wall).Seconds())
	}
	return fmt.Sprintf("| %s | %s | %s to %s | %s | %s | %s | %s |", r.program.label,
		seconds(median(r.samples, wall)), seconds(fastest), seconds(slowest), ratio, seconds(median(r.samples, cpu)),
		resident(median(r.samples, func(s sample) int64 { return s.rss })), output(median(r.samples, func(s sample) int64 { return s.size })))
}

// seconds formats a time with three or four figures that mean something.
func seconds(d time.Duration) string {
	switch {
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.4f", d.Seconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.3f", d.Seconds())
	}
	return fmt.Sprintf("%.1f", d.Seconds())
}

// resident formats a resident size. A process starts as a copy of this one, so that the system counts at least our own size for it.
func resident(n int64) string {
	switch own := ownRSS(); {
	case n == 0:
		return ""
	case n <= own:
		return fmt.Sprintf("at most %d", own/mib+1)
	}
	return fmt.Sprintf("%d", n/mib)
}

// output formats the size of an output.
func output(n int64) string {
	if n < 0 {
		return ""
	}
	return fmt.Sprintf("%d", n)
}
