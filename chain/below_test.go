package chain

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// TestOpenBelow opens chains up to their last format.
func TestOpenBelow(t *testing.T) {
	path := write(t, "x.img", "WRAPDISKpayload")
	for _, c := range []struct{ text, format, driver, below string }{
		{path, "", "disk", "DISKpayload"},
		{path + "::wrap", "", "disk", "DISKpayload"},
		{path + "::wrap::disk", "", "disk", "DISKpayload"},
		{path, "wrap", "wrap", "WRAPDISKpayload"},
		{path + "::wrap::disk::raw", "", "raw", "payload"},
		{path + "::wrap", "raw", "raw", "DISKpayload"},
		{path + "::window,offset=2::disk", "", "disk", "yload"},
	} {
		b, err := OpenBelow(t.Context(), c.text, Options{Registry: registry(), Format: c.format})
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		p := make([]byte, b.Device.Size())
		if err := b.Device.Read(t.Context(), p, 0); err != nil || string(p) != c.below || b.Format() != c.driver || b.Open.Name != path {
			t.Errorf("%s: %s lies on %q, %v, %q", c.text, b.Format(), p, err, b.Open.Name)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := b.Device.Close(); err == nil {
			t.Errorf("%s: it was not closed", c.text)
		}
	}
}

func TestOpenBelowErrors(t *testing.T) {
	path := write(t, "x.img", "WRAPDISKpayload")
	var usage *UsageError
	for _, text := range []string{path + "::window,offset=1", path + "::wrap::disk::readonly"} {
		if b, err := OpenBelow(t.Context(), text, Options{Registry: registry()}); !errors.As(err, &usage) {
			t.Errorf("%s: %v, %v", text, b, err)
		}
	}
	for _, content := range []string{"ONEWDISKpayload", "ONEWpayload", "ONEWONEWpayload"} {
		b, err := OpenBelow(t.Context(), write(t, "y.img", content), Options{Registry: registry()})
		if err == nil || hint(err) == "" {
			t.Errorf("%s, which goes one way, gives %v, %v", content, b, err)
		}
	}
	for _, c := range []struct{ content, format string }{
		{"DISKpayload", ""}, {"DISKpayload", "disk"}, {"DISKpayload", "raw"}, {"WRAPDISKpayload", ""}, {"WRAPpayload", ""}, {"ONEWpayload", ""}, {"payload", ""},
		{"payload", "wrap"}, {"", ""}, {"", "disk"},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString(c.content); err != nil {
			t.Fatal(err)
		}
		w.Close()
		b, err := OpenBelow(t.Context(), Standard, Options{Registry: registry(), Format: c.format, Stdin: r})
		if err == nil || hint(err) == "" || !strings.HasPrefix(err.Error(), "standard input: ") {
			t.Errorf("%q as %q from a pipe: %v, %v", c.content, c.format, b, err)
		}
		r.Close()
	}
	var named *Error
	b, err := OpenBelow(t.Context(), path, Options{Registry: registry()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Device.Write(t.Context(), []byte("x"), 0, 0); !errors.As(err, &named) || !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("writing what is open for reading: %v", err)
	}
}

// hint returns what err says the user can do.
func hint(err error) string {
	var h *block.Hint
	if errors.As(err, &h) {
		return h.Text
	}
	return ""
}
