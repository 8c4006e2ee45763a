package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgtool/imgtool/internal/peers"
)

// needFUSE skips a test where nothing can be mounted.
func needFUSE(t *testing.T) {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil || os.Geteuid() != 0 {
		t.Skip("mounting needs root and /dev/fuse")
	} else {
		f.Close()
	}
}

// succeed runs the program, which has to end well, and returns what it prints.
func succeed(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := imgtool(t, args...)
	if code != exitDone {
		t.Fatalf("imgtool %s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// TestMountFileSystem makes a file system in the mounted disk of images of several kinds, changes it as the kernel does, and has others look at the
// file system and at the image after each mount.
func TestMountFileSystem(t *testing.T) {
	if testing.Short() {
		t.Skip("so many starts of a program take long under the race detector")
	}
	needFUSE(t)
	for _, program := range []string{"mke2fs", "e2fsck", "debugfs", "gzip", "sgdisk"} {
		peers.Need(t, program)
	}
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	check(t, os.MkdirAll(filepath.Join(tree, "a", "b"), 0o755))
	for i, n := range []int{0, 1, 4096, 100_000, 3 << 20} {
		check(t, os.WriteFile(filepath.Join(tree, "a", fmt.Sprint(i)), bytes.Repeat([]byte{byte(i), 7, 9}, n/3), 0o644))
	}
	raw, qcow2, disk := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "table.raw")
	succeed(t, "create", "-q", "-f", "raw", raw, "64M")
	succeed(t, "create", "-q", "-f", "qcow2", qcow2, "64M")
	succeed(t, "create", "-q", "-f", "raw", disk, "80M")
	peers.Run(t, "sgdisk", "-n", "1:2048:+64M", "-c", "1:boot", disk)
	succeed(t, "mod", "make", "-q", "--keep", "name=boot", disk, disk+".gz")
	for _, c := range []struct {
		name, image string
		good        func(t *testing.T)
	}{
		{"raw", raw, func(*testing.T) {}},
		{"qcow2", qcow2, func(t *testing.T) { succeed(t, "check", qcow2) }},
		{"gz", disk + ".gz::gz::part=name=boot", func(t *testing.T) {
			peers.Run(t, "gzip", "-t", disk+".gz")
			succeed(t, "mod", "verify", disk+".gz")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := t.TempDir()
			mount := func(script string, flags ...string) {
				t.Helper()
				succeed(t, append(flags, "mount", c.image, at, "--run", "set -e; export PATH=$PATH:/usr/sbin:/sbin; tree="+tree+"; "+script)...)
				c.good(t)
			}
			mount(`mke2fs -q -t ext4 -F -d $tree "$file"; e2fsck -fn "$file" >&2`)
			mount(`e2fsck -fn "$file" >&2; mkdir `+at+`.a; debugfs -R "rdump /a `+at+`.a" "$file" >&2; diff -r $tree/a `+at+`.a/a`, "-q")
			check(t, os.RemoveAll(at+".a"))
			if !canLoop(t) {
				t.Log("loop devices cannot be had here")
				return
			}
			mnt := t.TempDir()
			mount(`mount -o loop "$file" ` + mnt + `; trap 'umount ` + mnt + `' EXIT
				diff -r $tree/a ` + mnt + `/a; rm ` + mnt + `/a/3; cp -r $tree ` + mnt + `/again; dd if=/dev/urandom of=` + mnt + `/random bs=10007 count=500 2>/dev/null
				sync ` + mnt + `/random; fstrim ` + mnt + `; sha256sum < ` + mnt + `/random > ` + at + `.sum`)
			mount(`e2fsck -fn "$file" >&2; mount -o loop,ro "$file" ` + mnt + `; trap 'umount ` + mnt + `' EXIT
				diff -r $tree ` + mnt + `/again; test ! -e ` + mnt + `/a/3; sha256sum < ` + mnt + `/random | diff - ` + at + `.sum`)
			check(t, os.Remove(at+".sum"))
		})
	}
}

// canLoop reports whether there are loop devices, and the kernel has ext4.
func canLoop(t *testing.T) bool {
	known, err := os.ReadFile("/proc/filesystems")
	check(t, err)
	return exec.Command("losetup", "-f").Run() == nil && bytes.Contains(known, []byte("\text4\n"))
}

// TestMountVerify has fio write through the file in several ways and read it again.
func TestMountVerify(t *testing.T) {
	if testing.Short() {
		t.Skip("so many starts of a program take long under the race detector")
	}
	needFUSE(t)
	peers.Need(t, "fio")
	image := filepath.Join(t.TempDir(), "disk.qcow2")
	succeed(t, "create", "-q", "-f", "qcow2", image, "32M")
	for name, flags := range map[string]string{
		"direct":   "--direct=1 --ioengine=libaio --iodepth=16 --bsrange=512-64k",
		"buffered": "--ioengine=psync --bsrange=512-128k --fsync=50",
		"mapped":   "--ioengine=mmap --bs=4k",
	} {
		t.Run(name, func(t *testing.T) {
			succeed(t, "mount", image, t.TempDir(), "--run", `fio --name=v --filename="$file" --size=32M --rw=randwrite --verify=crc32c --verify_fatal=1 --verify_state_save=0 `+
				`--randrepeat=1 --minimal `+flags+` >&2`)
			succeed(t, "check", image)
		})
	}
}

// TestMountLife mounts in the background, and unmounts in the ways there are.
func TestMountLife(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	image, at, pid := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "at"), filepath.Join(dir, "pid")
	check(t, os.Mkdir(at, 0o755))
	succeed(t, "create", "-q", "-f", "qcow2", image, "1M")
	file := filepath.Join(at, "x")
	start := func() int {
		t.Helper()
		if out := succeed(t, "mount", "--fork", "--name", "x", "--pid-file", pid, image, at); out != file+"\n" {
			t.Errorf("mount printed %q", out)
		}
		text, err := os.ReadFile(pid)
		check(t, err)
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		check(t, err)
		return n
	}
	ended := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); syscall.Kill(n, 0) == nil; time.Sleep(time.Millisecond) {
			if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n)); err == nil && bytes.Contains(stat, []byte(") Z ")) {
				break // its new parent has not looked yet
			}
			if time.Now().After(deadline) {
				t.Fatal("the program does not end")
			}
		}
		if _, err := os.Stat(pid); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the file with the process number is still there: %v", err)
		}
		succeed(t, "check", image)
	}

	n := start()
	check(t, os.WriteFile(filepath.Join(dir, "in"), []byte("first"), 0o666))
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	check(t, err)
	_, err = f.WriteAt([]byte("first"), 1000)
	check(t, err)
	if code, _, stderr := imgtool(t, "unmount", at); code != exitFailed || !strings.Contains(stderr, "hint: --lazy") {
		t.Errorf("unmount of a busy file: %d, %s", code, stderr)
	}
	if code, _, stderr := imgtool(t, "mount", "-U", "-r", image, at); code != exitFailed || !strings.Contains(stderr, "mounted here already") {
		t.Errorf("mount in the same place: %d, %s", code, stderr)
	}
	check(t, f.Close())
	succeed(t, "unmount", at)
	ended(n)

	n = start()
	f, err = os.Open(file)
	check(t, err)
	check(t, syscall.Kill(n, syscall.SIGTERM)) // while it is in use
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the signal does not unmount it")
		}
	}
	got := make([]byte, 5)
	if _, err := f.ReadAt(got, 1000); err != nil || string(got) != "first" {
		t.Errorf("the file that is unmounted and open reads %q: %v", got, err)
	}
	check(t, f.Close())
	ended(n)

	n = start()
	check(t, syscall.Kill(n, syscall.SIGKILL))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(file); errors.Is(err, syscall.ENOTCONN) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("killed, and still there")
		}
	}
	if code, _, stderr := imgtool(t, "mount", image, at); code != exitFailed || !strings.Contains(stderr, "hint: a program that was killed") {
		t.Errorf("mount over what a killed program has left: %d, %s", code, stderr)
	}
	succeed(t, "unmount", at)
	check(t, os.Remove(pid))
}

