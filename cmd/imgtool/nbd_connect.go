package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/kernel"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

// connecting is one run of nbd connect.
type connecting struct {
	writing     // what is served in this process
	fork        bool
	pidFile     string
	connections int
	block       size
	timeout     time.Duration
	deadTime    time.Duration
}

// connectInfo is the disk that was made, in JSON. Sizes are in bytes.
type connectInfo struct {
	Device      string `json:"device"`
	Size        int64  `json:"size"`
	BlockSize   int64  `json:"block-size"`
	ReadOnly    bool   `json:"read-only"`
	Connections int    `json:"connections"`
	Foreground  bool   `json:"foreground"` // the disk ends with the process
}

func newNBDConnect(a *app) *cobra.Command {
	v := &connecting{writing: writing{app: a}}
	c := &cobra.Command{
		Use:   "connect [flags] {URI | IMAGE} [/dev/nbdN]",
		Short: "Make a disk /dev/nbdN of an export or an image",
		Long: `Make a disk /dev/nbdN of an export or an image, and print its path; without one the first that is free.

The connections to an NBD URI are handed to the kernel, which keeps them until "imgtool nbd disconnect", and the program ends. Everything else,
what an nbds:// URI exports included, is served by the program itself: it runs until the disk is disconnected, or SIGINT or SIGTERM ends it, and makes
durable what was written. Unmount what is on the disk first.

It needs root, and a kernel with NBD devices (modprobe nbd).

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 4 the image is corrupt, 5 a reference is refused.`,
		Example: `  imgtool nbd connect nbd://server/disk
  imgtool nbd connect --fork disk.qcow2 /dev/nbd0`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			k := kernel.Config{Index: kernel.Any, Block: int64(v.block), Timeout: v.timeout, DeadConnTimeout: v.deadTime}
			if len(args) == 2 {
				n, err := kernel.ParsePath(args[1])
				if err != nil {
					return usageOf(c, err)
				}
				k.Index = n
			}
			if v.connections < 1 {
				return usageOf(c, errors.New("--connections: at least one"))
			}
			if v.timeout < 0 || v.deadTime < 0 {
				return usageOf(c, errors.New("times cannot be negative"))
			}
			if err := v.checkUse(); err != nil {
				return usageOf(c, err)
			}
			if u, ok := v.plainURI(args[0]); ok {
				return v.handOver(c.Context(), u, k)
			}
			return v.attach(c.Context(), args[0], k)
		},
	}
	v.flags(c)
	f := c.Flags()
	f.IntVarP(&v.connections, "connections", "C", nbd.DefaultConnections, "connections at most, where the server allows several")
	f.VarP(&v.block, "block-size", "b", "logical block size: 512, 1K, 2K or 4K; without it the smallest that the export allows")
	f.Lookup("block-size").DefValue = ""
	f.DurationVar(&v.timeout, "timeout", 0, "give a connection up when a request takes so long; 0 never")
	f.DurationVar(&v.deadTime, "dead-timeout", 0, "let requests wait so long for another connection when the last is lost")
	f.BoolVar(&v.fork, "fork", false, "go to the background once the disk is there, where the program serves it itself")
	f.StringVar(&v.pidFile, "pid-file", "", "write the process number here then")
	return c
}

// plainURI returns the URI of an export that can be handed to the kernel as it is.
func (v *connecting) plainURI(text string) (nbd.URI, bool) {
	spec, err := chain.Parse(text)
	if err != nil || len(spec.Layers) > 0 || v.from.format != "" || v.from.index != "" || v.cow {
		return nbd.URI{}, false
	}
	u, err := nbd.ParseURI(spec.Source)
	return u, err == nil && !u.TLS
}

// handOver connects to a server and gives the connections to the kernel.
func (v *connecting) handOver(ctx context.Context, u nbd.URI, k kernel.Config) error {
	d, err := nbd.NewDialer(u, true)
	if err != nil {
		return err
	}
	dial := func(ctx context.Context) (*client.Conn, error) { return d.Conn(ctx, client.Config{}) }
	info, err := v.connect(ctx, dial, u.Export, k)
	if err != nil {
		return err
	}
	return v.tell(info)
}

// connect makes a disk of connections in transmission.
func (v *connecting) connect(ctx context.Context, dial func(context.Context) (*client.Conn, error), export string, k kernel.Config) (connectInfo, error) {
	defer func() {
		for _, f := range k.Connections {
			f.Close() // the kernel has its own
		}
	}()
	for n := 1; len(k.Connections) < n; {
		c, err := dial(ctx)
		if err != nil {
			return connectInfo{}, err
		}
		e, err := c.Go(ctx, export)
		if err == nil {
			err = c.Hijack(func(conn net.Conn) error {
				f, err := kernel.Take(conn)
				if err == nil {
					k.Connections = append(k.Connections, f)
				}
				return err
			})
		}
		if err != nil {
			return connectInfo{}, errors.Join(err, c.Close())
		}
		k.Size, k.Flags = e.Size, e.Flags
		if k.Block == 0 {
			k.Block = max(e.MinBlock, kernel.MinBlock)
		}
		if e.Flags&wire.CanMultiConn != 0 {
			n = v.connections
		}
	}
	if v.readOnly {
		k.Flags |= wire.ReadOnly
	}
	index, err := kernel.Connect(k)
	if err != nil {
		return connectInfo{}, err
	}
	if rest := k.Size % k.Block; rest != 0 {
		v.log().Warn("the end of the export is no whole block and cannot be reached", "bytes", rest)
	}
	return connectInfo{
		Device: kernel.Path(index), Size: k.Size - k.Size%k.Block, BlockSize: k.Block, ReadOnly: k.Flags&wire.ReadOnly != 0, Connections: len(k.Connections),
	}, nil
}

