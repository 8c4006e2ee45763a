package file

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
)

func TestLocks(t *testing.T) {
	path := newFile(t, t.TempDir(), make([]byte, 4096))
	try := func(o Options) error {
		d, err := Open(t.Context(), path, o)
		if err == nil {
			ok(t, d.Close())
		}
		return err
	}
	first := open(t, path, Options{})
	ok(t, try(Options{}))
	want(t, try(Options{Write: true}), block.ErrBusy)
	ok(t, try(Options{Write: true, NoLock: true}))
	ok(t, first.Close())
	ok(t, try(Options{Write: true}))

	writer := open(t, path, Options{Write: true})
	want(t, try(Options{Write: true}), block.ErrBusy)
	want(t, try(Options{}), block.ErrBusy)
	ok(t, try(Options{NoLock: true}))
	_, err := Create(path, CreateOptions{})
	want(t, err, block.ErrBusy)
	var hint *block.Hint
	if !errors.As(err, &hint) || hint.Text == "" {
		t.Errorf("no hint: %v", err)
	}

	// A file that stays open after New has failed keeps no lock.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ok(t, err)
	defer f.Close()
	_, err = New(f, Options{Write: true})
	want(t, err, block.ErrBusy)
	ok(t, writer.Close())
	ok(t, try(Options{Write: true}))
}

func TestLocksAgainstQEMU(t *testing.T) {
	path := newFile(t, t.TempDir(), make([]byte, 4096))
	qemu := func(args ...string) string {
		out, _ := peers.Command(t, "qemu-io", append(args, "-f", "raw", "-c", "read 0 512", path)...).CombinedOutput()
		return string(out)
	}
	denied := func(out string) bool { return strings.Contains(out, "Failed to get") && strings.Contains(out, "lock") }

	d := open(t, path, Options{Write: true})
	if out := qemu(); !denied(out) {
		t.Errorf("our writer did not keep out a writer: %s", out)
	}
	out, err := peers.Command(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", path, path+".copy").CombinedOutput()
	if err == nil || !denied(string(out)) {
		t.Errorf("our writer did not keep out a reader: %s", out)
	}
	ok(t, d.Close())
	if out := qemu(); denied(out) {
		t.Errorf("locks outlived the device: %s", out)
	}
	d = open(t, path, Options{})
	if out := qemu(); !denied(out) {
		t.Errorf("our reader did not keep out a writer: %s", out)
	}
	if out := qemu("-r"); denied(out) {
		t.Errorf("our reader kept out a reader: %s", out)
	}
	ok(t, d.Close())

	quit := holdByQEMU(t, path)
	for _, o := range []Options{{}, {Write: true}} {
		_, err := Open(t.Context(), path, o)
		want(t, err, block.ErrBusy)
	}
	_, err = Create(path, CreateOptions{})
	want(t, err, block.ErrBusy)
	open(t, path, Options{NoLock: true})
	quit()
	open(t, path, Options{Write: true})
}

// holdByQEMU has qemu-io open the file for writing until quit is called.
func holdByQEMU(t *testing.T, path string) (quit func()) {
	t.Helper()
	cmd := peers.Command(t, "qemu-io", "-f", "raw", path)
	in, err := cmd.StdinPipe()
	ok(t, err)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	_, err = io.WriteString(in, "write 0 512\n")
	ok(t, err)
	for lines := bufio.NewScanner(out); ; {
		if !lines.Scan() {
			t.Fatal("qemu-io ended")
		}
		if strings.Contains(lines.Text(), "wrote 512/512") {
			break
		}
	}
	return func() {
		ok(t, in.Close())
		_, err := io.Copy(io.Discard, out)
		ok(t, err)
		ok(t, cmd.Wait())
	}
}