// TestMountCaptive mounts what a server of its own has, kills that, and looks at what programs are told.
func TestMountCaptive(t *testing.T) {
	needFUSE(t)
	peers.Need(t, "nbdkit")
	at := t.TempDir()
	pid := filepath.Join(t.TempDir(), "pid")
	code, _, stderr := imgtool(t, "mount", "[", "nbdkit", "-P", pid, "memory", "8M", "]", at, "--run", `
		dd if=/dev/urandom of="$file" bs=1M count=8 conv=notrunc,fsync || exit 20
		kill -KILL $(cat `+pid+`)
		dd if="$file" of=/dev/null bs=4096 count=1 iflag=direct && exit 21
		dd if=/dev/zero of="$file" bs=4096 count=1 conv=notrunc && exit 22
		exit 23`)
	if code != 23 || strings.Count(stderr, "Input/output error") != 2 {
		t.Errorf("code %d\n%s", code, stderr)
	}
}

// TestMountSays looks at what is printed, and at what cannot be mounted.
func TestMountSays(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	image := filepath.Join(dir, "disk.raw")
	check(t, os.WriteFile(image, make([]byte, 1<<20), 0o666))
	var info mountInfo
	out := succeed(t, "mount", "--json", "-r", image, dir, "--run", `test -r "$file" && ! test -w "$file"`)
	check(t, json.Unmarshal([]byte(out), &info))
	if want := (mountInfo{filepath.Join(dir, "disk"), 1 << 20, true}); info != want {
		t.Errorf("it says %v, want %v", info, want)
	}
	succeed(t, "mount", "--cow", image, image, "--run", `printf changed | dd of="$file" conv=notrunc 2>&1 && test "$(head -c 7 "$file")" = changed`)
	if p, err := os.ReadFile(image); err != nil || bytes.ContainsFunc(p, func(r rune) bool { return r != 0 }) {
		t.Errorf("--cow has changed the image: %v", err)
	}
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{exitFailed, "no such file", []string{image, filepath.Join(dir, "absent")}},
		{exitFailed, "no such file", []string{filepath.Join(dir, "absent"), dir}},
		{exitFailed, "neither a folder nor a regular file", []string{image, "/dev/null"}},
		{exitUsage, "cannot be the name of a file", []string{"--name", "a/b", image, dir}},
		{exitUsage, "--cow is for writing", []string{"--cow", "-r", image, dir}},
		{exitUsage, "--fork and --run", []string{"--fork", "--run", "true", image, dir}},
		{exitUsage, "takes 2 arguments", []string{image}},
		{9, "", []string{image, dir, "--run", "exit 9"}},
	} {
		if code, _, stderr := imgtool(t, append([]string{"mount"}, c.args...)...); code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("mount %v: %d, %q; want %d, %q", c.args, code, stderr, c.code, c.want)
		}
	}
}

