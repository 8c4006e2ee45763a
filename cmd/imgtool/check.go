package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats"
)

// Exit codes of check, those of qemu-img.
const (
	checkFailed      = 1  // the image could not be checked, or not all of it
	checkCorrupt     = 2  // data is lost or in danger
	checkLeaks       = 3  // space is wasted, nothing else
	checkUnsupported = 63 // the format has no check
)

// checkInfo is the result in JSON. The names are those of qemu-img, which leaves out what is zero; problems are ours.
type checkInfo struct {
	ImageEndOffset     int64         `json:"image-end-offset,omitempty"`
	TotalClusters      int64         `json:"total-clusters,omitempty"`
	CheckErrors        int64         `json:"check-errors"`
	AllocatedClusters  int64         `json:"allocated-clusters,omitempty"`
	FragmentedClusters int64         `json:"fragmented-clusters,omitempty"`
	CompressedClusters int64         `json:"compressed-clusters,omitempty"`
	Leaks              int64         `json:"leaks,omitempty"`
	LeaksFixed         int64         `json:"leaks-fixed,omitempty"`
	Corruptions        int64         `json:"corruptions,omitempty"`
	CorruptionsFixed   int64         `json:"corruptions-fixed,omitempty"`
	Filename           string        `json:"filename"`
	Format             string        `json:"format"`
	Problems           []problemInfo `json:"problems,omitempty"`
}

// problemInfo is a problem in JSON.
type problemInfo struct {
	Kind   string `json:"kind"` // leak, corruption or check-error
	Part   string `json:"part"`
	Offset *int64 `json:"offset,omitempty"` // in the file
	Text   string `json:"text"`
	Fixed  bool   `json:"fixed"`
}

func newCheck(a *app) *cobra.Command {
	var from reading
	var repair string
	c := &cobra.Command{
		Use:   "check [flags] IMAGE",
		Short: "Look for contradictions in an image, and repair them",
		Long: `Look for contradictions in the metadata of an image, without the data that it holds. -r leaks frees space that nothing uses, which
cannot lose anything; -r all repairs everything that can be. After a repair the image is checked again, and the exit code is that of the second check.

Exit codes: 0 clean, 1 could not be checked, 2 corrupt, 3 some space is wasted, 63 the format has no check.`,
		Example: `  imgtool check disk.qcow2
  imgtool check -r leaks disk.qcow2
  imgtool check --json disk.qcow2`,
		Args: func(c *cobra.Command, args []string) error { return asCheckFailure(exactly(1)(c, args)) },
		RunE: func(c *cobra.Command, args []string) error {
			how, ok := map[string]formats.Repair{"": formats.RepairNothing, "leaks": formats.RepairLeaks, "all": formats.RepairAll}[repair]
			if !ok {
				return asCheckFailure(usageOf(c, fmt.Errorf("-r %s: say leaks or all", repair)))
			}
			if from.share && how != formats.RepairNothing {
				return asCheckFailure(usageOf(c, errors.New("-U is for reading, and -r writes")))
			}
			return asCheckFailure(a.checkImage(c.Context(), args[0], from, how))
		},
	}
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return asCheckFailure(usageOf(c, err)) })
	from.formatFlag(c)
	from.shareFlag(c)
	c.Flags().StringVarP(&repair, "repair", "r", "", "what to repair: leaks or all")
	return c
}

// asCheckFailure gives an error without a code that of a check that failed: what elsewhere is wrong usage would look like corruption here.
func asCheckFailure(err error) error {
	var own *codeError
	if err == nil || errors.As(err, &own) {
		return err
	}
	return &codeError{checkFailed, err}
}

func (a *app) checkImage(ctx context.Context, image string, from reading, repair formats.Repair) error {
	o := a.openOptions(from)
	o.Lazy, o.Write = true, repair != formats.RepairNothing
	b, err := chain.OpenBelow(ctx, image, o)
	if err != nil {
		return err
	}
	defer b.Close()
	if b.Driver.Check == nil {
		return &codeError{checkUnsupported, &chain.Error{Name: b.Name(), Err: block.ErrorOf(errors.ErrUnsupported, "format %s has no check", b.Format())}}
	}
	r, problems, err := a.checkTwice(ctx, b, repair)
	if err != nil {
		return nameError(b.Image, err)
	}
	if a.json {
		err = a.printJSON(describeCheck(b, r, problems))
	} else if !a.quiet {
		a.printCheck(r)
	}
	return errors.Join(checkCode(r), err)
}

