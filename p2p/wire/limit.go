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
	up, down *rate.Limiter
}

// NewLimiter returns a limiter.
func NewLimiter(l Limits) *Limiter {
	lim := &Limiter{up: rate.NewLimiter(rate.Inf, minBurst), down: rate.NewLimiter(rate.Inf, minBurst)}
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

func set(l *rate.Limiter, bytesPerSec int64) {
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
)

// wait takes so many bytes from l and waits until the limit allows them. Words
// of control count but do not queue behind chunks: late haves would cost more
// than they weigh.
func wait(ctx context.Context, l *rate.Limiter, bytes int) error {
	if bytes <= smallBytes {
		now := time.Now()
		r := l.ReserveN(now, bytes)
		if r.OK() && r.DelayFrom(now) <= maxDebt {
			return ctx.Err()
		}
		r.CancelAt(now)
	}
	return l.WaitN(ctx, bytes)
}
