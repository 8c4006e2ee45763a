package gz

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
)

// TestCorpus unpacks the gzip files of the corpus, as a stream and as a device.
func TestCorpus(t *testing.T) {
	var manifest []struct {
		File, Format, Wrap, Expect string
		Size                       int64  `json:"image_bytes"`
		Sum                        string `json:"image_sha256"`
	}
	corpus := peers.OpenCorpus(t, &manifest)
	seen := 0
	for _, e := range manifest {
		if e.Wrap != Name && e.Format != Name || e.Size > 256<<20 {
			continue
		}
		seen++
		t.Run(e.File, func(t *testing.T) {
			packed, err := os.ReadFile(corpus.File(e.File))
			check(t, err)
			streamed, streamErr := decodeAll(packed)
			opened, openErr := openAll(t, packed)
			if e.Format == Name && e.Wrap == "" { // damaged on purpose
				var corrupt *block.CorruptError
				if !errors.As(streamErr, &corrupt) || !errors.As(openErr, &corrupt) {
					t.Errorf("as a stream: %v; as a device: %v", streamErr, openErr)
				}
				return
			}
			check(t, streamErr)
			check(t, openErr)
			if sum := sha256.Sum256(streamed); int64(len(streamed)) != e.Size || hex.EncodeToString(sum[:]) != e.Sum {
				t.Errorf("as a stream: %d bytes, want %d", len(streamed), e.Size)
			}
			if !bytes.Equal(opened, streamed) {
				t.Errorf("as a device: %d bytes, want %d", len(opened), e.Size)
			}
		})
	}
	if seen < 50 {
		t.Errorf("the corpus has %d gzip files", seen)
	}
}
