package all_test

import (
	"slices"
	"testing"

	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/all"
)

// TestDrivers checks what must hold of the list, whatever it holds.
func TestDrivers(t *testing.T) {
	r := all.Drivers()
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	if last := r[len(r)-1]; last.Name != "raw" {
		t.Errorf("the last driver is %s: raw takes everything and comes last", last.Name)
	}
	if first, again := r.Names(), all.Drivers().Names(); !slices.Equal(first, again) {
		t.Errorf("the order changes: %v, %v", first, again)
	}
	for _, d := range r {
		if d.Doc == "" {
			t.Errorf("driver %s has no line of documentation", d.Name)
		}
		if d.Probe == nil {
			t.Errorf("driver %s cannot be found by sniffing", d.Name)
			continue
		}
		for _, head := range [][]byte{nil, {0}, make([]byte, formats.HeadSize)} {
			if s := d.Probe(formats.StreamHead(head, true)); d.Name != "raw" && s != formats.No {
				t.Errorf("driver %s takes %d zeros for its own", d.Name, len(head))
			}
		}
	}
}
