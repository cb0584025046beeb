package fetch

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"seeder/p2p/swarm"
)

// Metrics are what fetches count. No label has a value that a peer or an image chooses.
type Metrics struct {
	chunkBytes            *prometheus.CounterVec
	goodChunks, badChunks prometheus.Counter
	twiceBytes            prometheus.Counter
	deltas                *prometheus.CounterVec
	deltaBytes            prometheus.Counter
	deltaSaved            prometheus.Counter
	refused               *prometheus.CounterVec
	fetchSeconds          prometheus.Histogram
	importSeconds         prometheus.Histogram
}

// NewMetrics registers the metrics with reg; nil keeps them private. Every series is there
// from the start: an alert on one that is not never fires.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	// 50 ms … 27 min: from a tiny image on a LAN to gigabytes over a slow link.
	buckets := prometheus.ExponentialBuckets(0.05, 2, 16)
	with := promauto.With(reg)
	m := &Metrics{
		chunkBytes: with.NewCounterVec(prometheus.CounterOpts{Name: "seeder_chunk_bytes_total",
			Help: "Raw bytes of chunks obtained for images, by source: from a peer, or already on this host."}, []string{"source"}),
		goodChunks: with.NewCounter(prometheus.CounterOpts{Name: "seeder_chunks_verified_total",
			Help: "Chunks from peers that had the digest the seed index names."}),
		badChunks: with.NewCounter(prometheus.CounterOpts{Name: "seeder_chunk_verification_failures_total",
			Help: "Chunks from peers that did not have the digest the seed index names."}),
		twiceBytes: with.NewCounter(prometheus.CounterOpts{Name: "seeder_chunk_duplicate_bytes_total",
			Help: "Bytes on the wire of chunks that were received although they were already on this host."}),
		deltas: with.NewCounterVec(prometheus.CounterOpts{Name: "seeder_deltas_total",
			Help: "Deltas that this node fetched to rebuild a layer, by result: used, or failed; after a failure the ordinary chunks are fetched."}, []string{"result"}),
		deltaBytes: with.NewCounter(prometheus.CounterOpts{Name: "seeder_delta_bytes_total",
			Help: "Bytes on the wire of the chunks of deltas that were received."}),
		deltaSaved: with.NewCounter(prometheus.CounterOpts{Name: "seeder_delta_saved_bytes_total",
			Help: "Bytes of layers, as stored, that were rebuilt from deltas instead of being received, less those of the deltas."}),
		refused: with.NewCounterVec(prometheus.CounterOpts{Name: "seeder_chunk_requests_failed_total",
			Help: "Requests to peers that returned no chunk, by reason: the peer was busy, had too many requesters (crowded), did not hold it (absent), or the connection failed (error). Each is retried, mostly with another peer."}, []string{"reason"}),
		fetchSeconds: with.NewHistogram(prometheus.HistogramOpts{Name: "seeder_fetch_seconds",
			Help: "Time from the first request to the last verified chunk of an image.", Buckets: buckets}),
		importSeconds: with.NewHistogram(prometheus.HistogramOpts{Name: "seeder_import_seconds",
			Help: "Time from the last verified chunk of an image until it was ready.", Buckets: buckets}),
	}
	for _, source := range []string{"peer", "local"} {
		m.chunkBytes.WithLabelValues(source)
	}
	for _, result := range []string{"used", "failed"} {
		m.deltas.WithLabelValues(result)
	}
	for _, reason := range swarm.Refusals() {
		m.refused.WithLabelValues(reason)
	}
	return m
}

func (m *Metrics) chunks(source string, bytes int64) {
	m.chunkBytes.WithLabelValues(source).Add(float64(bytes))
}
