//go:build !linux

package main

import "time"

// treeCPU and peakRSS know nothing here.
func treeCPU(int) time.Duration { return 0 }
func peakRSS(int) string        { return "" }
