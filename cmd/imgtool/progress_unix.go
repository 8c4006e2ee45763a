//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// onStatusSignal calls f for every SIGUSR1, until stop is called.
func onStatusSignal(f func()) (stop func()) {
	c := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(c, syscall.SIGUSR1)
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
