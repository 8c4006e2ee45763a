package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"
)

// notInstalled is the failure of a program that is not there.
const notInstalled = "not installed"

// row is what the runs of one program gave.
type row struct {
	program program
	samples []sample
	failure string // why there are no numbers
}

// sample is one run.
type sample struct {
	wall time.Duration
	cpu  time.Duration // user and system time of the program and what it waited for
	rss  int64         // largest resident size in bytes; 0 where the system does not tell
	size int64         // bytes of the output; -1 where there is none
}

// measure runs the programs of a comparison in turn. A program that fails is left out from then on, and its row says why.
func (c comparison) measure(ctx context.Context, s settings) ([]row, error) {
	if c.prepare != nil {
		if err := c.prepare(ctx); err != nil {
			return nil, err
		}
	}
	for _, name := range c.inputs {
		if err := warm(name); err != nil {
			return nil, err
		}
	}
	rows := make([]row, len(c.of))
	for i, p := range c.of {
		rows[i].program = p
	}
	runs := c.runs
	if runs == 0 {
		runs = s.runs
	}
	for turn := range runs + 1 {
		for i := range rows {
			r := &rows[i]
			if r.failure != "" {
				continue
			}
			one, err := c.run(ctx, r.program)
			if err == nil && turn == 0 && s.check && r.program.check != nil {
				err = once(ctx, r.program.check...)
			}
			switch {
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case errors.Is(err, exec.ErrNotFound):
				r.failure = notInstalled
			case err != nil:
				r.failure = err.Error()
			case turn > 0: // the first one warms up
				r.samples = append(r.samples, one)
			}
		}
	}
	if c.out != "" {
		os.Remove(c.out)
	}
	return rows, nil
}

// run runs a program once.
func (c comparison) run(ctx context.Context, p program) (sample, error) {
	if c.out != "" {
		if err := os.Remove(c.out); err != nil && !os.IsNotExist(err) {
			return sample{}, err
		}
	}
	settle()
	cmd := exec.CommandContext(ctx, p.argv[0], p.argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if p.stdout {
		f, err := os.Create(c.out)
		if err != nil {
			return sample{}, err
		}
		defer f.Close()
		cmd.Stdout = f
	}
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start)
	if err != nil {
		if line := lastLine(stderr.Bytes()); line != "" {
			err = fmt.Errorf("%w: %s", err, line)
		}
		return sample{}, err
	}
	one := sample{wall: wall, cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), rss: maxRSS(cmd.ProcessState), size: -1}
	if c.out != "" {
		info, err := os.Stat(c.out)
		if err != nil {
			return sample{}, err
		}
		one.size = info.Size()
	}
	return one, nil
}

// warm reads a file, so that every program finds it in memory.
func warm(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}

// median returns the middle one of the values that get picks, the mean of the two middle ones where their number is even.
func median[T ~int64](samples []sample, get func(sample) T) T {
	v := make([]T, len(samples))
	for i, s := range samples {
		v[i] = get(s)
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// spread returns the fastest and the slowest run.
func spread(samples []sample) (fastest, slowest time.Duration) {
	byWall := func(a, b sample) int { return int(a.wall - b.wall) }
	return slices.MinFunc(samples, byWall).wall, slices.MaxFunc(samples, byWall).wall
}

// lastLine returns the last line of a program's messages.
func lastLine(p []byte) string {
	p = bytes.TrimSpace(p)
	return string(p[bytes.LastIndexByte(p, '\n')+1:])
}
