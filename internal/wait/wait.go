// Package wait is how work waits: for a signal that something may have changed, for pauses
// that grow after each failure, and for a little longer than its context.
//
// It owns no goroutine of its own. It never counts signals: many before somebody looks
// are one.
//
// Invariant: a Set that happens after a receive from C is seen by the next one.
package wait

import (
	"context"
	"time"
)

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

// For pauses for d; false says that ctx ended first.
func For(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
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

// Outlive is a context that ends grace later than ctx: for what has to be done after the
// end of a work.
func Outlive(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(grace):
			cancel()
		case <-out.Done():
		}
	})
	return out, func() {
		stop()
		cancel()
	}
}
