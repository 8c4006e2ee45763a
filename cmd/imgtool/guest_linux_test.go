package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/internal/peers"
)

// guest is a virtual machine that boots the kernel of a real disk with an initial file system of our own, in which /init runs a script.
type guest struct {
	release  string // of the kernel
	kernel   string // its file
	modules  string // partition with /usr/lib/modules, for debugfs
	files    archive
	names    map[string]bool // in files
	loading  []string        // modules, in the order of loading
	memory   int             // MiB
	deadline time.Duration
}

// needGuest returns a machine in which nothing but the kernel is, and skips the test outside of `make soak`.
func needGuest(t *testing.T) *guest {
	t.Helper()
	if os.Getenv("IMGTOOL_SOAK") != "1" {
		t.Skip("IMGTOOL_SOAK=1 boots virtual machines")
	}
	disk := filepath.Join(peers.Images(t), "debian.raw")
	p, err := os.ReadFile(strings.TrimSuffix(disk, ".raw") + ".json")
	check(t, err)
	var table struct {
		Partitions []struct {
			Name  string
			Start int64
		}
	}
	check(t, json.Unmarshal(p, &table))
	at := map[string]string{}
	for _, p := range table.Partitions {
		at[p.Name] = fmt.Sprintf("%s?offset=%d", disk, p.Start)
	}
	g := &guest{modules: at["root"], names: map[string]bool{}, memory: 768, deadline: 10 * time.Minute}
	g.release = strings.TrimPrefix(match(t, at["boot"], "/", "vmlinuz-*"), "vmlinuz-")
	g.kernel = filepath.Join(t.TempDir(), "vmlinuz")
	debugfs(t, at["boot"], "dump /vmlinuz-"+g.release+" "+g.kernel)
	for _, dir := range []string{"bin", "dev", "proc", "sys", "tmp", "mnt", "lib", "lib64", "modules"} {
		g.files.folder(dir)
		g.names[dir] = true
	}
	g.program(t, "busybox", "/bin/busybox")
	g.copy(t, buildProgram(t), "bin/imgtool")
	return g
}

// copy puts a file of this machine into the guest.
func (g *guest) copy(t *testing.T, from, to string) {
	t.Helper()
	p, err := os.ReadFile(from)
	check(t, err)
	g.add(to, p)
}

// add puts a file into the guest, and the folders that it needs.
func (g *guest) add(to string, content []byte) {
	if g.names[to] {
		return
	}
	var above []string
	for dir := path.Dir(to); dir != "." && !g.names[dir]; dir = path.Dir(dir) {
		above = append(above, dir)
	}
	for _, dir := range slices.Backward(above) {
		g.files.folder(dir)
		g.names[dir] = true
	}
	g.files.file(to, content)
	g.names[to] = true
}

// program puts a peer and its libraries into the guest.
func (g *guest) program(t *testing.T, name, to string) {
	t.Helper()
	from := peers.Need(t, name)
	g.copy(t, from, strings.TrimPrefix(to, "/"))
	out, err := exec.Command("ldd", from).CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte("not a dynamic executable")) {
		t.Fatalf("ldd %s: %v\n%s", from, err, out)
	}
	for _, m := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllSubmatch(out, -1) {
		g.copy(t, string(m[1]), string(m[1][1:]))
	}
}

// module puts a module of the kernel into the guest, which loads it. Modules that it needs come first.
func (g *guest) module(t *testing.T, name string) {
	t.Helper()
	base := strings.TrimSuffix(path.Base(name), ".ko")
	content := debugfs(t, g.modules, "cat /usr/lib/modules/"+g.release+"/kernel/"+name+".ko")
	if len(content) == 0 {
		t.Fatalf("the kernel has no module %s", name)
	}
	g.add("modules/"+base+".ko", content)
	g.loading = append(g.loading, base)
}

// guestDone is the last line of a script that has succeeded.
const guestDone = "GUEST-DONE"

// clone returns a guest with the same files, to which others can be added.
func (g *guest) clone() *guest {
	c := *g
	c.files.buf = *bytes.NewBuffer(bytes.Clone(g.files.buf.Bytes()))
	c.names, c.loading = maps.Clone(g.names), slices.Clone(g.loading)
	return &c
}

// boot runs a script in the guest, step by step; the first command that fails ends it, but for those behind a !.
func (g *guest) boot(t *testing.T, script string) {
	t.Helper()
	var init strings.Builder
	init.WriteString("#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin HOME=/tmp\n" +
		"mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp; mkdir /tmp/d; cd /tmp\n")
	for _, m := range g.loading {
		fmt.Fprintf(&init, "insmod /modules/%s.ko\n", m)
	}
	init.WriteString("(set -ex; ip link set lo up\n" + script + "\n)\n[ $? = 0 ] && echo " + guestDone + " || dmesg | tail -n 40\npoweroff -f\n")
	g.files.file("init", []byte(init.String()))
	initrd := filepath.Join(t.TempDir(), "initrd")
	check(t, os.WriteFile(initrd, g.files.end(), 0o666))

	serial := runMachine(t, g.deadline, "-m", fmt.Sprint(g.memory), "-kernel", g.kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1")
	t.Logf("%s", serial)
	if !strings.Contains(serial, "\n"+guestDone+"\n") {
		t.Error("the script has not come to its end")
	}
}

// runMachine runs a virtual machine until it powers off, and returns what is on its serial line. Its processor is an emulated one, which every machine has;
// it is the same everywhere, and slow.
func runMachine(t *testing.T, limit time.Duration, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	args = append([]string{"-accel", "tcg", "-cpu", "max", "-smp", "2", "-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "stdio", "-no-reboot"}, args...)
	start := time.Now()
	out, err := exec.CommandContext(ctx, peers.Need(t, "qemu-system-x86_64"), args...).CombinedOutput()
	serial := strings.ReplaceAll(string(out), "\r", "")
	t.Logf("the machine ran for %v", time.Since(start).Round(time.Millisecond))
	if err != nil {
		t.Fatalf("%v\n%s", errors.Join(err, ctx.Err()), serial)
	}
	return serial
}

// archive is a cpio archive in the format newc, which kernels unpack.
type archive struct {
	buf   bytes.Buffer
	inode int
}

func (a *archive) folder(name string) { a.entry(name, 0o40755, nil) }

func (a *archive) file(name string, content []byte) { a.entry(name, 0o100755, content) }

func (a *archive) entry(name string, mode int, content []byte) {
	a.inode++
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.buf.Write(content)
	a.pad()
}

func (a *archive) pad() { a.buf.Write(make([]byte, -a.buf.Len()&3)) }

// end returns the whole archive.
func (a *archive) end() []byte {
	a.entry("TRAILER!!!", 0, nil)
	return a.buf.Bytes()
}
