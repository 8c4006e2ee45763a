package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
)

// benchmark is one run of bench.
type benchmark struct {
	*app
	from    reading
	count   int
	depth   int
	request size
	step    size // 0: as long as a request
	offset  size
	write   bool
	pattern uint8
	flush   int // after so many requests; 0 for never
}

// benchInfo is the result in JSON.
type benchInfo struct {
	Requests int     `json:"requests"`
	Bytes    int64   `json:"bytes"`
	Seconds  float64 `json:"seconds"`
}

func newBench(a *app) *cobra.Command {
	b := &benchmark{app: a}
	c := &cobra.Command{
		Use:   "bench [flags] IMAGE",
		Short: "Time reads or writes of an image",
		Long: `Time reads of an image, or with -w writes, which overwrite what it holds. Requests are made one step after another, and begin
again at the front when they would pass the end.

  imgtool bench -c 100000 -d 8 -s 4k -S 1028k disk.qcow2    small reads all over the disk, 8 at a time`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error { return b.run(c.Context(), args[0]) },
	}
	b.from.flags(c)
	f := c.Flags()
	b.request = 4096
	f.IntVarP(&b.count, "count", "c", 75000, "requests in all")
	f.IntVarP(&b.depth, "depth", "d", 64, "requests in flight")
	f.VarP(&b.request, "buffer-size", "s", "length of a request")
	f.VarP(&b.step, "step-size", "S", "from one request to the next; 0 for the length of a request")
	f.VarP(&b.offset, "offset", "o", "where the first request begins")
	f.BoolVarP(&b.write, "write", "w", false, "write in place of reading")
	f.Uint8Var(&b.pattern, "pattern", 0, "byte that is written")
	f.IntVar(&b.flush, "flush-interval", 0, "flush after so many writes; 0 for once at the end")
	return c
}

// check refuses what cannot be run on a device of n bytes.
func (b *benchmark) check(n int64) error {
	switch {
	case b.count < 1, b.depth < 1, b.depth > 1<<16, b.flush < 0:
		return usagef("-c and -d are at least 1, -d at most %d, and --flush-interval is not negative", 1<<16)
	case b.request < 1 || b.request > 64<<20:
		return usagef("-s is from 1 byte to 64M")
	case int64(b.depth) > int64(b.memory)/int64(b.request):
		return usagef("%d requests of %d bytes are more than --memory=%d", b.depth, b.request, b.memory)
	case b.flush > 0 && !b.write, b.pattern != 0 && !b.write:
		return usagef("--flush-interval and --pattern go with -w")
	case int64(b.request) > n-int64(b.offset):
		return fmt.Errorf("the image has %d bytes, too few for a request of %d at %d", n, b.request, b.offset)
	}
	return nil
}

func (b *benchmark) run(ctx context.Context, text string) error {
	o := b.openOptions(b.from)
	o.Write = b.write
	img, err := chain.Open(ctx, text, o)
	if err != nil {
		return err
	}
	if img.Device == nil {
		return errors.Join(&chain.Error{Name: img.Name(), Err: errOneWay}, img.Close())
	}
	if err := b.check(img.Device.Size()); err != nil {
		return errors.Join(nameError(img, err), img.Close())
	}
	step := int64(b.step)
	if step == 0 {
		step = int64(b.request)
	}
	kind := "read"
	if b.write {
		kind = "write"
	}
	if !b.json && (!b.quiet || b.qemu != nil) {
		b.printf("Sending %d %s requests, %d bytes each, %d in parallel (starting at offset %d, step size %d)", b.count, kind, b.request, b.depth, b.offset, step)
	}
	if b.qemu != nil && b.flush > 0 {
		b.printf("Sending flush every %d requests", b.flush)
	}
	start := time.Now()
	err = b.drive(ctx, img.Device, step)
	took := time.Since(start).Seconds()
	if err := errors.Join(err, img.Close()); err != nil {
		return err
	}
	if b.json {
		return b.printJSON(benchInfo{b.count, int64(b.count) * int64(b.request), took})
	}
	b.printf("Run completed in %.3f seconds.", took)
	return nil
}

// drive makes all requests, depth of them at a time.
func (b *benchmark) drive(ctx context.Context, d block.Device, step int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	room := (d.Size()-int64(b.offset)-int64(b.request))/step + 1 // requests until the front is reached again
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(b.depth, b.count) {
		wg.Go(func() {
			p := make([]byte, b.request)
			for i := range p {
				p[i] = b.pattern
			}
			for i := next.Add(1) - 1; i < int64(b.count); i = next.Add(1) - 1 {
				if err := b.one(ctx, d, p, int64(b.offset)+i%room*step, i); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if b.write {
		return d.Flush(ctx)
	}
	return nil
}

// one makes the i'th request.
func (b *benchmark) one(ctx context.Context, d block.Device, p []byte, off, i int64) error {
	if !b.write {
		return d.Read(ctx, p, off)
	}
	if err := d.Write(ctx, p, off, 0); err != nil {
		return err
	}
	if b.flush > 0 && (i+1)%int64(b.flush) == 0 {
		return d.Flush(ctx)
	}
	return nil
}
