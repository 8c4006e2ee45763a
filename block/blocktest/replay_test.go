package blocktest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
)

const replaySize = 64 << 10

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func bytesOf(t testing.TB, d block.Device) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	check(t, d.Read(context.Background(), p, 0))
	return p
}

// letters tells which of the blocks of 4096 bytes were written: the first byte of each that is not zero.
func letters(t testing.TB, d block.Device) string {
	var s strings.Builder
	p := bytesOf(t, d)
	for off := 0; off < len(p); off += 4096 {
		if p[off] != 0 {
			s.WriteByte(p[off])
		}
	}
	return s.String()
}

// put writes a block whose bytes are all the letter, at the letter's place.
func put(t testing.TB, d block.Device, letter byte, f block.Flags) {
	t.Helper()
	check(t, d.Write(t.Context(), bytes.Repeat([]byte{letter}, 4096), int64(letter-'a')*4096, f))
}

func TestReplayFlush(t *testing.T) {
	r := blocktest.NewRecorder(block.NewMemory(replaySize))
	put(t, r, 'a', 0) // entry 0
	put(t, r, 'b', 0) // 1
	check(t, r.Flush(t.Context()))
	put(t, r, 'c', 0) // 3
	put(t, r, 'd', block.FUA)
	put(t, r, 'e', 0) // 5
	var seen []string
	for s := range r.Log().Replay(blocktest.Crashes{Torn: -1, Reordered: 100}) {
		got := letters(t, s.Devices[0])
		seen = append(seen, got)
		if s.Entry > 2 && !strings.HasPrefix(got, "ab") {
			t.Errorf("%s: %q lost what was flushed", s.What, got)
		}
	}
	slices.Sort(seen)
	seen = slices.Compact(seen)
	if want := []string{"", "a", "ab", "abc", "abcd", "abcde", "abd", "abde", "b"}; !slices.Equal(seen, want) {
		t.Errorf("states %q, want %q", seen, want)
	}
}

func TestReplayTorn(t *testing.T) {
	r := blocktest.NewRecorder(block.NewMemory(replaySize))
	check(t, r.Write(t.Context(), bytes.Repeat([]byte{1}, 2000), 500, 0)) // boundaries at 512, 1024, 1536 and 2048
	var got []int
	for s := range r.Log().Replay(blocktest.Crashes{Torn: 100, Reordered: -1}) {
		p := bytesOf(t, s.Devices[0])
		first, last := bytes.IndexByte(p, 1), bytes.LastIndexByte(p, 1)
		if first >= 0 && first != 500 {
			t.Errorf("%s: begins at byte %d", s.What, first)
		}
		got = append(got, last+1)
	}
	slices.Sort(got)
	if want := []int{0, 0, 512, 1024, 1536, 2048, 2500}; !slices.Equal(got, want) {
		t.Errorf("the write ends at %v, want %v", got, want)
	}
}

// A flush of one device does not make durable what was written to the other.
func TestReplayTwoDevices(t *testing.T) {
	log := new(blocktest.Log)
	image, side := log.Recorder(block.NewMemory(replaySize)), log.Recorder(block.NewMemory(replaySize))
	put(t, image, 'a', 0)
	put(t, side, 'b', 0)
	check(t, image.Flush(t.Context()))
	log.Mark(1)
	put(t, side, 'c', 0)
	check(t, side.Flush(t.Context()))
	log.Mark(2)
	seen := map[string]bool{}
	for s := range log.Replay(blocktest.Crashes{}) {
		got := letters(t, s.Devices[0]) + "|" + letters(t, s.Devices[1])
		seen[got] = true
		if s.Mark >= 1 && !strings.HasPrefix(got, "a|") || s.Mark >= 2 && got != "a|bc" {
			t.Errorf("after mark %d: %q (%s)", s.Mark, got, s.What)
		}
	}
	for _, want := range []string{"|", "a|", "|b", "a|b", "a|c", "a|bc"} {
		if !seen[want] {
			t.Errorf("%q is missing in %v", want, seen)
		}
	}
}

// slow is a device whose writes wait until they may return.
type slow struct {
	block.Filter
	began, finish chan struct{}
}

func (s slow) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	s.began <- struct{}{}
	<-s.finish
	return s.Device.Write(ctx, p, off, f)
}

