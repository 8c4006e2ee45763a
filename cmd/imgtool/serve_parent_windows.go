package main

import "os"

// awaitParent returns a function that waits for the end of the process that is the parent, and one that has nothing to do.
func awaitParent(parent int) (ended func() bool, stop func() error) {
	p, err := os.FindProcess(parent)
	ended = func() bool {
		if err == nil {
			_, err = p.Wait()
		}
		return err == nil
	}
	return ended, func() error { return nil }
}
