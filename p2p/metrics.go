package p2p

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"seeder/p2p/converge"
	"seeder/p2p/swarm"
)

// metrics are what a node counts. How things are at the moment of a scrape is
// Counts, which whoever registers the gauges asks for. No label has a value that a
// peer or an image chooses.
type metrics struct {
	wireSent, wireReceived prometheus.Counter
	chunkBytes             *prometheus.CounterVec
	goodChunks, badChunks  prometheus.Counter
	twiceBytes             prometheus.Counter
	refused, refusals      *prometheus.CounterVec
	converge               *prometheus.CounterVec
	fetchSeconds           prometheus.Histogram
	importSeconds          prometheus.Histogram

	traffic traffic
}

// newMetrics registers the node's metrics with reg; nil keeps them private. Every
// series is there from the start: an alert on one that is not never fires.
func newMetrics(reg prometheus.Registerer) *metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	// 50 ms … 27 min: from a tiny image on a LAN to gigabytes over a slow link.
	buckets := prometheus.ExponentialBuckets(0.05, 2, 16)
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	vector := func(label string, values []string, name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		reg.MustRegister(c)
		for _, v := range values {
			c.WithLabelValues(v)
		}
		return c
	}
	histogram := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		reg.MustRegister(h)
		return h
	}
	return &metrics{
		wireSent: counter("seeder_wire_sent_bytes_total",
			"Bytes sent on the transfer port and to other nodes' transfer ports, TLS included."),
		wireReceived: counter("seeder_wire_received_bytes_total",
			"Bytes received on the transfer port and from other nodes' transfer ports, TLS included."),
		chunkBytes: vector("source", []string{"peer", "local"}, "seeder_chunk_bytes_total",
			"Raw bytes of chunks obtained for images, by source: from a peer, or already on this host."),
		goodChunks: counter("seeder_chunks_verified_total",
			"Chunks from peers that had the digest the seed index names."),
		badChunks: counter("seeder_chunk_verification_failures_total",
			"Chunks from peers that did not have the digest the seed index names."),
		twiceBytes: counter("seeder_chunk_duplicate_bytes_total",
			"Bytes on the wire of chunks that were received although they were already on this host."),
		refused: vector("reason", swarm.Refusals(), "seeder_chunk_requests_failed_total",
			"Requests to peers that returned no chunk, by reason: the peer was busy, had too many requesters (crowded), did not hold it (absent), or the connection failed (error). Each is retried, mostly with another peer."),
		refusals: vector("reason", []string{swarm.RefusedBusy, swarm.RefusedCrowded}, "seeder_upload_refusals_total",
			"Requests of peers that this node refused for now, by reason: every upload slot was in use (busy), or it had too many requesters (crowded)."),
		converge: vector("reason", []string{converge.CauseContainerd, converge.CauseNoSeed, converge.CauseOther}, "seeder_converge_failures_total",
			"Failed attempts to make an announced image ready on this host, which are retried, by reason: containerd did not answer, no reachable member had the seed index (no_seed), or other."),
		fetchSeconds: histogram("seeder_fetch_seconds",
			"Time from the first request to the last verified chunk of an image."),
		importSeconds: histogram("seeder_import_seconds",
			"Time from the last verified chunk of an image until it was ready."),
	}
}

func (m *metrics) sent(bytes int) {
	m.wireSent.Add(float64(bytes))
	m.traffic.add(time.Now(), 0, int64(bytes))
}

func (m *metrics) received(bytes int) {
	m.wireReceived.Add(float64(bytes))
	m.traffic.add(time.Now(), int64(bytes), 0)
}

func (m *metrics) chunks(source string, bytes int64) {
	m.chunkBytes.WithLabelValues(source).Add(float64(bytes))
}

// putOff counts a request of a peer that err refuses because of others.
func (m *metrics) putOff(err error) {
	var busy *swarm.BusyError
	switch {
	case errors.As(err, &busy):
		m.refusals.WithLabelValues(swarm.RefusedBusy).Inc()
	case errors.Is(err, swarm.ErrCrowded):
		m.refusals.WithLabelValues(swarm.RefusedCrowded).Inc()
	}
}

func since(h prometheus.Histogram, start time.Time) { h.Observe(time.Since(start).Seconds()) }
