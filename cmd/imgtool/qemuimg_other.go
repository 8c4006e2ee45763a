//go:build !unix

package main

// onProgressSignal does nothing: there is no signal by which somebody could ask.
func onProgressSignal(func()) (stop func()) { return func() {} }
