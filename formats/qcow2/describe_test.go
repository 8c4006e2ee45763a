package qcow2

import (
	"encoding/binary"
	"encoding/json"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/source/file"
)

// said is what qemu-img info says of an image.
type said struct {
	ClusterSize int64  `json:"cluster-size"`
	Encrypted   bool   `json:"encrypted"`
	Dirty       bool   `json:"dirty-flag"`
	Backing     string `json:"backing-filename"`
	Format      string `json:"backing-filename-format"`
	Specific    struct {
		Data any `json:"data"`
	} `json:"format-specific"`
	Snapshots []struct {
		ID     string `json:"id"`
		Name   string `json:"name"`
		Sec    int64  `json:"date-sec"`
		Nsec   int64  `json:"date-nsec"`
		ICount int64  `json:"icount"`
	} `json:"snapshots"`
}

// TestDescribe compares what an image says of itself with what qemu-img says.
func TestDescribe(t *testing.T) {
	secret := []string{"--object", "secret,id=key,data=abc"}
	for name, c := range map[string]struct {
		options string
		more    []string
		then    func(path string)
	}{
		"default":       {},
		"v2":            {options: "compat=0.10"},
		"v3":            {options: "lazy_refcounts=on,refcount_bits=1,cluster_size=4k"},
		"zstd":          {options: "compression_type=zstd,extended_l2=on"},
		"raw data file": {options: "data_file=data,data_file_raw=on"},
		"data file":     {options: "data_file=data"},
		"bitmaps": {then: func(path string) {
			qemuImg(t, "bitmap", "--add", "-f", Name, path, "one")
			qemuImg(t, "bitmap", "--add", "--disable", "-g", "4096", "-f", Name, path, "two")
		}},
		"snapshots": {options: "compat=0.10", then: func(path string) {
			qemuImg(t, "snapshot", "-c", "one", path)
			qemuImg(t, "snapshot", "-c", "two", path)
		}},
		"LUKS":                     {then: func(path string) { addLUKS(t, path, "xts-plain64", 64) }},
		"LUKS with a hash for IVs": {then: func(path string) { addLUKS(t, path, "cbc-essiv:sha256", 32) }},
		"AES":                      {options: "encrypt.format=aes,encrypt.key-secret=key", more: secret},
		"dirty and corrupt": {then: func(path string) {
			f, err := file.Open(ctx, path, file.Options{Write: true})
			ok(t, err)
			ok(t, f.Write(ctx, binary.BigEndian.AppendUint64(nil, ondisk.IncompatDirty|ondisk.IncompatCorrupt), 72, 0))
			ok(t, f.Close())
		}},
		"backing": {more: []string{"-b", "base.raw", "-F", "raw", "-u"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			options := strings.Replace(c.options, "data_file=", "data_file="+filepath.Dir(path)+"/", 1)
			create(t, path, options, "1M", c.more...)
			if c.then != nil {
				c.then(path)
			}
			var want said
			ok(t, json.Unmarshal(qemuImg(t, "info", "--output=json", "-f", Name, path), &want))
			d, err := Open(ctx, memoryOf(t, path), formats.OpenOptions{Lazy: true})
			ok(t, err)
			describer, found := block.As[formats.Describer](d)
			if !found {
				t.Fatal("it says nothing of itself")
			}
			got, err := describer.Describe(ctx)
			ok(t, err)
			compareDescription(t, got, want)
		})
	}
}

// addLUKS gives an image an encryption header. qemu-img could, but would measure for long how fast it is.
func addLUKS(t *testing.T, path, mode string, keyBytes uint32) {
	t.Helper()
	f, err := file.Open(ctx, path, file.Options{Write: true})
	ok(t, err)
	h, err := ondisk.ReadHeader(ctx, f)
	ok(t, err)
	const off = 1 << 20
	l := luksHeader{Magic: [6]byte([]byte("LUKS\xba\xbe")), Version: 1, PayloadOffset: 4040, KeyBytes: keyBytes, MKDigestIter: 1000}
	copy(l.CipherName[:], "aes")
	copy(l.CipherMode[:], mode)
	copy(l.HashSpec[:], "sha256")
	copy(l.UUID[:], "360dbdb4-93b7-4819-83a5-43b5c752b0dd")
	for i := range l.Slots {
		s := &l.Slots[i]
		s.Active, s.KeyMaterialOffset, s.Stripes = 0x0000dead, uint32(8+504*i), 4000
	}
	l.Slots[2].Active, l.Slots[2].Iterations = slotActive, 39960
	p, err := binary.Append(nil, binary.BigEndian, &l)
	ok(t, err)
	ok(t, f.Write(ctx, append(p, make([]byte, 4040*512-len(p))...), off, 0))
	h.CryptMethod = ondisk.CryptLUKS
	h.SetExtension(ondisk.ExtEncryption, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, off), 4040*512))
	p, err = h.Encode()
	ok(t, err)
	ok(t, f.Write(ctx, p, 0, 0))
	ok(t, f.Close())
}

func compareDescription(t *testing.T, got formats.Description, want said) {
	t.Helper()
	p, err := json.Marshal(got.Specific)
	ok(t, err)
	var specific any
	ok(t, json.Unmarshal(p, &specific))
	if !reflect.DeepEqual(specific, want.Specific.Data) {
		t.Errorf("%s\nqemu-img says\n%v", p, want.Specific.Data)
	}
	backing := formats.Ref{}
	if got.Backing != nil {
		backing = *got.Backing
	}
	if got.ClusterSize != want.ClusterSize || got.Encrypted != want.Encrypted || got.Dirty != want.Dirty || backing.Name != want.Backing || backing.Format != want.Format {
		t.Errorf("%+v\nqemu-img says\n%+v", got, want)
	}
	if len(got.Snapshots) != len(want.Snapshots) {
		t.Fatalf("%d snapshots, and %d for qemu-img", len(got.Snapshots), len(want.Snapshots))
	}
	for i, s := range got.Snapshots {
		if w := want.Snapshots[i]; s.ID != w.ID || s.Name != w.Name || s.Date.Unix() != w.Sec || int64(s.Date.Nanosecond()) != w.Nsec || s.ICount != w.ICount {
			t.Errorf("%+v\nqemu-img says\n%+v", s, w)
		}
	}
}