// TestMountUser mounts as a user other than root, which fusermount3 does for him.
func TestMountUser(t *testing.T) {
	needFUSE(t)
	peers.Need(t, "fusermount3")
	for _, tool := range []string{"unshare", "setpriv", "mknod"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	program, err := exec.LookPath("imgtool")
	check(t, err)
	p, err := os.ReadFile(program)
	check(t, err)
	dir := t.TempDir()
	const nobody = 65534
	check(t, errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chown(dir, nobody, nobody)))
	check(t, os.WriteFile(filepath.Join(dir, "imgtool"), p, 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "script"), []byte(`set -e
		truncate -s 1M disk.raw; mkdir at
		./imgtool mount -f raw disk.raw at --run 'printf by-nobody | dd of="$file" conv=notrunc; test -O "$file"'
		test "$(head -c 9 disk.raw)" = by-nobody
		./imgtool mount -r --fork -f raw disk.raw at
		exec 3< at/disk
		if ./imgtool unmount at; then exit 1; fi
		./imgtool unmount --lazy at
		test ! -e at/disk; test "$(head -c 9 <&3)" = by-nobody
		exec 3<&-`), 0o644))
	// The device may be root's alone, so it is another one for the script, which sees mounts of its own.
	cmd := exec.CommandContext(t.Context(), "unshare", "-m", "sh", "-ec", `
		mknod -m 666 fuse c 10 229; mount --bind fuse /dev/fuse
		exec setpriv --reuid=65534 --regid=65534 --clear-groups env HOME="$PWD" sh ./script`)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