// tell prints what disk was made.
func (v *connecting) tell(info connectInfo) error {
	switch {
	case v.json:
		if err := v.printJSON(info); err != nil {
			return err
		}
	case !v.quiet:
		v.printf("%s", info.Device)
	}
	return v.flush()
}

// attach serves an image to the kernel for as long as the disk is there.
func (v *connecting) attach(ctx context.Context, image string, k kernel.Config) (err error) {
	if v.fork && !inBackground() {
		return startInBackground(ctx)
	}
	dev, name, err := v.open(ctx, image)
	if err != nil {
		return err
	}
	connected := false
	defer func() {
		if err = errors.Join(err, dev.Close()); connected {
			atEnd(&err)
		}
	}()
	life := context.WithoutCancel(ctx)
	s := server.New(server.Config{
		Log: v.log(), Memory: min(server.DefaultMemory, int64(v.memory)/4),
		Open: func(context.Context, server.Client) (*server.Export, error) {
			return &server.Export{Device: dev, ReadOnly: v.readOnly, MultiConn: true}, nil // one device serves them all
		},
	})
	var serving sync.WaitGroup
	dial := func(ctx context.Context) (*client.Conn, error) {
		ours, theirs, err := kernel.Pair()
		if err != nil {
			return nil, err
		}
		serving.Go(func() { _ = s.ServeConn(life, ours) }) // the server logs what goes wrong
		return client.New(ctx, theirs, client.Config{})
	}
	info, err := v.connect(ctx, dial, "", k)
	if err == nil {
		connected = true
		var remove func() error
		remove, err = v.announce(ctx, info)
		defer func() { err = errors.Join(err, remove()) }()
	}
	serving.Wait() // until the kernel has left
	if v.readOnly {
		return err
	}
	return errors.Join(err, nameFile(name, dev.Flush(life)))
}

// announce tells everybody who waits for it that the disk is there, and has it taken away when ctx ends; at once where there is an error. What it
// returns removes the file with the number of the process.
func (v *connecting) announce(ctx context.Context, info connectInfo) (remove func() error, err error) {
	info.Foreground = true
	index, err := kernel.ParsePath(info.Device)
	if err != nil {
		return func() error { return nil }, err
	}
	context.AfterFunc(ctx, func() {
		if err := disconnect(index); err != nil {
			v.log().Error("disconnect", "device", info.Device, "error", err)
		}
	})
	if remove, err = writePIDFile(v.pidFile); err == nil {
		err = v.tell(info)
	}
	if err == nil && v.fork {
		err = leaveForeground()
	}
	if err != nil {
		err = errors.Join(err, disconnect(index))
	}
	return remove, err
}

// disconnect has the kernel write what it has not written yet, and takes the disk away, whether or not that went well.
func disconnect(index int) error {
	var err error
	ro, _ := os.ReadFile(fmt.Sprintf("/sys/block/nbd%d/ro", index)) // 1 where there is nothing to write
	if strings.TrimSpace(string(ro)) != "1" {
		var f *os.File
		if f, err = os.Open(kernel.Path(index)); err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
	}
	return errors.Join(err, kernel.Disconnect(index))
}

func newNBDDisconnect(*app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "disconnect [flags] /dev/nbdN",
		Short: "Take away a disk that nbd connect has made",
		Long: `Write what has not been written yet, and take away the disk /dev/nbdN. While a file system on it is mounted, or something else holds it, that
is refused.`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			index, err := kernel.ParsePath(args[0])
			if err != nil {
				return usageOf(c, err)
			}
			up, err := kernel.Connected(index)
			if err != nil {
				return err
			}
			if !up {
				return fmt.Errorf("%s is not connected", args[0])
			}
			if !force {
				f, err := os.OpenFile(args[0], os.O_RDONLY|os.O_EXCL, 0)
				if errors.Is(err, syscall.EBUSY) {
					err = block.ErrorOf(block.ErrBusy, "%s is in use", args[0])
					return block.WithHint(err, "unmount what is on it first; --force takes it away in any case, and what has not been written is lost")
				}
				if err != nil {
					return err
				}
				f.Close()
			}
			return disconnect(index)
		},
	}
	c.Flags().BoolVar(&force, "force", false, "take it away even while something holds it")
	return c
}
