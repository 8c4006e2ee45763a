package metrics

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

var _ prometheus.Gatherer = (*Gatherer)(nil)

func stats() server.Stats {
	return server.Stats{
		Connections: 5, Active: 2, Refused: 1, BytesIn: 4096, BytesOut: 1 << 40, InFlight: 3, Memory: 1 << 20,
		Requests: map[wire.Command]server.CommandStats{
			wire.CmdRead:  {Count: 7, Errors: 1, Bytes: 1 << 40, Time: 1500 * time.Millisecond},
			wire.CmdWrite: {Count: 2, Bytes: 4096, Time: time.Second},
		},
	}
}

const want = `
# HELP nbd_connections_active Connections that are there.
# TYPE nbd_connections_active gauge
nbd_connections_active 2
# HELP nbd_connections_refused_total Connections that never reached transmission.
# TYPE nbd_connections_refused_total counter
nbd_connections_refused_total 1
# HELP nbd_request_errors_total Requests answered with an error.
# TYPE nbd_request_errors_total counter
nbd_request_errors_total{command="READ"} 1
nbd_request_errors_total{command="WRITE"} 0
# HELP nbd_request_seconds_total Time from the arrival of requests to their replies.
# TYPE nbd_request_seconds_total counter
nbd_request_seconds_total{command="READ"} 1.5
nbd_request_seconds_total{command="WRITE"} 1
`

// TestGather reads what is served as text, and has the client library judge the names.
func TestGather(t *testing.T) {
	w := httptest.NewRecorder()
	Handler(stats).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	text := w.Body.String()
	for _, part := range strings.Split(want, "# HELP")[1:] {
		if !strings.Contains(text, "# HELP"+part) {
			t.Errorf("lacks # HELP%s\nof\n%s", part, text)
		}
	}
	for _, s := range []func() server.Stats{stats, func() server.Stats { return server.Stats{} }} {
		families, err := New(s).Gather()
		if err != nil {
			t.Fatal(err)
		}
		problems, err := promlint.NewWithMetricFamilies(families).Lint()
		if err != nil || len(problems) > 0 {
			t.Errorf("%v, %v", problems, err)
		}
	}
}

// TestHandler compares what is served with what the client library serves of the same, in each format.
func TestHandler(t *testing.T) {
	ours := httptest.NewServer(Handler(stats))
	defer ours.Close()
	theirs := httptest.NewServer(promhttp.HandlerFor(prometheus.Gatherers{New(stats)}, promhttp.HandlerOpts{EnableOpenMetrics: true, DisableCompression: true}))
	defer theirs.Close()
	for _, accept := range []string{
		"", "text/plain", "application/openmetrics-text; version=1.0.0",
		"application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
	} {
		var got [2]string
		for i, url := range []string{ours.URL, theirs.URL} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
			if err != nil {
				t.Fatal(err)
			}
			if accept != "" {
				r.Header.Set("Accept", accept)
			}
			a, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(a.Body)
			if err != nil {
				t.Fatal(err)
			}
			a.Body.Close()
			got[i] = a.Status + " " + a.Header.Get("Content-Type") + "\n" + string(body)
		}
		if got[0] != got[1] || !strings.HasPrefix(got[0], "200 ") {
			t.Errorf("%q:\n%s\nthe client library:\n%s", accept, got[0], got[1])
		}
	}
}
