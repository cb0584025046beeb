package wire

import (
	"context"
	"net"
	"sync"

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

// conn counts and limits the bytes of a connection, below TLS.
type conn struct {
	net.Conn
	limiter        *Limiter
	sent, received func(bytes int)

	ctx    context.Context // ends with Close, and with it the waiting for the limit
	cancel context.CancelFunc
	closed func() // once, at the first Close
	once   sync.Once
}

func newConn(c net.Conn, l *Limiter, sent, received func(int), closed func()) *conn {
	ctx, cancel := context.WithCancel(context.Background())
	return &conn{Conn: c, limiter: l, sent: sent, received: received, ctx: ctx, cancel: cancel, closed: closed}
}

// Read implements net.Conn. The wait comes after the read: the bytes are here,
// and not reading on is what slows the sender down.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), minBurst)])
	if n > 0 {
		c.received(n)
		if werr := c.limiter.down.WaitN(c.ctx, n); werr != nil && err == nil {
			err = net.ErrClosed
		}
	}
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		part := p[:min(len(p), minBurst)]
		if err := c.limiter.up.WaitN(c.ctx, len(part)); err != nil {
			return written, net.ErrClosed
		}
		n, err := c.Conn.Write(part)
		c.sent(n)
		written += n
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.cancel()
		c.closed()
	})
	return c.Conn.Close()
}

// listener wraps accepted connections and refuses those beyond max.
type listener struct {
	net.Listener
	limiter        *Limiter
	sent, received func(int)
	slots          chan struct{}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return newConn(c, l.limiter, l.sent, l.received, func() { <-l.slots }), nil
		default:
			c.Close() // full: a peer tries another node, an attacker gets nothing
		}
	}
}