// A flush covers what returned before it was called: not what was in flight, even where that returned before the flush did.
func TestReplayWriteInFlight(t *testing.T) {
	d := slow{block.Filter{Device: block.NewMemory(replaySize)}, make(chan struct{}), make(chan struct{})}
	r := blocktest.NewRecorder(d)
	var wait sync.WaitGroup
	wait.Go(func() { put(t, r, 'a', 0) })
	<-d.began
	check(t, r.Flush(t.Context()))
	d.finish <- struct{}{}
	wait.Wait()
	r.Log().Mark(1)
	lost := false
	for s := range r.Log().Replay(blocktest.Crashes{}) {
		lost = lost || s.Mark == 1 && letters(t, s.Devices[0]) == ""
	}
	if !lost {
		t.Error("a write that was in flight during the flush is never lost")
	}
}

// What is durable stays over what came before it and is not.
func TestReplayOrder(t *testing.T) {
	r := blocktest.NewRecorder(block.NewMemory(replaySize))
	put(t, r, 'a', 0)
	check(t, r.Write(t.Context(), bytes.Repeat([]byte{'X'}, 4096), 0, block.FUA))
	r.Log().Mark(1)
	put(t, r, 'b', 0)
	for s := range r.Log().Replay(blocktest.Crashes{}) {
		if got := letters(t, s.Devices[0]); s.Mark == 1 && !strings.HasPrefix(got, "X") {
			t.Errorf("%s: %q", s.What, got)
		}
	}
}

// A change that failed may have been done in part, and no flush makes it certain.
func TestReplayFailedWrite(t *testing.T) {
	faulty := blocktest.NewFaulty(block.NewMemory(replaySize), blocktest.Fault{Ops: blocktest.OpWrite, Nth: 1, Times: 1, Err: errDisk})
	r := blocktest.NewRecorder(faulty)
	if err := r.Write(t.Context(), bytes.Repeat([]byte{'a'}, 4096), 0, block.FUA); err == nil {
		t.Fatal("the write works")
	}
	check(t, r.Flush(t.Context()))
	put(t, r, 'b', block.FUA)
	if err := r.Write(t.Context(), []byte("x"), -1, 0); err == nil {
		t.Fatal("a write outside the device works")
	}
	if n := len(r.Log().Entries()); n != 3 {
		t.Errorf("%d entries, want 3: what had no effect is left out", n)
	}
	seen := map[string]bool{}
	for s := range r.Log().Replay(blocktest.Crashes{}) {
		seen[letters(t, s.Devices[0])] = true
	}
	for _, want := range []string{"", "a", "b", "ab"} {
		if !seen[want] {
			t.Errorf("%q is missing in %v", want, seen)
		}
	}
}

// Without a crash, the replay ends where the device did; and what the receiver does to a state stays there.
func TestReplayEndsAsTheDevice(t *testing.T) {
	const size = 100_003
	for seed := range uint64(4) {
		m := block.NewMemory(size)
		check(t, m.Write(t.Context(), bytes.Repeat([]byte("initial "), 5000), 3000, 0))
		initial, err := blocktest.Snapshot(t.Context(), m)
		check(t, err)
		before := bytesOf(t, initial)
		r := blocktest.NewRecorder(m)
		script := make([]byte, 3000)
		rnd := rand.New(rand.NewPCG(seed, 0))
		for i := range script {
			script[i] = byte(rnd.Uint32())
		}
		check(t, blocktest.Drive(t.Context(), blocktest.Config{Size: size, Content: bytes.NewReader(before)}, r, script))
		check(t, r.Flush(t.Context()))
		states := 0
		var last []byte
		for s := range r.Log().Replay(blocktest.Crashes{Initial: []*block.Memory{initial}, Seed: seed}) {
			if states++; s.Entry < 0 && !bytes.Equal(bytesOf(t, s.Devices[0]), before) {
				t.Errorf("the first state is not what the device held")
			}
			last = bytesOf(t, s.Devices[0])
			check(t, s.Devices[0].Write(t.Context(), bytes.Repeat([]byte{0xee}, 70_000), 0, 0))
		}
		if !bytes.Equal(last, bytesOf(t, m)) {
			t.Errorf("seed %d: the last of %d states differs from the device", seed, states)
		}
		if !bytes.Equal(bytesOf(t, initial), before) {
			t.Errorf("seed %d: the replay changed the initial content", seed)
		}
	}
}

