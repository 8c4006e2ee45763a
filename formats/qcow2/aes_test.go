package qcow2

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// TestAES reads what qemu-img has encrypted, with passwords of all lengths.
func TestAES(t *testing.T) {
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(1, 1))
	want := noise(r, 1<<20)
	clear(want[100<<10 : 300<<10])
	raw := filepath.Join(dir, "raw")
	ok(t, os.WriteFile(raw, want, 0o666))
	for _, password := range []string{"a", "0123456789abcdef", "0123456789abcdefghij"} {
		path, key := filepath.Join(dir, "image"), filepath.Join(dir, "key")
		ok(t, os.WriteFile(key, []byte(password), 0o600))
		qemuImg(t, "convert", "-f", "raw", "-O", Name, "--object", "secret,id=key,file="+key, "-o", "cluster_size=4k,encrypt.format=aes,encrypt.key-secret=key", raw, path)
		d, err := Open(ctx, memoryOf(t, path), formats.OpenOptions{Values: map[string]string{"key-file": key}})
		ok(t, err)
		same(t, contents(t, d, r), want)

		if _, err := Open(ctx, memoryOf(t, path), formats.OpenOptions{}); !errors.Is(err, block.ErrKey) {
			t.Errorf("without a key: %v", err)
		}
		if _, err := Open(ctx, memoryOf(t, path), formats.OpenOptions{Write: true, Values: map[string]string{"key-file": key}}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("for writing: %v", err)
		}
		lazy, err := Open(ctx, memoryOf(t, path), formats.OpenOptions{Lazy: true})
		ok(t, err)
		if err := lazy.Read(ctx, make([]byte, 10), 0); !errors.Is(err, block.ErrKey) {
			t.Errorf("read without a key: %v", err)
		}
	}
	if _, err := readKey(filepath.Join(dir, strings.Repeat("x", 9))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that there is not: %v", err)
	}
}
