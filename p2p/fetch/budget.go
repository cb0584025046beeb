package fetch

import "time"

const (
	// idleShare is the part of the time of an image's ordinary chunks for which the link may
	// lie idle because of deltas: with what a useless delta costs besides it is at most 5 %.
	idleShare = 0.04
	// idleRest is kept for deltas that are ready, which take so long until the first chunk is
	// rebuilt: the half of idleShare at most, and all of it where that is less. Else ordinary
	// chunks would begin to come then, and the delta behind them.
	idleRest = 2 * startup
)

// budget is how long the link of this host has been idle because chunks of an image are held
// back. All layers together have one, so an image is never much later than without deltas,
// whatever is promised and whatever comes. The times are those that the ordinary chunks take
// by the measured rate. One goroutine uses it.
type budget struct {
	image int64 // bytes that were missing when the fetch began

	at      time.Time // of the last reading
	last    came
	holding bool // since then
	idle    time.Duration
}

// came are the bytes that are here, by how they came.
type came struct {
	here    int64 // of the image, with what is under way
	rebuilt int64 // of here, those that deltas made
	delta   int64 // of deltas, as they travel
}

// read counts the time since the last reading. What came meanwhile was not idle. Chunks
// that are rebuilt make up for time that was lost before. They do not add to the budget.
func (b *budget) read(now time.Time, c came, raw, wire float64) {
	if raw > 0 {
		rebuilt := c.rebuilt - b.last.rebuilt
		if b.holding {
			b.idle += now.Sub(b.at) - seconds(float64(c.here-b.last.here-rebuilt)/raw) - seconds(float64(c.delta-b.last.delta)/max(wire, 1))
		}
		if b.idle > 0 {
			b.idle = max(b.idle-seconds(float64(rebuilt)/raw), 0)
		}
	}
	b.at, b.last = now, c
}

// left is how much longer the link may be idle for deltas that are ready, and for those that
// are being made.
func (b *budget) left(raw float64) (ready, pending time.Duration) {
	if raw <= 0 {
		return 0, 0
	}
	all := seconds(idleShare * float64(b.image) / raw)
	return max(all, idleRest) - b.idle, all - min(idleRest, all/2) - b.idle
}
