package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
)

// TestQemuImgNBD runs calls on exports in both programs, and compares what they print, how they end, and what the servers hold then.
func TestQemuImgNBD(t *testing.T) {
	if testing.Short() {
		t.Skip("so many starts of a program take long under the race detector")
	}
	peers.Need(t, "nbdkit")
	peers.Need(t, "qemu-img")
	socket := regexp.MustCompile(`/tmp/nbdkit\w+/socket`)
	const legacy = `nbd:unix:$unixsocket`
	const options = `driver=nbd,server.type=unix,server.path=$unixsocket`
	for _, c := range []qemuCall{
		{line: `info -f raw "$uri"`},
		{line: `info --output=json "$uri"`, free: []string{"dirty-flag"}, why: "imgtool says for every image that it is clean"},
		{line: `info "nbd+unix:///x?socket=$unixsocket"`},
		{line: "info " + legacy},
		{line: "info -f raw " + legacy + ":exportname=x"},
		{line: "info --image-opts driver=raw,file." + "driver=nbd,file.path=$unixsocket"},
		{line: "info --image-opts " + options, why: "that program calls the format nbd, imgtool raw"},
		{line: "info --image-opts driver=nbd,export=x"},
		{line: "info nbd:"},
		{line: "info nbd:unix:/no/such/socket", why: "the words of the system are told otherwise"},
		{line: "info nbd://localhost:1", why: "the words of the system are told otherwise"},
		{line: `map --output=json "$uri"`, why: "imgtool has no offset for what does not lie in a file"},
		{line: `check "$uri"`},
		{line: `measure -O qcow2 "$uri"`},
		{line: `compare disk "$uri"`},
		{line: `compare "$uri" ` + legacy},
		{line: `convert "$uri" out`, made: []string{"out"}},
		{line: `convert -O qcow2 ` + legacy + ` out`, made: []string{"out"}},
		{line: `convert disk "$uri"`, made: []string{"served"}},
		{line: `convert -n -O raw disk ` + legacy, made: []string{"served"}},
		{line: `convert -n --target-is-zero -O raw disk "$uri"`, made: []string{"served"}, why: "what is not zero differs"},
		{line: `convert -n disk --target-image-opts driver=raw,file.driver=nbd,file.path=$unixsocket`, made: []string{"served"}},
		{line: `convert -n long "$uri"`},
		{line: `convert long "$uri"`, why: "it is the format that refuses, in its own words"},
		{line: `dd -O raw if=disk "of=$uri"`, made: []string{"served"}},
		{line: `dd -f raw -O raw bs=4k count=3 "if=$uri" of=out`, made: []string{"out"}},
		{line: `resize -f raw "$uri" +1M`, why: "the words are those for formats"},
		{line: `snapshot -l "$uri"`, why: "a warning of that program"},
		{line: `create -q -f qcow2 -b "$uri" -F raw out`},
		{line: "create -f qcow2 -b " + legacy + " -F raw out", why: "the options that are in force are told otherwise"},
	} {
		var results [2]ended
		var made [2][][]byte
		for i, program := range []string{"imgtool qemu-img ", "qemu-img "} {
			dir := t.TempDir()
			scattered(t, filepath.Join(dir, "disk"), 1<<20, 1)
			scattered(t, filepath.Join(dir, "served"), 1<<20, 2)
			scattered(t, filepath.Join(dir, "long"), 2<<20, 3)
			results[i] = beside(t, dir, "file served", program+c.line)
			for _, name := range c.made {
				path := filepath.Join(dir, name)
				if name == "out" { // as the disk that it is
					peers.Run(t, "qemu-img", "convert", "-U", "-O", "raw", path, path+".raw")
					path += ".raw"
				}
				p, err := os.ReadFile(path)
				if err != nil {
					t.Errorf("%s%s: %v", program, c.line, err)
				}
				made[i] = append(made[i], p)
			}
		}
		ours, theirs := results[0], results[1]
		if ours.code != theirs.code {
			t.Errorf("%s: code %d, of qemu-img %d\n%s", c.line, ours.code, theirs.code, ours.stderr)
		}
		text := func(s string) []byte { return socket.ReplaceAll([]byte(s), []byte("SOCKET")) }
		samePrint(t, c, c.line, text(ours.stdout), text(theirs.stdout))
		samePrint(t, c, c.line+": errors", text(ours.stderr), text(theirs.stderr))
		for i := range c.made {
			if c.why == "" && string(made[0][i]) != string(made[1][i]) {
				t.Errorf("%s: %s differs", c.line, c.made[i])
			}
		}
	}
}
