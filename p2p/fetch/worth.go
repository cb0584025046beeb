package fetch

import (
	"sync"
	"time"

	"seeder/store/chunk"
)

const (
	// margin: a delta has to be there in so much less time than the ordinary chunks. What
	// is compared are estimates.
	margin = 0.7
	// startup is what a delta costs whatever its size is: three more trips, a swarm of its own.
	startup = 300 * time.Millisecond
	// leastGain is the least time that the ordinary chunks of a layer must take for deltas
	// to be asked for at all.
	leastGain = time.Second
	// assumedShare is how long a delta that is being made is assumed to be, of its layer:
	// more than was measured of images of which one file of a hundred was edited.
	assumedShare = 0.02
	// measureFor and measureBytes are how much must have come for a rate to be one.
	measureFor   = time.Second
	measureBytes = 1 << 20
)

// assumedSpeed is how fast a layer is rebuilt until one was, in bytes a second as stored: half
// of what one core of 2.5 GHz does, since import and unpacking run beside it.
func assumedSpeed(kind string) float64 {
	if kind == chunk.DeltaBytes {
		return 80 << 20
	}
	return 15 << 20
}

// worth are the figures by which it is decided whether a layer comes as a delta.
type worth struct {
	missing int64         // bytes of the layer that are not here
	layer   int64         // all of it
	delta   int64         // bytes of the delta; 0: not known
	after   time.Duration // until it is ready
	raw     float64       // bytes a second of ordinary chunks, as stored; 0: not known
	wire    float64       // the same as they travel
	rebuild float64       // bytes a second of layers that are rebuilt
}

// whole is how long the ordinary chunks take; 0 where no rate is known.
func (w worth) whole() time.Duration {
	if w.raw <= 0 {
		return 0
	}
	return seconds(float64(w.missing) / w.raw)
}

// byDelta is how long the delta takes, one step after the other.
func (w worth) byDelta() time.Duration {
	bytes := float64(w.delta)
	if w.delta == 0 {
		bytes = assumedShare * float64(w.layer)
	}
	return startup + w.after + seconds(bytes/max(w.wire, 1)) + seconds(float64(w.layer)/w.rebuild)
}

// pays reports whether the delta is there sooner. Where no rate is known it is not.
func (w worth) pays() bool {
	return w.whole() >= leastGain && w.byDelta() < time.Duration(margin*float64(w.whole()))
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// links knows how fast chunks come to this host, and how fast it rebuilds layers. It is
// safe for concurrent use.
type links struct {
	mu        sync.Mutex
	raw, wire float64            // bytes a second, of the last fetch that was large enough; 0: none was
	rebuild   map[string]float64 // by the kind of delta
}

// rates are what is known now, with a delta of that kind.
func (l *links) rates(kind string) (raw, wire, rebuild float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rebuild[kind] == 0 {
		return l.raw, l.wire, assumedSpeed(kind)
	}
	return l.raw, l.wire, l.rebuild[kind]
}

// rebuilt notes how long a layer took to rebuild.
func (l *links) rebuilt(kind string, bytes int64, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rebuild == nil {
		l.rebuild = map[string]float64{}
	}
	l.rebuild[kind] = float64(bytes) / max(took, time.Millisecond).Seconds()
}

// meter measures the ordinary chunks of one fetch. It is safe for concurrent use.
type meter struct {
	links *links

	mu        sync.Mutex
	began     time.Time // when the first bytes came; zero: none came since pause
	raw, wire int64
}

// received is when a chunk of so many bytes has come, which travelled as wire.
func (m *meter) received(now time.Time, raw, wire int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.began.IsZero() {
		m.began = now
		return // how long it took is not known
	}
	m.raw += raw
	m.wire += wire
	if took := now.Sub(m.began); took >= measureFor && m.raw >= measureBytes {
		m.links.mu.Lock()
		m.links.raw, m.links.wire = float64(m.raw)/took.Seconds(), float64(m.wire)/took.Seconds()
		m.links.mu.Unlock()
	}
}

// pause is when other chunks are asked for from now on: the time until the first comes
// does not count.
func (m *meter) pause() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.began, m.raw, m.wire = time.Time{}, 0, 0
}
