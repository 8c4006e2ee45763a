package check

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/source/file"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// theirs is what qemu-img check says.
type theirs struct {
	Leaks            int64 `json:"leaks"`
	Corruptions      int64 `json:"corruptions"`
	CheckErrors      int64 `json:"check-errors"`
	LeaksFixed       int64 `json:"leaks-fixed"`
	CorruptionsFixed int64 `json:"corruptions-fixed"`
	ImageEndOffset   int64 `json:"image-end-offset"`
	Total            int64 `json:"total-clusters"`
	Allocated        int64 `json:"allocated-clusters"`
	Fragmented       int64 `json:"fragmented-clusters"`
	Compressed       int64 `json:"compressed-clusters"`
}

func asTheirs(r formats.CheckResult) theirs {
	return theirs{r.Leaks, r.Corruptions, r.CheckErrors, r.LeaksFixed, r.CorruptionsFixed, r.ImageEndOffset,
		r.TotalClusters, r.AllocatedClusters, r.FragmentedClusters, r.CompressedClusters}
}

// code is the exit code of qemu-img check for a result.
func code(r formats.CheckResult, err error) int {
	switch {
	case err != nil || r.CheckErrors > 0:
		return 1
	case r.Corruptions > 0:
		return 2
	case r.Leaks > 0:
		return 3
	}
	return 0
}

// qemuCheck runs qemu-img check.
func qemuCheck(t testing.TB, name string, args ...string) (theirs, int) {
	t.Helper()
	cmd := peers.Command(t, "qemu-img", append(append([]string{"check", "-f", "qcow2", "--output=json"}, args...), name)...)
	out, err := cmd.Output()
	rc := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		rc = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	var r theirs
	if len(out) > 0 {
		if i := strings.LastIndex(string(out), "\n{"); i >= 0 {
			out = out[i:]
		}
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return r, rc
}

// run checks a file by us.
func run(t testing.TB, name string, how formats.Repair) (formats.CheckResult, []formats.Problem, error) {
	t.Helper()
	dev, err := file.Open(t.Context(), name, file.Options{Write: how != formats.RepairNothing, NoLock: true}) // a peer that is being started in parallel would inherit the lock
	must(t, err)
	defer dev.Close()
	var told []formats.Problem
	r, err := Check(t.Context(), dev, formats.CheckOptions{Repair: how, Problem: func(p formats.Problem) { told = append(told, p) }})
	return r, told, err
}

// differs lists the images of the corpus of which qemu-img says something else, and why.
var differs = map[string]string{
	"hostile/b-http.qcow2.gz":              "qemu-img opens the backing file",
	"hostile/b-loop-a.qcow2.gz":            "qemu-img opens the backing file",
	"hostile/b-nbd.qcow2.gz":               "qemu-img opens the backing file",
	"hostile/b-nul.qcow2.gz":               "qemu-img opens the backing file",
	"reference-tools/chain-mid.qcow2":      "qemu-img opens the backing file",
	"hostile/d-json.qcow2.gz":              "qemu-img opens the data file",
	"reference-tools/q3-datafile-on.qcow2": "qemu-img opens the data file",
	"hostile/q-l1-unaligned.qcow2.gz":      "counts: qemu-img reads an L2 table where none can be",
	"cdi/invalid-qcow-large-json.img":      "counts: qemu-img reads snapshots where none can be",
}

func TestCorpus(t *testing.T) {
	var manifest []struct {
		File, Format, Expect string
		Code                 *int    `json:"qemu_check_rc"`
		Found                *theirs `json:"qemu_check"`
	}
	corpus := peers.OpenCorpus(t, &manifest)
	seen := 0
	for _, e := range manifest {
		if e.Format != "qcow2" || e.Code == nil {
			continue
		}
		seen++
		t.Run(e.File, func(t *testing.T) {
			name := corpus.Unwrap(t, e.File)
			r, told, err := run(t, name, formats.RepairNothing)
			why := differs[e.File]
			onlyCounts := strings.HasPrefix(why, "counts:")
			if got := code(r, err); (why == "" || onlyCounts) != (got == *e.Code) {
				t.Errorf("code %d, qemu-img has %d; %q\n%+v", got, *e.Code, why, told)
			}
			if e.Found == nil || why != "" {
				return
			}
			want, _ := qemuCheck(t, name)
			if got := asTheirs(r); got != want {
				t.Errorf("%+v\nqemu-img has\n%+v", got, want)
			}
		})
	}
	if seen < 50 {
		t.Errorf("the corpus has %d images with a known result", seen)
	}
}
