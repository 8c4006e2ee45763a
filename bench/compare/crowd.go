package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// crowdName is what -run and -list call the crowd.
const crowdName = "serve, 1000 clients"

const (
	crowdSize    = 1000
	crowdRequest = 64 << 10
	crowdTime    = 5 * time.Second
)

// crowds compares servers under many clients, each of which reads 64 KiB somewhere, waits for it, and reads again.
func crowds(ctx context.Context, w io.Writer, s settings, dir, file string) error {
	fmt.Fprintf(w, "\n### %d clients, each reading 64 KiB at a time over a Unix socket for %s\n\n", crowdSize, crowdTime)
	fmt.Fprintln(w, "| program | MB/s | × imgtool | requests of the slowest client | of the median one | largest resident size MiB |")
	fmt.Fprintln(w, "| --- | ---: | ---: | ---: | ---: | ---: |")
	ours := 0.0
	for i, v := range servers(s) {
		r := &running{server: v}
		err := r.start(ctx, unixSocket, dir, file, 20909+i)
		var counts []int
		if err == nil {
			counts, err = crowd(ctx, filepath.Join(dir, fmt.Sprint(20909+i)), v.export)
		}
		if err != nil {
			fmt.Fprintf(w, "| %s | %v | | | | |\n", v.label, err)
		} else {
			total := 0
			for _, n := range counts {
				total += n
			}
			rate := float64(total) * crowdRequest / crowdTime.Seconds() / 1e6
			if i == 0 {
				ours = rate
			}
			fmt.Fprintf(w, "| %s | %.0f | %.2f | %d | %d | %s |\n", v.label, rate, ours/rate, counts[0], counts[len(counts)/2], peakRSS(r.pid))
		}
		r.stop()
	}
	return ctx.Err()
}

// crowd connects all clients, lets them read, and returns how many answers each got, the fewest first.
func crowd(ctx context.Context, socket, export string) ([]int, error) {
	var clients []net.Conn
	defer func() {
		for _, c := range clients {
			_ = c.Close()
		}
	}()
	for range crowdSize {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, fmt.Errorf("client %d: %w", len(clients)+1, err)
		}
		clients = append(clients, c)
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		if err := shake(c, export); err != nil {
			return nil, fmt.Errorf("client %d: handshake: %w", len(clients), err)
		}
	}
	end := time.Now().Add(crowdTime)
	counts, errs := make([]int, len(clients)), make([]error, len(clients))
	var all sync.WaitGroup
	for i, c := range clients {
		all.Go(func() { counts[i], errs[i] = readUntil(c, end) })
	}
	all.Wait()
	slices.Sort(counts)
	return counts, errors.Join(errs...)
}

// shake makes the shortest handshake there is: EXPORT_NAME, without the zeroes behind its answer.
func shake(c net.Conn, export string) error {
	greeting := make([]byte, 18)
	if _, err := io.ReadFull(c, greeting); err != nil {
		return err
	}
	hello := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	hello = append(hello, "IHAVEOPT"...)
	hello = binary.BigEndian.AppendUint32(hello, 1)
	hello = binary.BigEndian.AppendUint32(hello, uint32(len(export)))
	if _, err := c.Write(append(hello, export...)); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 10))
	return err
}

// readUntil reads at random until the time has come, and returns how many answers came.
func readUntil(c net.Conn, end time.Time) (n int, err error) {
	request, answer := make([]byte, 28), make([]byte, 16+crowdRequest)
	for time.Now().Before(end) {
		binary.BigEndian.PutUint32(request, 0x25609513)
		binary.BigEndian.PutUint64(request[16:], uint64(rand.IntN(gib/crowdRequest))*crowdRequest)
		binary.BigEndian.PutUint32(request[24:], crowdRequest)
		if _, err := c.Write(request); err != nil {
			return n, err
		}
		if _, err := io.ReadFull(c, answer); err != nil {
			return n, err
		}
		if code := binary.BigEndian.Uint32(answer[4:]); code != 0 {
			return n, fmt.Errorf("%w: error %d", os.ErrInvalid, code)
		}
		n++
	}
	return n, nil
}
