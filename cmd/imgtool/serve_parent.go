package main

import (
	"os"
	"time"
)

// onParentEnd calls f once the process has ended that started this one, unless what it returns is called first.
func onParentEnd(f func()) func() error {
	ended, stop := awaitParent(os.Getppid())
	go func() {
		if ended() {
			f()
		}
	}()
	return stop
}

// pollParent returns a function that waits until this process has another parent, which it looks for ten times a second, and returns whether it has; and one
// that ends the waiting.
func pollParent(parent int) (ended func() bool, stop func() error) {
	done := make(chan struct{})
	ended = func() bool {
		tick := time.NewTicker(time.Second / 10)
		defer tick.Stop()
		for os.Getppid() == parent {
			select {
			case <-tick.C:
			case <-done:
				return false
			}
		}
		return true
	}
	return ended, func() error { close(done); return nil }
}
