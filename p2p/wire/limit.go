package wire

import (
	"context"
	"time"

	"golang.org/x/time/rate"
)

// Limits are in bytes per second, 0 for none, each shared by all transfers of chunks
// of the node, TLS included. Nothing else waits for them.
type Limits struct {
	UploadBytesPerSec   int64
	DownloadBytesPerSec int64
}

// Limiter holds the limits of one node for its server and its client. It is safe
// for concurrent use.
type Limiter struct {
	up, down *direction
}

// direction is one limit.
type direction struct {
	*rate.Limiter
	turn chan struct{} // held by the piece of bulk that waits for the limit
}

func newDirection() *direction {
	return &direction{rate.NewLimiter(rate.Inf, minBurst), make(chan struct{}, 1)}
}

// NewLimiter returns a limiter.
func NewLimiter(l Limits) *Limiter {
	lim := &Limiter{up: newDirection(), down: newDirection()}
	lim.SetLimits(l)
	return lim
}

// minBurst is what may pass at once: the most that one read or write of a
// connection is cut into. A 20th of a second of the limit is added, so that
// waiting is not the bottleneck.
const minBurst = 64 << 10

// SetLimits changes the limits of transfers that run already, too.
func (l *Limiter) SetLimits(limits Limits) {
	set(l.up, limits.UploadBytesPerSec)
	set(l.down, limits.DownloadBytesPerSec)
}

// Limits are those that hold now, in bytes per second, 0 for none.
func (l *Limiter) Limits() (upload, download int64) { return l.up.limit(), l.down.limit() }

func (d *direction) limit() int64 {
	if d.Limit() == rate.Inf {
		return 0
	}
	return int64(d.Limit())
}

func set(l *direction, bytesPerSec int64) {
	if bytesPerSec <= 0 {
		l.SetLimit(rate.Inf)
		return
	}
	l.SetBurst(minBurst + int(bytesPerSec/20))
	l.SetLimit(rate.Limit(bytesPerSec))
}

// maxDebt is how far control may run ahead of the limit.
const maxDebt = time.Second

// wait takes so many bytes of a chunk from l and waits until the limit allows them. One
// piece waits at a time.
func wait(ctx context.Context, l *direction, bytes int) error {
	if l.Limit() == rate.Inf {
		return ctx.Err()
	}
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return l.WaitN(ctx, bytes)
}

// charge takes so many bytes of anything else from l. They pass at once: without the
// matrix, the catalog, haves and handshakes nothing goes on, and a host that does not
// answer is taken for gone. They count, so that chunks leave them room, up to a second
// of the limit.
func charge(l *direction, bytes int) {
	now := time.Now()
	if r := l.ReserveN(now, bytes); r.OK() && r.DelayFrom(now) > maxDebt {
		r.CancelAt(now)
	}
}
