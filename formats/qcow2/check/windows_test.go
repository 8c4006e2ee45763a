package check

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/internal/peers"
)

// TestWindows: however little memory there is for counts, the result is the same.
func TestWindows(t *testing.T) {
	peers.Need(t, "qemu-img")
	peers.Need(t, "qemu-io")
	for n, rec := range recipes {
		sound, err := os.ReadFile(rec.build(t, t.TempDir()))
		must(t, err)
		for seed := range uint64(rounds(20)) {
			r := rand.New(rand.NewPCG(seed, uint64(n)))
			img := append([]byte(nil), sound...)
			for range r.IntN(4) {
				damage(t, img, r)
			}
			for _, how := range []formats.Repair{formats.RepairNothing, formats.RepairAll} {
				large, small := memory(t, img), memory(t, img)
				want, err := Check(t.Context(), large, formats.CheckOptions{Repair: how})
				o := formats.CheckOptions{Repair: how}
				o.Memory = 1
				got, err2 := Check(t.Context(), small, o)
				if got != want || (err == nil) != (err2 == nil) {
					t.Fatalf("%s, seed %d: %+v %v\nin little memory: %+v %v", rec.name, seed, want, err, got, err2)
				}
			}
		}
	}
}

// TestIncompleteSnapshots: version 3 says of each snapshot how large the disk was. Where that is missing, the snapshot table is written anew.
func TestIncompleteSnapshots(t *testing.T) {
	dir := t.TempDir()
	name := recipe{"old", "cluster_size=4k", []string{"write -P 1 0 100k", "-c one", "write -P 2 50k 100k", "-c two"}}.build(t, dir)
	img, err := os.ReadFile(name)
	must(t, err)
	h, err := ondisk.ParseHeader(img)
	must(t, err)
	list, _, err := ondisk.ReadSnapshots(t.Context(), memory(t, img), h)
	must(t, err)
	var table []byte
	for _, s := range list {
		s.HasDiskSize = false
		table = s.Append(table)
	}
	copy(img[h.SnapshotsOffset:], append(table, make([]byte, 64)...))
	binary.BigEndian.PutUint32(img[60:], uint32(len(list)))
	must(t, os.WriteFile(name, img, 0o600))
	want, wantCode := qemuCheck(t, name)
	got, _, err := run(t, name, formats.RepairNothing)
	must(t, err)
	if asTheirs(got) != want || code(got, nil) != wantCode {
		t.Errorf("%+v, and qemu-img has %+v", got, want)
	}
	got, told, err := run(t, name, formats.RepairAll)
	must(t, err)
	if code(got, nil) != 0 || got.CorruptionsFixed != 2 {
		t.Errorf("%+v %+v", got, told)
	}
	if after, rc := qemuCheck(t, name); rc != 0 {
		t.Errorf("after our repair qemu-img has %+v", after)
	}
	if out := peers.Run(t, "qemu-img", "snapshot", "-l", name); len(out) == 0 {
		t.Error("qemu-img lists no snapshots")
	}
}
