//go:build !amd64 || purego

package inflate

// fast is the loop for where there is plenty of input and output.
func fast(c *core) { fastGo(c) }

func adlerBlocks(p []byte) (a, b uint32) { return adlerBlocksGo(p) }
