package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/imgtool/imgtool/nbd/metrics"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

// statsJSON is what a server has done, for programs. Times are in seconds.
type statsJSON struct {
	Connections int64                  `json:"connections"`
	Active      int64                  `json:"active"`
	Refused     int64                  `json:"refused"`
	BytesIn     int64                  `json:"bytes-in"`
	BytesOut    int64                  `json:"bytes-out"`
	InFlight    int64                  `json:"in-flight"`
	Memory      int64                  `json:"memory"`
	Requests    map[string]commandJSON `json:"requests"`
	Clients     []clientJSON           `json:"clients"`
}

type commandJSON struct {
	Count  int64   `json:"count"`
	Errors int64   `json:"errors"`
	Bytes  int64   `json:"bytes"`
	Time   float64 `json:"time"`
}

type clientJSON struct {
	ID       int64   `json:"id"`
	Address  string  `json:"address,omitempty"`
	Identity string  `json:"identity,omitempty"`
	Export   string  `json:"export"`
	Secure   bool    `json:"secure"`
	Age      float64 `json:"age"`
	Requests int64   `json:"requests"`
	BytesIn  int64   `json:"bytes-in"`
	BytesOut int64   `json:"bytes-out"`
}

func newStatsJSON(s server.Stats, now time.Time) statsJSON {
	j := statsJSON{
		Connections: s.Connections, Active: s.Active, Refused: s.Refused, BytesIn: s.BytesIn, BytesOut: s.BytesOut,
		InFlight: s.InFlight, Memory: s.Memory, Requests: map[string]commandJSON{}, Clients: []clientJSON{},
	}
	for c, n := range s.Requests {
		j.Requests[c.String()] = commandJSON{n.Count, n.Errors, n.Bytes, n.Time.Seconds()}
	}
	for _, c := range s.Clients {
		j.Clients = append(j.Clients, clientJSON{
			c.ID, c.Addr, c.Identity, c.Export, c.Secure, now.Sub(c.Since).Seconds(), c.Requests, c.BytesIn, c.BytesOut,
		})
	}
	return j
}

// statsTable returns what a server has done, for people.
func statsTable(s server.Stats, now time.Time) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "connections %d, active %d, refused %d; written %d bytes, read %d; in flight %d requests, %d bytes\n",
		s.Connections, s.Active, s.Refused, s.BytesIn, s.BytesOut, s.InFlight, s.Memory)
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	if len(s.Requests) > 0 {
		fmt.Fprintf(w, "command\tcount\terrors\tbytes\tmean time\n")
	}
	var commands []wire.Command
	for c := range s.Requests {
		commands = append(commands, c)
	}
	slices.Sort(commands)
	for _, c := range commands {
		n := s.Requests[c]
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\n", c, n.Count, n.Errors, n.Bytes, n.Time/time.Duration(max(1, n.Count)))
	}
	if len(s.Clients) > 0 {
		fmt.Fprintf(w, "client\texport\trequests\twritten\tread\tfor\taddress\n")
	}
	for _, c := range s.Clients {
		fmt.Fprintf(w, "%d\t%q\t%d\t%d\t%d\t%s\t%s\n", c.ID, c.Export, c.Requests, c.BytesIn, c.BytesOut,
			now.Sub(c.Since).Round(time.Millisecond), c.Addr)
	}
	_ = w.Flush() // into memory
	return b.Bytes()
}

// printStats prints what the server has done to standard error.
func (r *running) printStats() {
	_, _ = r.stderr.Write(statsTable(r.server.Stats(), time.Now())) // who asks and does not listen gets nothing
}

// headerTimeout bounds how long an HTTP client may take to say what it wants.
const headerTimeout = 10 * time.Second

// serveMetrics serves what the server has done over HTTP until the end.
func (r *running) serveMetrics(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", r.metrics)
	if err != nil {
		return fmt.Errorf("--metrics %s: %w", r.metrics, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics.Handler(r.server.Stats))
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "    ")
		_ = e.Encode(newStatsJSON(r.server.Stats(), time.Now())) // the client may be gone
	})
	h := &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout, IdleTimeout: time.Minute}
	r.tasks.Go(func() { _ = h.Serve(l) }) // ends by Close
	r.cleanup = append(r.cleanup, h.Close)
	r.logger.Info("metrics", "addr", l.Addr().String())
	return nil
}
