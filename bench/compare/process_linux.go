package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of times in /proc: every Linux that Go runs on has 100 in a second.
const tick = time.Second / 100

// treeCPU returns the processor time that a process and its children have used.
func treeCPU(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may hold anything
	var sum time.Duration
	for i, field := range strings.Fields(rest) {
		if i >= 11 && i <= 14 { // user, system, and the same of children that have ended
			n, _ := strconv.Atoi(field)
			sum += time.Duration(n) * tick
		}
	}
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range children {
		text, _ := os.ReadFile(name)
		for _, field := range strings.Fields(string(text)) {
			child, _ := strconv.Atoi(field)
			sum += treeCPU(child)
		}
	}
	return sum
}

// peakRSS returns the largest resident size of a process so far in MiB, or "" where nobody knows.
func peakRSS(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			return strconv.Itoa(n >> 10)
		}
	}
	return ""
}