// checkTwice checks an image and, where something has been repaired, checks it again. The result is that of the last check, with what has
// been repaired before.
func (a *app) checkTwice(ctx context.Context, b *chain.Below, repair formats.Repair) (formats.CheckResult, []problemInfo, error) {
	var problems []problemInfo
	o := formats.CheckOptions{OpenOptions: b.Open, Repair: repair}
	o.Problem = func(p formats.Problem) {
		if a.qemu != nil {
			a.printQemuProblem(p)
		} else if a.json {
			problems = append(problems, describeProblem(p))
		} else if !a.quiet {
			a.printProblem(p)
		}
	}
	r, err := b.Driver.Check(ctx, b.Device, o)
	if err != nil || repair == formats.RepairNothing {
		return r, problems, err
	}
	if err := b.Device.Flush(ctx); err != nil {
		return r, problems, err
	}
	leaks, corruptions := r.LeaksFixed, r.CorruptionsFixed
	if leaks == 0 && corruptions == 0 {
		return r, problems, nil
	}
	if !a.json && !a.quiet {
		a.printf("The following inconsistencies were found and repaired:\n\n    %d leaked clusters\n    %d corruptions\n", leaks, corruptions)
		a.printf("Double checking the fixed image now...")
	}
	o.Repair = formats.RepairNothing
	r, err = b.Driver.Check(ctx, b.Device, o)
	r.LeaksFixed, r.CorruptionsFixed = leaks, corruptions
	return r, problems, err
}

// checkCode returns the exit code of a check as an error.
func checkCode(r formats.CheckResult) error {
	switch {
	case r.CheckErrors > 0:
		return &codeError{code: checkFailed}
	case r.Corruptions > 0:
		return &codeError{code: checkCorrupt}
	case r.Leaks > 0:
		return &codeError{code: checkLeaks}
	}
	return nil
}

func describeCheck(b *chain.Below, r formats.CheckResult, problems []problemInfo) checkInfo {
	return checkInfo{
		ImageEndOffset: r.ImageEndOffset, CheckErrors: r.CheckErrors,
		TotalClusters: r.TotalClusters, AllocatedClusters: r.AllocatedClusters, FragmentedClusters: r.FragmentedClusters, CompressedClusters: r.CompressedClusters,
		Leaks: r.Leaks, LeaksFixed: r.LeaksFixed, Corruptions: r.Corruptions, CorruptionsFixed: r.CorruptionsFixed,
		Filename: b.Name(), Format: b.Format(), Problems: problems,
	}
}

func describeProblem(p formats.Problem) problemInfo {
	info := problemInfo{Kind: problemKind(p.Kind), Part: p.Part, Text: p.Text, Fixed: p.Fixed}
	if p.Off >= 0 {
		info.Offset = &p.Off
	}
	return info
}

// problemKind returns what a kind of problem is called.
func problemKind(k formats.ProblemKind) string {
	switch k {
	case formats.Leak:
		return "leak"
	case formats.Corruption:
		return "corruption"
	}
	return "check-error"
}

func (a *app) printProblem(p formats.Problem) {
	at, fixed := "", ""
	if p.Off >= 0 {
		at = fmt.Sprintf(" at byte %d", p.Off)
	}
	if p.Fixed {
		fixed = " (repaired)"
	}
	a.printf("%s: %s%s: %s%s", problemKind(p.Kind), p.Part, at, p.Text, fixed)
}

// printCheck prints the result in the words of qemu-img.
func (a *app) printCheck(r formats.CheckResult) {
	if r.Leaks == 0 && r.Corruptions == 0 && r.CheckErrors == 0 {
		a.printf("No errors were found on the image.")
	}
	if r.Corruptions > 0 {
		a.printf("\n%d errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.", r.Corruptions)
	}
	if r.Leaks > 0 {
		a.printf("\n%d leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.", r.Leaks)
	}
	if r.CheckErrors > 0 {
		a.printf("\n%d internal errors have occurred during the check.", r.CheckErrors)
	}
	if r.TotalClusters > 0 && r.AllocatedClusters > 0 {
		percent := func(n, of int64) float64 { return float64(n) * 100 / float64(of) }
		a.printf("%d/%d = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed clusters", r.AllocatedClusters, r.TotalClusters,
			percent(r.AllocatedClusters, r.TotalClusters), percent(r.FragmentedClusters, r.AllocatedClusters), percent(r.CompressedClusters, r.AllocatedClusters))
	}
	if r.ImageEndOffset > 0 {
		a.printf("Image end offset: %d", r.ImageEndOffset)
	}
}
