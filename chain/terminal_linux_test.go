package chain

import (
	"context"
	"errors"
	"os"
	"testing"
)

// TestCreateTerminal refuses to write an image to a terminal, by name and as standard output. /dev/ptmx is a terminal that nobody sees.
func TestCreateTerminal(t *testing.T) {
	const terminal = "/dev/ptmx"
	f, err := os.OpenFile(terminal, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, text := range []string{"-", terminal} {
		_, err := Create(context.Background(), text, CreateOptions{Stdout: f})
		var u *UsageError
		if !errors.As(err, &u) {
			t.Errorf("%s: %v; want a usage error", text, err)
		}
	}
}
