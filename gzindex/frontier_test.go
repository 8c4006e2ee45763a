package gzindex

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/imgtool/imgtool/block"
)

// gpt returns an image whose GPT says that it has so many bytes, in sectors of a size.
func gpt(p []byte, size int64, sector int) []byte {
	p = bytes.Clone(p)
	le := binary.LittleEndian
	h := p[sector:][:sector]
	clear(h)
	copy(h, gptSignature)
	le.PutUint32(h[gptHeaderSize:], gptHeaderLen)
	le.PutUint64(h[gptMyLBA:], 1)
	le.PutUint64(h[gptAlternateLBA:], uint64(size/int64(sector)-1))
	le.PutUint32(h[gptHeaderCRC32:], crc32.ChecksumIEEE(h[:gptHeaderLen]))
	return p
}

func TestGuessSize(t *testing.T) {
	p := text(31, 100<<10)
	damaged := gpt(p, 100<<10, 512)
	damaged[512+gptAlternateLBA]++
	// The partition ends where an image of 4 GiB more does, of which only this is there.
	long := make([]byte, 5<<20)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range long {
		long[i] = byte(r.Uint32())
	}
	clear(long[mbrRecords:mbrSignature])
	long[mbrRecords+mbrType] = 0x83
	binary.LittleEndian.PutUint32(long[mbrRecords+mbrStart:], 1<<32/512)
	binary.LittleEndian.PutUint32(long[mbrRecords+mbrSectors:], uint32(len(long)/512))
	copy(long[mbrSignature:], "\x55\xaa")
	for _, c := range []struct {
		name string
		file []byte
		size int64
		how  string
	}{
		{"GPT", member(t, gpt(p, 100<<10, 512), 6), 100 << 10, "ISIZE and GPT"},
		{"GPT with sectors of 4096 bytes", member(t, gpt(p, 100<<10, 4096), 6), 100 << 10, "ISIZE and GPT"},
		{"GPT of another disk", member(t, gpt(p, 200<<10, 512), 6), 100 << 10, "ISIZE"},
		{"damaged GPT", member(t, damaged, 6), 100 << 10, "ISIZE"},
		{"partition beyond ISIZE", member(t, long, 1), 1<<32 + int64(len(long)), "ISIZE"},
		{"no GPT", member(t, p, 6), 100 << 10, "ISIZE"},
		{"too much for the file", append(member(t, nil, 6)[:19], 0xff, 0xff, 0xff, 0xff), 0, ""},
		{"too short", []byte("\x1f\x8b"), 0, ""},
		{"no gzip file", p, 0, ""},
		{"padded", append(member(t, p, 6), make([]byte, 512)...), 0, ""},
		{"damaged", append(member(t, p, 6)[:20], member(t, p, 6)...), 0, ""},
		{"empty", member(t, nil, 6), 0, "ISIZE"},
	} {
		t.Run(c.name, func(t *testing.T) {
			size, how, ok := GuessSize(ctx, fileOf(t, c.file))
			if ok != (c.how != "") || ok && (size != c.size || how != c.how) {
				t.Fatalf("%d by %q, %v; want %d by %q", size, how, ok, c.size, c.how)
			}
		})
	}
}

// TestGuessLong: the size of 5 GiB is known at once where the GPT says it, and ISIZE agrees.
func TestGuessLong(t *testing.T) {
	alone(t)
	s := newSparse()
	s.island(t, gpt(text(1, 64<<10), 5<<30, 512))
	s.zeros(5<<30 - 64<<10)
	file := fileOf(t, s.end())
	d, err := Open(ctx, file, Options{TrustSize: true, Memory: 8 << 20})
	check(t, err)
	if d.Size() != 5<<30 || !d.Info().Probable {
		t.Fatalf("%d bytes, %+v", d.Size(), d.Info())
	}
	p := make([]byte, 4096)
	check(t, d.Read(ctx, p, 512))
	if !bytes.Equal(p, s.want(512, 4096)) {
		t.Fatal("the GPT differs")
	}
	if n := d.Index().Size(); n > 64<<20 {
		t.Fatalf("%d bytes were scanned for the first ones", n)
	}
	check(t, d.Close())
}

