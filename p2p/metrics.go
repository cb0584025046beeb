package p2p

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"seeder/p2p/converge"
	"seeder/p2p/swarm"
)

// metrics are what a node counts beside its fetches. How things are at the moment of a
// scrape is Counts, which the owner of the gauges asks for. No label has a value that
// a peer or an image chooses.
type metrics struct {
	wireSent, wireReceived prometheus.Counter
	refusals, converge     *prometheus.CounterVec
	traffic                traffic
}

// newMetrics registers the node's metrics with reg; nil keeps them private. Every
// series is there from the start: an alert on one that is not never fires.
func newMetrics(reg prometheus.Registerer) *metrics {
	with := promauto.With(reg)
	m := &metrics{
		wireSent: with.NewCounter(prometheus.CounterOpts{Name: "seeder_wire_sent_bytes_total",
			Help: "Bytes sent on the transfer port and to other nodes' transfer ports, TLS included."}),
		wireReceived: with.NewCounter(prometheus.CounterOpts{Name: "seeder_wire_received_bytes_total",
			Help: "Bytes received on the transfer port and from other nodes' transfer ports, TLS included."}),
		refusals: with.NewCounterVec(prometheus.CounterOpts{Name: "seeder_upload_refusals_total",
			Help: "Requests of peers that this node refused for now, by reason: every upload slot was in use (busy), or it had too many requesters (crowded)."}, []string{"reason"}),
		converge: with.NewCounterVec(prometheus.CounterOpts{Name: "seeder_converge_failures_total",
			Help: "Failed attempts to make an announced image ready on this host, which are retried, by reason: containerd did not answer, no reachable member had the seed index (no_seed), or other."}, []string{"reason"}),
	}
	for _, reason := range []string{swarm.RefusedBusy, swarm.RefusedCrowded} {
		m.refusals.WithLabelValues(reason)
	}
	for _, reason := range []string{converge.CauseContainerd, converge.CauseNoSeed, converge.CauseOther} {
		m.converge.WithLabelValues(reason)
	}
	return m
}

func (m *metrics) sent(bytes int) {
	m.wireSent.Add(float64(bytes))
	m.traffic.add(time.Now(), 0, int64(bytes))
}

func (m *metrics) received(bytes int) {
	m.wireReceived.Add(float64(bytes))
	m.traffic.add(time.Now(), int64(bytes), 0)
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
