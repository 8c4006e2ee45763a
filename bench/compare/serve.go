package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// server is a program that exports a file over NBD until it is killed.
type server struct {
	label  string
	export string // name of its export
	unix   func(socket, file string) []string
	tcp    func(port, file string) []string       // on 127.0.0.1
	config func(socket, port, file string) string // text of its configuration; set for a program that goes to the background; else nil
}

// servers returns those that are compared, imgtool first. What nbd-server needs stands in a file.
func servers(s settings) []server {
	return []server{
		{label: "imgtool serve",
			unix: func(socket, file string) []string {
				return []string{s.imgtool, "serve", "-f", "raw", "-U", socket, file}
			},
			tcp: func(port, file string) []string {
				return []string{s.imgtool, "serve", "-f", "raw", "-i", "127.0.0.1", "-p", port, file}
			}},
		{label: "nbdkit file",
			unix: func(socket, file string) []string { return []string{"nbdkit", "-f", "-U", socket, "file", file} },
			tcp: func(port, file string) []string {
				return []string{"nbdkit", "-f", "-i", "127.0.0.1", "-p", port, "file", file}
			}},
		{label: "qemu-nbd",
			unix: func(socket, file string) []string {
				return []string{"qemu-nbd", "-t", "-e", "0", "-f", "raw", "-k", socket, file}
			},
			tcp: func(port, file string) []string {
				return []string{"qemu-nbd", "-t", "-e", "0", "-f", "raw", "-b", "127.0.0.1", "-p", port, file}
			}},
		{label: "nbd-server", export: "disk",
			unix: func(string, string) []string { return []string{"nbd-server"} },
			tcp:  func(string, string) []string { return []string{"nbd-server"} },
			config: func(socket, port, file string) string {
				where := "unixsock=" + socket + "\nport=" + port
				if socket == "" {
					where = "listenaddr=127.0.0.1\nport=" + port
				}
				return "[generic]\nallowlist=false\n" + where + "\n[disk]\nexportname=" + file + "\n"
			}},
	}
}

// workload is what fio asks of a server.
type workload struct {
	name       string
	rw, bs     string
	depth, job string
}

var workloads = []workload{
	{"4 KiB reads, depth 1", "randread", "4k", "1", "1"},
	{"4 KiB writes, depth 1", "randwrite", "4k", "1", "1"},
	{"4 KiB reads, depth 32", "randread", "4k", "32", "1"},
	{"4 KiB writes, depth 32", "randwrite", "4k", "32", "1"},
	{"4 KiB reads, 2 x depth 64", "randread", "4k", "64", "2"},
	{"4 KiB writes, 2 x depth 64", "randwrite", "4k", "64", "2"},
	{"256 KiB reads in order", "read", "256k", "8", "1"},
	{"256 KiB writes in order", "write", "256k", "8", "1"},
	{"1 MiB reads in order", "read", "1m", "4", "1"},
	{"1 MiB writes in order", "write", "1m", "4", "1"},
}

// load is one run of fio.
type load struct {
	iops, bytes float64       // in a second
	p99         time.Duration // completion latency
	cpu         time.Duration // of the server, for each request
}

// running is a server that runs.
type running struct {
	server
	uri    string
	pid    int
	daemon string // file with the process ID of one that went to the background
	loads  []load
	reason string // why it has no numbers
}

