//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// onProgressSignal calls f whenever somebody asks how far the program is, until the function that it returns is called.
func onProgressSignal(f func()) (stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-c:
				f()
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(c)
		close(done)
	}
}