// TestFrontier reads a device that grows its index, in many orders at once.
func TestFrontier(t *testing.T) {
	want := text(32, shorter(24<<20))
	file := member(t, want, 1)
	for _, workers := range []int{1, 3} {
		d, err := Open(ctx, fileOf(t, file), Options{TrustSize: true, Workers: workers, Memory: 16 << 20})
		check(t, err)
		var wait sync.WaitGroup
		for seed := range uint64(4) {
			wait.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, 9))
				at := 0
				for i := 0; at < len(want); i++ {
					// Two go forward, two anywhere behind the furthest.
					off := at
					n := min(len(want)-at, 1+rnd.IntN(300<<10))
					if at += n; seed > 1 {
						off = rnd.IntN(at - n + 1)
					}
					p := make([]byte, n)
					if err := d.Read(ctx, p, int64(off)); err != nil || !bytes.Equal(p, want[off:off+n]) {
						t.Errorf("%d bytes at %d: %v", n, off, err)
						return
					}
				}
			})
		}
		wait.Wait()
		if x := d.Index(); !x.Complete() || x.Size() != int64(len(want)) {
			t.Errorf("the index has %d bytes, complete: %v", x.Size(), x.Complete())
		}
		check(t, d.Close())
	}
}

// TestFrontierWrongSize: what the size was is found out by who reads the last byte, and by nobody before.
func TestFrontierWrongSize(t *testing.T) {
	alone(t)
	one, two := text(33, 9<<20), text(34, 7<<20)
	for _, c := range []struct {
		name string
		file []byte
		size int64
		has  string
	}{
		{"longer", append(member(t, one, 6), member(t, two, 6)...), 7 << 20, "at least"},
		{"longer than its last and longest member", append(member(t, two, 6), member(t, one, 6)...), 9 << 20, "at least"},
		{"as long as the last member and a span", append(member(t, one[:7<<20], 6), member(t, two, 6)...), 7 << 20, "at least"},
		{"longer than the file", func() []byte {
			file := member(t, two, 6)
			binary.LittleEndian.PutUint32(file[len(file)-4:], 8<<20)
			return file
		}(), 8 << 20, "ISIZE is 8388608"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Open(ctx, fileOf(t, c.file), Options{TrustSize: true})
			check(t, err)
			t.Cleanup(func() { d.Close() })
			if d.Size() != c.size {
				t.Fatalf("%d bytes, want %d", d.Size(), c.size)
			}
			p := make([]byte, 4096)
			check(t, d.Read(ctx, p, 0))
			check(t, d.Read(ctx, p, 1<<20))
			for range 2 {
				err := d.Read(ctx, p[:1], d.Size()-1)
				var damage *block.CorruptError
				if !errors.As(err, &damage) || !strings.Contains(err.Error(), c.has) {
					t.Fatalf("the last byte: %v", err)
				}
			}
			check(t, d.Read(ctx, p, 1<<20))
		})
	}
}

// TestFrontierCancel: who gives up does not stop the scan for others.
func TestFrontierCancel(t *testing.T) {
	want := text(35, shorter(16<<20))
	d, err := Open(ctx, fileOf(t, member(t, want, 6)), Options{TrustSize: true})
	check(t, err)
	defer d.Close()
	var wait sync.WaitGroup
	for i := range 20 {
		limited, cancel := context.WithCancel(ctx)
		wait.Go(func() {
			err := d.Read(limited, make([]byte, 10), d.Size()/20*int64(i))
			if err != nil && err != context.Canceled {
				t.Error(err)
			}
		})
		cancel()
	}
	wait.Wait()
	readAll(t, d, want, 1)
}
