// Package tally counts where the bytes of one announced image come from: which peers gave
// how many, what was on this host already, and how fast they come.
//
// It owns these figures for one image over all tries to fetch it. It never knows a peer
// but by its name, and decides nothing by what it counts.
//
// Invariant: no byte counts twice: what an earlier try has staged is not taken for local
// by the next one.
package tally

import (
	"maps"
	"sync"
	"time"

	"seeder/p2p/report"
)

// Origin is where the bytes of an announcement came from, in figures of one moment.
type Origin struct {
	Sources []report.Source
	Peers   []string      // that gave bytes, in the order of their first ones
	Wire    int64         // bytes of frames that came
	Rate    int64         // bytes a second from peers
	Took    time.Duration // until it was ready

	Rebuilt int64  // bytes of layers that were rebuilt from deltas
	Delta   int64  // bytes of those deltas, as they came
	NoDelta string // why the last layer that did not come as a delta did not; empty: nothing is known

	DeltaFailed bool // NoDelta is why a delta failed that was taken
}

// Tally counts where the bytes of one announcement come from on this host, over all
// tries to fetch it, so that what an earlier try has staged is not taken for local.
// It is safe for concurrent use.
type Tally struct {
	mu    sync.Mutex
	raw   map[string]int64 // by peer
	order []string
	local int64
	wire  int64
	rate  rate

	rebuilt, delta int64
	noDelta        string
	deltaFailed    bool
}

// New returns a tally that counts from now on.
func New(now time.Time) *Tally {
	return &Tally{raw: map[string]int64{}, rate: rate{start: now}}
}

// Received records a verified chunk of so many raw bytes, which travelled as wire.
func (t *Tally) Received(peer string, raw, wire int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.raw[peer]; !known {
		t.order = append(t.order, peer)
	}
	t.raw[peer] += raw
	t.wire += wire
}

// Arrived records raw bytes that came, of chunks that are not whole yet, too: the rate is
// theirs, since over a slow link a chunk takes longer than the window of the rate.
func (t *Tally) Arrived(now time.Time, raw int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rate.add(now, raw)
}

// Rebuilt records bytes of a layer that were made here from a delta.
func (t *Tally) Rebuilt(bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rebuilt += bytes
}

// Delta records bytes of a delta that came.
func (t *Tally) Delta(wire int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.delta += wire
	t.wire += wire
}

// NoDelta records why a layer does not come as a delta. A delta that failed is worth more to
// know, and stays.
func (t *Tally) NoDelta(why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.deltaFailed {
		t.noDelta = why
	}
}

// DeltaFailed records why a delta that was taken was of no use.
func (t *Tally) DeltaFailed(why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noDelta, t.deltaFailed = why, true
}

// Travelled records a frame that came in vain.
func (t *Tally) Travelled(wire int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wire += wire
}

// Holds records how many of the wanted bytes are here: those that no peer gave are
// local.
func (t *Tally) Holds(bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.local = bytes - t.rebuilt
	for _, raw := range t.raw {
		t.local -= raw
	}
	t.local = max(t.local, 0)
}

// Restart begins a new rate.
func (t *Tally) Restart(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rate = rate{start: now}
}

// Names are the peers that gave bytes, in the order of their first ones.
func (t *Tally) Names() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.order...)
}

// Origin is what has been counted until now.
func (t *Tally) Origin(now time.Time) Origin {
	t.mu.Lock()
	raw, local := maps.Clone(t.raw), t.local
	o := Origin{Peers: append([]string(nil), t.order...), Wire: t.wire, Rate: t.rate.perSecond(now), Rebuilt: t.rebuilt, Delta: t.delta, NoDelta: t.noDelta, DeltaFailed: t.deltaFailed}
	t.mu.Unlock()
	o.Sources = sources(raw, o.Rebuilt, local)
	return o
}
