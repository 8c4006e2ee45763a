package check

import (
	"os"
	"testing"

	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/source/file"
)

// BenchmarkFile checks the image that IMGTOOL_CHECK names.
func BenchmarkFile(b *testing.B) {
	name := os.Getenv("IMGTOOL_CHECK")
	if name == "" {
		b.Skip("IMGTOOL_CHECK is not set")
	}
	for b.Loop() {
		dev, err := file.Open(b.Context(), name, file.Options{})
		must(b, err)
		r, err := Check(b.Context(), dev, formats.CheckOptions{})
		must(b, err)
		if c := code(r, nil); c != 0 {
			b.Fatalf("%+v", r)
		}
		must(b, dev.Close())
	}
	b.ReportAllocs()
}
