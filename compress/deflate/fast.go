package deflate

// newFast returns the matcher of level 1.
func newFast(window int) matcher {
	return &chains{distance: window, effort: effort{depth: 1, nice: 16}}
}
