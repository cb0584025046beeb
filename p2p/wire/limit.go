package wire

import (
	"context"
	"time"

	"golang.org/x/time/rate"
)

// Limits are in bytes per second, 0 for none, each shared by all transfers of
// the node, TLS included.
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

func set(l *direction, bytesPerSec int64) {
	if bytesPerSec <= 0 {
		l.SetLimit(rate.Inf)
		return
	}
	l.SetBurst(minBurst + int(bytesPerSec/20))
	l.SetLimit(rate.Limit(bytesPerSec))
}

const (
	// smallBytes is what counts as a word of control: a request, a have message,
	// a keep-alive, a TLS alert.
	smallBytes = 512
	// maxDebt is how far words of control may run ahead of the limit.
	maxDebt = time.Second
	// bulkBytes is from when on a piece counts as bulk. Chunks come and go in records of
	// TLS, 16 KiB; handshakes and small answers in less than this.
	bulkBytes = 4 << 10
)

// wait takes so many bytes from l and waits until the limit allows them. Words
// of control count but do not queue behind chunks: late haves would cost more
// than they weigh. Of bulk one piece waits for the limit at a time, so that what is in
// between queues behind that one, not behind a piece of each transfer: a handshake
// would not be done in its time.
func wait(ctx context.Context, l *direction, bytes int) error {
	if bytes <= smallBytes {
		now := time.Now()
		r := l.ReserveN(now, bytes)
		if r.OK() && r.DelayFrom(now) <= maxDebt {
			return ctx.Err()
		}
		r.CancelAt(now)
	}
	if bytes > bulkBytes && l.Limit() != rate.Inf {
		select {
		case l.turn <- struct{}{}:
			defer func() { <-l.turn }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return l.WaitN(ctx, bytes)
}
