//go:build unix && !linux

package main

func awaitParent(parent int) (func() bool, func() error) { return pollParent(parent) }
