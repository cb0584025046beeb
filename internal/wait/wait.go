// Package wait is how loops wait: for a signal that something may have changed, and for
// pauses that grow after each failure.
//
// It owns no goroutine and no timer. It never counts signals: many before somebody looks
// are one.
//
// Invariant: a Set that happens after a receive from C is seen by the next one.
package wait

import "time"

// Signal wakes one loop. Set never blocks.
type Signal chan struct{}

// NewSignal returns a signal that is not set.
func NewSignal() Signal { return make(Signal, 1) }

// Set wakes who waits, or who waits next.
func (s Signal) Set() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// Doubled is first after no failure, twice as long after each further one, and never longer
// than most.
func Doubled(first, most time.Duration, failures int) time.Duration {
	d := first
	for range failures {
		if d >= most/2 {
			return most
		}
		d *= 2
	}
	return min(d, most)
}
