package qcow2

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/check"
)

// TestParallel lets many goroutines write small pieces side by side, in the same clusters, while others discard, flush and read.
func TestParallel(t *testing.T) {
	const size, workers, piece = 1 << 20, 4, 777
	for i, k := range []kindOfImage{
		{name: "default", options: "cluster_size=16k"},
		{name: "subclusters", options: "extended_l2=on,cluster_size=16k", backing: 600 << 10},
		{name: "small", options: "cluster_size=512,refcount_bits=64"},
		{name: "data file", options: "cluster_size=4k,data_file=data", dataFile: true, backing: 600 << 10},
		{name: "v2", options: "compat=0.10,cluster_size=4k", backing: 600 << 10},
	} {
		t.Run(k.name, func(t *testing.T) {
			f := k.template(t, 2*size)
			d := f.open(t, true)
			want := make([]byte, size)
			copy(want, f.backing)
			var wait, others sync.WaitGroup
			done := make(chan struct{})
			for w := range workers { // each has every fourth piece
				wait.Go(func() {
					r := rand.New(rand.NewPCG(uint64(i), uint64(w)))
					for range 400 {
						off := (r.IntN(size/piece/workers)*workers + w) * piece
						p := want[off : off+piece]
						var err error
						if r.IntN(4) == 0 {
							clear(p)
							err = d.Zero(ctx, int64(off), piece, 0)
						} else {
							copy(p, noise(r, piece))
							err = d.Write(ctx, p, int64(off), 0)
						}
						if err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			others.Go(func() { // behind them
				r := rand.New(rand.NewPCG(uint64(i), 99))
				for {
					select {
					case <-done:
						return
					default:
					}
					off, n := size+r.Int64N(size/2), 1+r.Int64N(size/4)
					if err := d.Write(ctx, noise(r, 3000), off, 0); err != nil {
						t.Error(err)
					}
					if err := d.Discard(ctx, off, n); err != nil {
						t.Error(err)
					}
					if r.IntN(3) == 0 {
						if err := d.Flush(ctx); err != nil {
							t.Error(err)
						}
					}
				}
			})
			others.Go(func() {
				p := make([]byte, 100000)
				for off := int64(0); ; off = (off + 54321) % (size - 100000) {
					select {
					case <-done:
						return
					default:
					}
					if err := d.Read(ctx, p, off); err != nil {
						t.Error(err)
					}
				}
			})
			wait.Wait()
			close(done)
			others.Wait()
			got := make([]byte, size)
			ok(t, d.Read(ctx, got, 0))
			same(t, got, want)
			ok(t, d.Close())
			res, err := check.Check(ctx, f.image, formats.CheckOptions{})
			if err != nil || res.Leaks+res.Corruptions+res.CheckErrors > 0 {
				t.Errorf("check: %+v, %v", res, err)
			}
			d = f.open(t, false)
			ok(t, d.Read(ctx, got, 0))
			same(t, got, want)
		})
	}
}

// slowFile is a file of which data reads and writes wait.
type slowFile struct {
	block.Filter
	mu   sync.Mutex
	wait map[byte]chan struct{} // 'r' or 'w': what to wait for before a transfer of data
	in   chan struct{}          // told when one waits
}

func (s *slowFile) pause(kind byte, n int) {
	s.mu.Lock()
	c := s.wait[kind]
	if n == 4096*3 { // the length that the test moves
		delete(s.wait, kind)
	} else {
		c = nil
	}
	s.mu.Unlock()
	if c != nil {
		s.in <- struct{}{}
		<-c
	}
}

func (s *slowFile) Read(ctx context.Context, p []byte, off int64) error {
	s.pause('r', len(p))
	return s.Filter.Read(ctx, p, off)
}

func (s *slowFile) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	s.pause('w', len(p))
	return s.Filter.Write(ctx, p, off, f)
}

// TestFreedWhileUsed frees clusters that a call in flight, or a pin, still uses: nobody else may get them before it is done.
func TestFreedWhileUsed(t *testing.T) {
	for _, kind := range []byte{'r', 'w'} {
		f := kindOfImage{options: "cluster_size=4k"}.template(t, 1<<20)
		slow := &slowFile{Filter: block.Filter{Device: f.image}, wait: map[byte]chan struct{}{}, in: make(chan struct{})}
		d, err := Open(ctx, block.NoClose(slow), formats.OpenOptions{Write: true})
		ok(t, err)
		mine := bytes.Repeat([]byte{1}, 3*4096)
		ok(t, d.Write(ctx, mine, 0, block.FUA))
		goOn := make(chan struct{})
		slow.mu.Lock()
		slow.wait[kind] = goOn
		slow.mu.Unlock()
		p := make([]byte, 3*4096)
		result := make(chan error)
		go func() {
			if kind == 'r' {
				result <- d.Read(ctx, p, 0)
			} else {
				result <- d.Write(ctx, p, 0, 0)
			}
		}()
		<-slow.in
		ok(t, d.Discard(ctx, 0, 3*4096))
		for range 3 {
			ok(t, d.Flush(ctx))
		}
		others := bytes.Repeat([]byte{2}, 8*4096)
		ok(t, d.Write(ctx, others, 64<<10, 0))
		close(goOn)
		ok(t, <-result)
		if kind == 'r' {
			same(t, p, mine)
		}
		got := make([]byte, len(others))
		ok(t, d.Read(ctx, got, 64<<10))
		same(t, got, others)
		for range 3 { // now they can be used again
			ok(t, d.Flush(ctx))
		}
		size := f.image.Size()
		ok(t, d.Write(ctx, mine, 128<<10, 0))
		if f.image.Size() != size {
			t.Errorf("%c: the file has grown from %d to %d, with free clusters in it", kind, size, f.image.Size())
		}
		ok(t, d.Close())
		f.verify(t, "closed")
	}
}

// TestInfoWhileResizing asks for what is constant while the header changes.
func TestInfoWhileResizing(t *testing.T) {
	d := kindOfImage{options: "cluster_size=512"}.template(t, 1<<20).open(t, true)
	var wait sync.WaitGroup
	done := make(chan struct{})
	wait.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				d.Info()
				d.Size()
			}
		}
	})
	for size := int64(1 << 20); size < 64<<20; size *= 2 {
		ok(t, d.Resize(ctx, size))
	}
	close(done)
	wait.Wait()
}
