package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/internal/peers"
)

func TestMedianAndSpread(t *testing.T) {
	wall := func(s sample) time.Duration { return s.wall }
	for _, c := range []struct {
		walls                  []time.Duration
		middle, least, longest time.Duration
	}{
		{[]time.Duration{7}, 7, 7, 7},
		{[]time.Duration{9, 1, 5}, 5, 1, 9},
		{[]time.Duration{8, 2, 4, 100}, 6, 2, 100},
	} {
		var samples []sample
		for _, w := range c.walls {
			samples = append(samples, sample{wall: w})
		}
		fastest, slowest := spread(samples)
		if m := median(samples, wall); m != c.middle || fastest != c.least || slowest != c.longest {
			t.Errorf("%v: median %d, spread %d to %d; want %d, %d to %d", c.walls, m, fastest, slowest, c.middle, c.least, c.longest)
		}
	}
}

func TestTable(t *testing.T) {
	made := func(label string, wall time.Duration) row {
		return row{program: program{label: label}, samples: []sample{{wall: wall, cpu: 2 * wall, size: 1000}}}
	}
	var b bytes.Buffer
	printTable(&b, comparison{name: "raw to gz", note: "A note."},
		[]row{made("ours", time.Second), made("theirs", 30*time.Millisecond), {program: program{label: "other"}, failure: notInstalled}})
	want := `
### raw to gz

A note.

| program | wall s | fastest to slowest | × imgtool | CPU s | RSS MiB | output bytes |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| ours | 1.000 | 1.000 to 1.000 | 1.00 | 2.000 |  | 1000 |
| theirs | 0.0300 | 0.0300 to 0.0300 | 0.03 | 0.0600 |  | 1000 |
| other | not installed | | | | | |
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// TestMeasure runs programs that work, fail, are missing and write what the check refuses.
func TestMeasure(t *testing.T) {
	shell := peers.Need(t, "busybox")
	dir := t.TempDir()
	in, out, log := filepath.Join(dir, "in"), filepath.Join(dir, "out"), filepath.Join(dir, "log")
	if err := os.WriteFile(in, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	sh := func(script string) []string { return []string{shell, "sh", "-c", script, "sh", in, out, log} }
	rows, err := comparison{inputs: []string{in}, out: out, of: []program{
		{label: "file", argv: sh(`echo -n f >>"$3"; cat "$1" >"$2"`), check: sh(`cmp "$1" "$2"`)},
		{label: "stdout", argv: sh(`echo -n s >>"$3"; cat "$1" "$1"`), stdout: true},
		{label: "fails", argv: sh(`echo why >&2; exit 3`)},
		{label: "missing", argv: []string{"no-such-program"}},
		{label: "wrong", argv: sh(`echo other >"$2"`), check: sh(`cmp "$1" "$2"`)},
	}}.measure(t.Context(), settings{runs: 2, check: true})
	if err != nil {
		t.Fatal(err)
	}
	if order, _ := os.ReadFile(log); string(order) != "fsfsfs" {
		t.Errorf("programs ran in the order %q, want them in turn", order)
	}
	for i, size := range []int64{5, 10} {
		if r := rows[i]; r.failure != "" || len(r.samples) != 2 || r.samples[0].size != size || r.samples[0].wall <= 0 {
			t.Errorf("%s: %+v", r.program.label, r)
		}
	}
	for i, want := range []string{"exit status 3: why", notInstalled, "exit status 1"} {
		if r := rows[2+i]; !strings.Contains(r.failure, want) || len(r.samples) != 0 {
			t.Errorf("%s: failure %q, want %q", r.program.label, r.failure, want)
		}
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Errorf("the output was left behind: %v", err)
	}
}

func TestMakeSparse(t *testing.T) {
	name := filepath.Join(t.TempDir(), "sparse")
	if err := makeSparse(t.Context(), name, 1<<20, 4, 4096); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(p) != 1<<20 || bytes.Count(p[4096:1<<18], []byte{0}) != 1<<18-4096 || !bytes.Equal(p[3<<18:3<<18+4096], noise(4096)) {
		t.Error("the runs of data are not where they belong")
	}
}
