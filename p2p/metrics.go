package p2p

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the counters of the data plane. The gauges of members and images
// belong to whoever asks Status.
type metrics struct {
	wireSent, wireReceived prometheus.Counter
	chunkBytes             *prometheus.CounterVec
	badChunks              prometheus.Counter
	fetchSeconds           prometheus.Histogram
	importSeconds          prometheus.Histogram
}

// newMetrics registers the node's metrics with reg; nil keeps them private.
func newMetrics(reg prometheus.Registerer) *metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	// 50 ms … 27 min: from a tiny image on a LAN to gigabytes over a slow link.
	buckets := prometheus.ExponentialBuckets(0.05, 2, 16)
	m := &metrics{
		wireSent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "seeder_wire_sent_bytes_total",
			Help: "Bytes sent on the transfer port and to other nodes' transfer ports, TLS included."}),
		wireReceived: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "seeder_wire_received_bytes_total",
			Help: "Bytes received on the transfer port and from other nodes' transfer ports, TLS included."}),
		chunkBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "seeder_chunk_bytes_total",
			Help: "Raw bytes of chunks obtained for images, by source: from a peer, or already on this host."}, []string{"source"}),
		badChunks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "seeder_chunk_verification_failures_total",
			Help: "Chunks from peers that did not have the digest the seed index names."}),
		fetchSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "seeder_fetch_seconds", Buckets: buckets,
			Help: "Time from the first request to the last verified chunk of an image."}),
		importSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "seeder_import_seconds", Buckets: buckets,
			Help: "Time from the last verified chunk of an image until it was ready."}),
	}
	reg.MustRegister(m.wireSent, m.wireReceived, m.chunkBytes, m.badChunks, m.fetchSeconds, m.importSeconds)
	for _, source := range []string{"peer", "local"} {
		m.chunkBytes.WithLabelValues(source)
	}
	return m
}

func (m *metrics) sent(bytes int)     { m.wireSent.Add(float64(bytes)) }
func (m *metrics) received(bytes int) { m.wireReceived.Add(float64(bytes)) }

func (m *metrics) chunks(source string, bytes int64) {
	m.chunkBytes.WithLabelValues(source).Add(float64(bytes))
}

func since(h prometheus.Histogram, start time.Time) { h.Observe(time.Since(start).Seconds()) }