// serve compares servers under fio and prints a table for each transport. Every server has a file of the same random data, in memory (/dev/shm).
func serve(ctx context.Context, w io.Writer, s settings, wanted func(string) bool) error {
	dir, err := os.MkdirTemp("/dev/shm", "compare-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "disk.raw")
	for _, transport := range transports {
		var todo []workload
		for _, l := range workloads {
			if wanted(serveName(transport, l)) {
				todo = append(todo, l)
			}
		}
		if len(todo) == 0 {
			continue
		}
		if err := serveOver(ctx, w, s, transport, dir, file, todo); err != nil {
			return err
		}
	}
	if wanted(crowdName) {
		if err := randomFile(file, gib); err != nil {
			return err
		}
		return crowds(ctx, w, s, dir, file)
	}
	return nil
}

// transports are the ways in which servers are reached.
var transports = []string{unixSocket, tcp}

const (
	unixSocket = "Unix socket"
	tcp        = "TCP"
)

// serveName is what -run and -list call a workload.
func serveName(transport string, l workload) string { return "serve, " + transport + ", " + l.name }

// serveNames returns the names of all that serve does.
func serveNames() (names []string) {
	for _, transport := range transports {
		for _, l := range workloads {
			names = append(names, serveName(transport, l))
		}
	}
	return append(names, crowdName)
}

// serveOver runs all workloads over one transport.
func serveOver(ctx context.Context, w io.Writer, s settings, transport, dir, file string, todo []workload) error {
	var list []*running
	defer func() {
		for _, r := range list {
			r.stop()
		}
	}()
	for i, v := range servers(s) {
		r := &running{server: v}
		list = append(list, r)
		own := fmt.Sprintf("%s.%d", file, i) // programs lock what they serve
		err := randomFile(own, gib)
		if err == nil {
			err = r.start(ctx, transport, dir, own, 20809+i)
		}
		if err != nil {
			r.reason = err.Error()
		}
	}
	fmt.Fprintf(w, "\n### serving a file of 1 GiB: %s\n\n", transport)
	fmt.Fprintln(w, "× imgtool is imgtool's rate over the program's: 2.00 means that imgtool served twice as much.")
	fmt.Fprintln(w, "\n| workload | program | requests/s | MB/s | × imgtool | p99 µs | server's CPU µs/request |")
	fmt.Fprintln(w, "| --- | --- | ---: | ---: | ---: | ---: | ---: |")
	for _, l := range todo {
		for _, r := range list {
			r.loads = nil
		}
		for range s.runs {
			for _, r := range list {
				if err := ctx.Err(); err != nil {
					return err
				}
				if r.reason == "" {
					if err := r.fio(ctx, l); err != nil {
						r.reason = err.Error()
					}
				}
			}
		}
		for _, r := range list {
			fmt.Fprintln(w, r.line(l, list[0]))
		}
	}
	for _, r := range list {
		if r.reason == "" {
			fmt.Fprintf(w, "\n%s: largest resident size %s MiB.", r.label, peakRSS(r.pid))
		}
	}
	fmt.Fprintln(w)
	return nil
}

// start starts the server and waits until it answers.
func (r *running) start(ctx context.Context, transport, dir, file string, port int) error {
	socket, number := filepath.Join(dir, fmt.Sprint(port)), fmt.Sprint(port)
	argv := r.unix(socket, file)
	r.uri = "nbd+unix:///" + r.export + "?socket=" + socket
	if transport == tcp {
		socket, argv, r.uri = "", r.tcp(number, file), "nbd://127.0.0.1:"+number+"/"+r.export
	}
	if r.config != nil {
		name := filepath.Join(dir, number+".conf")
		if err := os.WriteFile(name, []byte(r.config(socket, number, file)), 0o600); err != nil {
			return err
		}
		argv = append(argv, "-C", name, "-p", name+".pid")
		r.daemon = name + ".pid"
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if err := cmd.Start(); err != nil {
		return err
	}
	r.pid = cmd.Process.Pid
	go cmd.Wait() // of one that goes to the background, at once
	for range 500 {
		if once(ctx, "nbdinfo", "--size", r.uri) == nil {
			return r.find()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.New("does not answer")
}

// find finds out the process of a server that went to the background.
func (r *running) find() error {
	if r.daemon == "" {
		return nil
	}
	text, err := os.ReadFile(r.daemon)
	if err == nil {
		r.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	return err
}

// stop ends the server.
func (r *running) stop() {
	if p, err := os.FindProcess(r.pid); err == nil && r.pid > 0 {
		_ = p.Kill()
	}
}

// fio runs a workload for two seconds.
func (r *running) fio(ctx context.Context, l workload) error {
	before := treeCPU(r.pid)
	cmd := exec.CommandContext(ctx, "fio", "--name=x", "--ioengine=nbd", "--uri="+r.uri, "--rw="+l.rw, "--bs="+l.bs, "--iodepth="+l.depth,
		"--numjobs="+l.job, "--size=1G", "--time_based", "--runtime=2", "--thread", "--group_reporting", "--norandommap", "--randrepeat=0",
		"--output-format=json")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("fio: %w: %s", err, lastLine(stderr.Bytes()))
	}
	var report struct {
		Jobs []struct {
			Read, Write struct {
				IOPS     float64 `json:"iops"`
				BW       float64 `json:"bw_bytes"`
				TotalIOs float64 `json:"total_ios"`
				Clat     struct {
					Percentile map[string]float64 `json:"percentile"`
				} `json:"clat_ns"`
			}
		} `json:"jobs"`
	}
	text := out.Bytes()
	if i := bytes.IndexByte(text, '{'); i > 0 { // fio's notes stand before
		text = text[i:]
	}
	if err := json.Unmarshal(text, &report); err != nil || len(report.Jobs) == 0 {
		return fmt.Errorf("fio: unreadable report: %w", err)
	}
	side := report.Jobs[0].Read
	if strings.Contains(l.rw, "write") {
		side = report.Jobs[0].Write
	}
	if side.TotalIOs == 0 {
		return errors.New("fio: no request was answered")
	}
	cpu := treeCPU(r.pid) - before
	r.loads = append(r.loads, load{side.IOPS, side.BW, time.Duration(side.Clat.Percentile["99.000000"]), time.Duration(float64(cpu) / side.TotalIOs)})
	return nil
}

// line formats a row of the table; ours is imgtool's.
func (r *running) line(l workload, ours *running) string {
	if r.reason != "" {
		return fmt.Sprintf("| %s | %s | %s | | | | |", l.name, r.label, r.reason)
	}
	mid := func(get func(load) float64) float64 { return middle(r.loads, get) }
	iops := func(l load) float64 { return l.iops }
	ratio := ""
	if ours.reason == "" {
		ratio = fmt.Sprintf("%.2f", middle(ours.loads, iops)/mid(iops))
	}
	return fmt.Sprintf("| %s | %s | %.0f | %.0f | %s | %.0f | %.1f |", l.name, r.label, mid(iops), mid(func(l load) float64 { return l.bytes / 1e6 }), ratio,
		mid(func(l load) float64 { return float64(l.p99.Microseconds()) }), mid(func(l load) float64 { return float64(l.cpu.Nanoseconds()) / 1000 }))
}

// middle returns the median of what get picks.
func middle(loads []load, get func(load) float64) float64 {
	v := make([]float64, len(loads))
	for i, l := range loads {
		v[i] = get(l)
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// randomFile writes a file of random bytes, so that nothing of it is sparse.
func randomFile(name string, size int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{'s', 'e', 'r', 'v', 'e'})
	_, err = io.CopyN(f, random, int64(size))
	return errors.Join(err, f.Close())
}
