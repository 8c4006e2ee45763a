// Package metrics tells Prometheus what an NBD server does.
//
// [New] is a prometheus.Gatherer, for programs that gather from several places; [Handler] serves it alone. Neither links more of the client library of Prometheus
// than its data model and its formats, because the rest takes a millisecond to get ready at the start of every program.
package metrics

import (
	"cmp"
	"net/http"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

// Gatherer describes a server at the moment when it is asked. It is a prometheus.Gatherer.
type Gatherer struct{ stats func() server.Stats }

// New returns a gatherer of what stats, the method of a server, returns. Names begin with nbd_, times are in seconds, and what requests were about is told
// by the label command.
func New(stats func() server.Stats) *Gatherer { return &Gatherer{stats} }

// Gather returns the metrics, sorted by name.
func (g *Gatherer) Gather() ([]*dto.MetricFamily, error) {
	s := g.stats()
	list := []*dto.MetricFamily{
		counter("nbd_connections_total", "Connections accepted.", s.Connections),
		counter("nbd_connections_refused_total", "Connections that never reached transmission.", s.Refused),
		gauge("nbd_connections_active", "Connections that are there.", s.Active),
		gauge("nbd_requests_in_flight", "Requests that are being worked on.", s.InFlight),
		gauge("nbd_buffer_bytes", "Bytes that the buffers of requests in flight hold.", s.Memory),
		counter("nbd_read_bytes_total", "Payload of reads; holes that were told as such are left out.", s.BytesOut),
		counter("nbd_written_bytes_total", "Payload of writes.", s.BytesIn),
	}
	if len(s.Requests) > 0 {
		list = append(list,
			commands("nbd_requests_total", "Requests answered.", s, func(c server.CommandStats) float64 { return float64(c.Count) }),
			commands("nbd_request_errors_total", "Requests answered with an error.", s, func(c server.CommandStats) float64 { return float64(c.Errors) }),
			commands("nbd_request_bytes_total", "Bytes that requests were about.", s, func(c server.CommandStats) float64 { return float64(c.Bytes) }),
			commands("nbd_request_seconds_total", "Time from the arrival of requests to their replies.", s,
				func(c server.CommandStats) float64 { return c.Time.Seconds() }))
	}
	slices.SortFunc(list, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return list, nil
}

func family(name, help string, t dto.MetricType, m ...*dto.Metric) *dto.MetricFamily {
	return &dto.MetricFamily{Name: &name, Help: &help, Type: &t, Metric: m}
}

func counter(name, help string, n int64) *dto.MetricFamily {
	v := float64(n)
	return family(name, help, dto.MetricType_COUNTER, &dto.Metric{Counter: &dto.Counter{Value: &v}})
}

func gauge(name, help string, n int64) *dto.MetricFamily {
	v := float64(n)
	return family(name, help, dto.MetricType_GAUGE, &dto.Metric{Gauge: &dto.Gauge{Value: &v}})
}

// commands returns a counter for each command.
func commands(name, help string, s server.Stats, value func(server.CommandStats) float64) *dto.MetricFamily {
	f := family(name, help, dto.MetricType_COUNTER)
	known := make([]wire.Command, 0, len(s.Requests))
	for c := range s.Requests {
		known = append(known, c)
	}
	slices.Sort(known)
	for _, c := range known {
		v, label, text := value(s.Requests[c]), "command", c.String()
		f.Metric = append(f.Metric, &dto.Metric{
			Label: []*dto.LabelPair{{Name: &label, Value: &text}}, Counter: &dto.Counter{Value: &v},
		})
	}
	return f
}

// Handler answers Prometheus, in the format that it asks for.
func Handler(stats func() server.Stats) http.Handler {
	g := New(stats)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		families, err := g.Gather()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		format := expfmt.NegotiateAccept(r.Header, expfmt.DefaultOpenMetricsAcceptedFormats()...)
		w.Header().Set("Content-Type", string(format))
		e := expfmt.NewEncoder(w, format)
		for _, f := range families {
			if e.Encode(f) != nil {
				return // the client is gone
			}
		}
		if c, ok := e.(expfmt.Closer); ok {
			_ = c.Close() // the same
		}
	})
}
