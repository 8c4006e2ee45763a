package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/convert"
)

// Exit codes of compare, those of qemu-img.
const (
	compareDiffer   = 1
	compareTrouble  = 2 // an image cannot be opened
	compareDescribe = 3 // an image cannot be asked for data and holes
	compareRead     = 4 // an image cannot be read
)

// compareInfo is the result in JSON.
type compareInfo struct {
	Equal      bool   `json:"equal"`
	Difference string `json:"difference"` // same, size, allocation or content
	Offset     *int64 `json:"offset,omitempty"`
	SizeA      int64  `json:"size-a"`
	SizeB      int64  `json:"size-b"`
}

func newCompare(a *app) *cobra.Command {
	var first reading
	var formatB string
	var strict bool
	c := &cobra.Command{
		Use:   "compare [flags] A B",
		Short: "Say whether two images hold the same bytes",
		Long: `Say whether two images hold the same bytes, whatever their formats. Where one is longer, it has to be zero after the
end of the other. Exit codes: 0 the same, 1 they differ, 2 cannot be opened, 3 or 4 cannot be read.`,
		Args: exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := first.checkConnections(); err != nil {
				return err
			}
			x, err := a.openDevice(c.Context(), args[0], first)
			if err != nil {
				return &codeError{compareTrouble, err}
			}
			defer x.Close()
			y, err := a.openDevice(c.Context(), args[1], reading{format: formatB, share: first.share, nbd: first.nbd})
			if err != nil {
				return &codeError{compareTrouble, err}
			}
			defer y.Close()
			progress, end := a.showProgress("compare")
			r, err := convert.Compare(c.Context(), x.Device, y.Device, strict, convert.Options{Memory: int64(a.memory) / 2, Progress: progress})
			end()
			if err != nil {
				return &codeError{compareFailure(err), err}
			}
			return a.compared(r)
		},
	}
	first.flags(c)
	first.connectionFlags(c)
	c.Flags().StringVarP(&formatB, "second-format", "F", "", "format of the second image")
	c.Flags().BoolVarP(&strict, "strict", "s", false, "sizes and allocation have to be the same too")
	return c
}

// compareFailure returns the exit code for an error of convert.Compare.
func compareFailure(err error) int {
	var e *convert.Error
	if errors.As(err, &e) && e.Op == convert.Describe {
		return compareDescribe
	}
	return compareRead
}

// compared prints the result, in the words of qemu-img.
func (a *app) compared(r convert.Result) error {
	differ := r.Difference != convert.Same
	if a.json {
		info := compareInfo{Equal: !differ, Difference: r.Difference.String(), SizeA: r.SizeA, SizeB: r.SizeB}
		if differ {
			info.Offset = &r.Off
		}
		if err := a.printJSON(info); err != nil {
			return err
		}
	} else if !a.quiet {
		if r.SizeA != r.SizeB && r.Difference != convert.Size && (!differ || r.Off >= min(r.SizeA, r.SizeB)) {
			a.printf("Warning: Image size mismatch!")
		}
		a.printf("%s", map[convert.Difference]string{
			convert.Same:       "Images are identical.",
			convert.Size:       "Strict mode: Image size mismatch!",
			convert.Allocation: fmt.Sprintf("Strict mode: Offset %d block status mismatch!", r.Off),
			convert.Content:    fmt.Sprintf("Content mismatch at offset %d!", r.Off),
		}[r.Difference])
	}
	if differ {
		return &codeError{code: compareDiffer}
	}
	return nil
}
