//go:build !unix

package main

// onStatusSignal does nothing: there is no signal to ask with.
func onStatusSignal(func()) (stop func()) { return func() {} }