func TestReplayIsRepeatable(t *testing.T) {
	r := blocktest.NewRecorder(block.NewMemory(replaySize))
	for i := range byte(16) {
		put(t, r, 'a'+i, 0)
	}
	sum := func() (sums []uint32) {
		for s := range r.Log().Replay(blocktest.Crashes{Seed: 3}) {
			sums = append(sums, crc32.ChecksumIEEE(bytesOf(t, s.Devices[0])))
		}
		return sums
	}
	if a, b := sum(), sum(); !slices.Equal(a, b) {
		t.Error("two replays of the same log differ")
	}
}

// journal stores a number with its checksum in one of two places by turns, then points to it from the header: safe only if it flushes
// in between.
type journal struct {
	d       block.Device
	careful bool
}

const record = 3000

func (j journal) store(ctx context.Context, number uint64) error {
	p := bytes.Repeat(binary.BigEndian.AppendUint64(nil, number), record/8)
	place := 4096 * (1 + int64(number%2))
	if err := j.d.Write(ctx, p, place, 0); err != nil {
		return err
	}
	if j.careful {
		if err := j.d.Flush(ctx); err != nil {
			return err
		}
	}
	return j.d.Write(ctx, binary.BigEndian.AppendUint64(nil, number), 0, block.FUA)
}

// load returns the number, and whether all of the record holds it.
func (j journal) load(ctx context.Context) (uint64, bool) {
	head, p := make([]byte, 8), make([]byte, record)
	if j.d.Read(ctx, head, 0) != nil {
		return 0, false
	}
	number := binary.BigEndian.Uint64(head)
	place := 4096 * (1 + int64(number%2))
	return number, j.d.Read(ctx, p, place) == nil && bytes.Equal(p, bytes.Repeat(head, record/8))
}

// The replay finds the flush that is missing, and finds nothing where it is there.
func TestReplayFindsMissingFlush(t *testing.T) {
	for _, careful := range []bool{true, false} {
		r := blocktest.NewRecorder(block.NewMemory(replaySize))
		for number := range 20 {
			check(t, journal{r, careful}.store(t.Context(), uint64(number)))
			r.Log().Mark(number)
		}
		damaged := 0
		for s := range r.Log().Replay(blocktest.Crashes{}) {
			number, ok := journal{s.Devices[0], careful}.load(t.Context())
			if !ok || number < uint64(s.Mark) {
				damaged++
				if careful {
					t.Errorf("%s: number %d, whole: %v, after mark %d", s.What, number, ok, s.Mark)
				}
			}
		}
		if !careful && damaged == 0 {
			t.Error("a missing flush was not found")
		}
	}
}

// Many recorders at once, with -race.
func TestLogConcurrent(t *testing.T) {
	log := new(blocktest.Log)
	var wait sync.WaitGroup
	for range 4 {
		r := log.Recorder(block.NewMemory(replaySize))
		wait.Go(func() {
			for i := range byte(16) {
				put(t, r, 'a'+i, 0)
				if i%4 == 3 {
					if err := r.Flush(t.Context()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wait.Wait()
	n := 0
	for s := range log.Replay(blocktest.Crashes{}) {
		if n++; len(s.Devices) != 4 {
			t.Fatalf("%d devices, want 4", len(s.Devices))
		}
	}
	if n < 4*16 {
		t.Errorf("%d states of 64 writes", n)
	}
	for range log.Replay(blocktest.Crashes{}) {
		break // a receiver may stop
	}
}

func BenchmarkReplay(b *testing.B) {
	const size = 4 << 20
	initial := block.NewMemory(size)
	check(b, initial.Write(b.Context(), bytes.Repeat([]byte("x"), size), 0, 0))
	r := blocktest.NewRecorder(initial.Clone())
	for i := range int64(300) {
		check(b, r.Write(b.Context(), bytes.Repeat([]byte{byte(i)}, 4096), i*8192%(size-4096), 0))
		if i%10 == 9 {
			check(b, r.Flush(b.Context()))
		}
	}
	states := 0
	for b.Loop() {
		states = 0
		for range r.Log().Replay(blocktest.Crashes{Initial: []*block.Memory{initial}}) {
			states++
		}
	}
	b.ReportMetric(float64(states), "states/op")
}
