package main

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// guestServe begins scripts for the guest: a disk that is served, whose URI is $uri, and its beginning in the file data.
const guestServe = `
	imgtool create -q -f qcow2 disk.qcow2 64M
	imgtool serve --fork -U /tmp/s -p 10809 -i 127.0.0.1 --pid-file pid disk.qcow2
	uri='nbd+unix:///?socket=/tmp/s'
	dd if=/dev/urandom of=data bs=1M count=4 2>/dev/null
	sum() { sha256sum "$@" | cut -c 1-64; }
	fails() { if "$@"; then echo "it did not fail: $*"; exit 1; fi; }
`

// TestGuest tries what needs a kernel with NBD devices and vsock.
func TestGuest(t *testing.T) {
	g := needGuest(t)
	t.Run("connect", func(t *testing.T) { guestConnect(t, g.clone()) })
	t.Run("client", func(t *testing.T) { guestClient(t, g.clone()) })
	t.Run("vsock", func(t *testing.T) { guestVsock(t, g.clone()) })
}

// guestConnect makes disks of exports with the kernel's own client, and puts file systems on them.
func guestConnect(t *testing.T, g *guest) {
	g.module(t, "drivers/block/nbd")
	g.program(t, "mke2fs", "/bin/mke2fs.real")
	g.program(t, "e2fsck", "/bin/e2fsck.real")
	g.boot(t, guestServe+`
	# The connections are the kernel's, and the program has ended.
	dev=$(imgtool nbd connect "$uri")
	[ $(cat /sys/block/${dev#/dev/}/size) = 131072 ]
	fails imgtool nbd connect "$uri" $dev
	mke2fs.real -q -t ext4 $dev
	mount -t ext4 $dev /mnt
	fails imgtool nbd disconnect $dev
	cp data /mnt/data; mkdir /mnt/dir; for i in 1 2 3 4 5 6; do cp data /mnt/dir/$i & done; wait; rm /mnt/dir/[1-3]
	fstrim /mnt
	umount /mnt
	e2fsck.real -fn $dev
	before=$(sum $dev)
	imgtool nbd disconnect $dev
	fails imgtool nbd disconnect $dev
	[ $(cat /sys/block/${dev#/dev/}/size) = 0 ]

	# Read-only, in large blocks, by TCP.
	[ "$(imgtool nbd connect -r -b 4K nbd://127.0.0.1/ /dev/nbd5)" = /dev/nbd5 ]
	[ $(cat /sys/block/nbd5/queue/logical_block_size) = 4096 ]
	[ $(cat /sys/block/nbd5/ro) = 1 ]
	[ $(sum /dev/nbd5) = $before ]
	fails dd if=data of=/dev/nbd5 bs=4k count=1
	imgtool nbd disconnect /dev/nbd5

	# A server that dies is an error, not a wait.
	imgtool serve --fork -r -U /tmp/s2 --pid-file pid2 null:4M
	imgtool nbd connect 'nbd+unix:///?socket=/tmp/s2' /dev/nbd6
	dd if=/dev/nbd6 of=/dev/null bs=4k count=1
	kill -KILL $(cat pid2)
	fails dd if=/dev/nbd6 of=/dev/null bs=1M skip=2
	imgtool nbd disconnect /dev/nbd6
	kill $(cat pid); while [ -e pid ]; do sleep 0.1; done
	imgtool check disk.qcow2

	# An image without a server.
	imgtool nbd connect --fork --pid-file pid disk.qcow2 /dev/nbd7
	[ $(sum /dev/nbd7) = $before ]
	mount -t ext4 /dev/nbd7 /mnt
	for i in 4 5 6; do cmp data /mnt/dir/$i; done
	cat data data > /mnt/more
	umount /mnt
	imgtool nbd disconnect /dev/nbd7
	while [ -e pid ]; do sleep 0.1; done
	imgtool check disk.qcow2
	imgtool nbd connect --fork --pid-file pid --cow disk.qcow2 /dev/nbd7
	mount -t ext4 /dev/nbd7 /mnt; cat data data | cmp - /mnt/more; rm /mnt/more; umount /mnt
	kill -TERM $(cat pid); while [ -e pid ]; do sleep 0.1; done
	[ $(cat /sys/block/nbd7/size) = 0 ]
	imgtool nbd connect --fork --pid-file pid -r disk.qcow2 /dev/nbd7
	mount -t ext4 -o ro /dev/nbd7 /mnt; cat data data | cmp - /mnt/more; umount /mnt
	e2fsck.real -fn /dev/nbd7
	imgtool nbd disconnect /dev/nbd7
	`)
}

