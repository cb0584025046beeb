package swarm

import (
	"slices"
	"time"
)

// pace is how fast answers came lately.
type pace struct {
	took      durations // request to reply
	trips     durations // request to refusal: hardly more than the way there and back
	gaps      durations // between replies
	far       durations // the trips that connections know, by reply
	lastReply time.Time
}

// replied adds a reply to a request of start. trip is what its connection knows; 0: nothing.
func (p *pace) replied(start, now time.Time, trip time.Duration) {
	p.took.add(now.Sub(start))
	if trip > 0 {
		p.far.add(trip)
	}
	if !p.lastReply.IsZero() {
		p.gaps.add(now.Sub(p.lastReply))
	}
	p.lastReply = now
}

// requests is how many requests this pace wants in flight. Where nobody refuses there are
// few peers, which take no more than they have.
func (p *pace) requests() int {
	switch {
	case p.trips.enough() && p.gaps.enough():
		return inFlightFor(p.trips.median(), p.gaps.median())
	case p.far.enough():
		return inFlightAlone(p.far.least, p.took.least)
	}
	return maxRequests
}

// oldAt is when r will have taken longer than most requests do.
func (p *pace) oldAt(r *request) time.Time {
	if median := p.took.median(); median > 0 {
		return r.start.Add(median * 3 / 2)
	}
	return r.start.Add(minDeadline)
}

// durations keeps the last few durations of one kind, for their median.
type durations struct {
	last   [32]time.Duration
	n      int
	middle time.Duration // of last: it is read far more often than something is added
	least  time.Duration
}

func (d *durations) add(t time.Duration) {
	d.last[d.n%len(d.last)] = t
	d.n++
	sorted := d.last
	k := min(d.n, len(sorted))
	slices.Sort(sorted[:k])
	d.middle, d.least = sorted[k/2], sorted[0]
}

// enough reports whether the median says something.
func (d *durations) enough() bool { return d.n >= 4 }

// median is 0 while nothing was added.
func (d *durations) median() time.Duration { return d.middle }
