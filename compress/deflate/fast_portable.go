//go:build !amd64 || purego

package deflate

func (f *fast) round(src []byte, n, quota int) int { return f.walkRound(src, n, quota) }

func (f *fast) count(steps []step) int { return countStepsPortable(&f.counts, steps) }

func (f *fast) write(w *bitWriter, steps []step) { writeStepsPortable(w, &f.codes, steps) }