// guestClient has nbd-client attach our exports.
func guestClient(t *testing.T, g *guest) {
	g.module(t, "drivers/block/nbd")
	g.program(t, "nbd-client", "/bin/nbd-client.real")
	g.boot(t, guestServe+`
	nbd-client.real -unix /tmp/s /dev/nbd0
	dd if=data of=/dev/nbd0 bs=64k conv=fsync
	dd if=/dev/nbd0 bs=1M count=4 2>/dev/null | cmp - data
	nbd-client.real -d /dev/nbd0
	nbd-client.real 127.0.0.1 /dev/nbd1 -C 4 -b 4096
	dd if=data of=/dev/nbd1 bs=1M seek=50 conv=fsync
	for i in 0 1 2 3; do dd if=/dev/nbd1 bs=1M skip=$((50+i)) count=1 of=part$i 2>/dev/null & done; wait
	cat part0 part1 part2 part3 | cmp - data
	nbd-client.real -d /dev/nbd1
	kill $(cat pid); while [ -e pid ]; do sleep 0.1; done
	imgtool check disk.qcow2
	imgtool dd -f qcow2 if=disk.qcow2 of=out.raw bs=1M skip=50 count=4 -O raw && cmp out.raw data
	`)
}

// guestVsock serves by vsock, and reads by the loopback that a machine has with itself.
func guestVsock(t *testing.T, g *guest) {
	g.module(t, "net/vmw_vsock/vsock")
	g.module(t, "net/vmw_vsock/vmw_vsock_virtio_transport_common")
	g.module(t, "net/vmw_vsock/vsock_loopback")
	g.module(t, "fs/fuse/fuse")
	g.boot(t, `
	dd if=/dev/urandom of=data bs=1M count=8 2>/dev/null
	dd if=/dev/urandom of=other bs=1M count=8 2>/dev/null
	imgtool serve --fork --vsock 10809 --pid-file pid data
	imgtool info nbd+vsock://1/
	imgtool convert nbd+vsock://1:10809/ copy.raw
	cmp data copy.raw
	imgtool convert other nbd+vsock://1/
	imgtool mount nbd+vsock://1/ d --run 'cmp "$file" other && dd if=/dev/zero of="$file" bs=1M count=1 conv=notrunc,fsync'
	kill $(cat pid); while [ -e pid ]; do sleep 0.1; done
	dd if=/dev/zero of=other bs=1M count=1 conv=notrunc
	cmp data other
	`)
}

// TestConnectWithout looks at what is said where the kernel has no NBD devices.
func TestConnectWithout(t *testing.T) {
	if _, err := os.Stat("/sys/module/nbd"); !errors.Is(err, os.ErrNotExist) {
		t.Skip("this kernel has NBD devices")
	}
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{exitFailed, "no NBD devices", []string{"connect", "null:1M"}},
		{exitFailed, "no NBD devices", []string{"disconnect", "/dev/nbd0"}},
		{exitUsage, "is no NBD device", []string{"connect", "null:1M", "/dev/sda"}},
		{exitUsage, "is no NBD device", []string{"disconnect", "nbd0"}},
		{exitUsage, "at least one", []string{"connect", "-C", "0", "null:1M"}},
		{exitUsage, "cannot be negative", []string{"connect", "--timeout", "-1s", "null:1M"}},
		{exitUsage, "--cow is for writing", []string{"connect", "--cow", "-r", "null:1M"}},
		{exitFailed, "of 3 bytes", []string{"connect", "-b", "3", "null:1M"}},
	} {
		if code, _, stderr := imgtool(t, append([]string{"nbd"}, c.args...)...); code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("nbd %v: %d, %q; want %d, %q", c.args, code, stderr, c.code, c.want)
		}
	}
}
