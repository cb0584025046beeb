package wire

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// conn counts and limits the bytes of a connection, below TLS.
type conn struct {
	net.Conn
	limiter        *Limiter
	sent, received func(bytes int)
	trip           time.Duration // there and back when it was dialled; 0: unknown
	opened         time.Time
	bulkIn         atomic.Bool // what is read is chunks, which wait for the limit
	bulkOut        atomic.Bool // what is written is
	budget         int         // bytes that it may still send before it has proved anything; negative: any

	ctx    context.Context // ends with Close, and with it the waiting for the limit
	cancel context.CancelFunc

	closed func() // called once, at the first Close; nil: nobody is told
	once   sync.Once

	mu      sync.Mutex
	writeBy time.Time // the write deadline, zero for none
}

func newConn(c net.Conn, l *Limiter, sent, received func(int), closed func()) *conn {
	ctx, cancel := context.WithCancel(context.Background())
	return &conn{Conn: c, limiter: l, sent: sent, received: received, opened: time.Now(), budget: -1, ctx: ctx, cancel: cancel, closed: closed}
}

// connSet are the connections that are open. It is safe for concurrent use.
type connSet struct {
	mu   sync.Mutex
	open map[*conn]bool
}

func (s *connSet) add(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[*conn]bool{}
	}
	s.open[c] = true
}

func (s *connSet) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// closeBefore closes the connections that were opened before t.
func (s *connSet) closeBefore(t time.Time) {
	s.mu.Lock()
	var old []*conn
	for c := range s.open {
		if c.opened.Before(t) {
			old = append(old, c)
		}
	}
	s.mu.Unlock()
	for _, c := range old {
		c.Close()
	}
}

// closeTo closes the connections to or from an address, host:port.
func (s *connSet) closeTo(addr string) {
	s.mu.Lock()
	var old []*conn
	for c := range s.open {
		if c.RemoteAddr().String() == addr {
			old = append(old, c)
		}
	}
	s.mu.Unlock()
	for _, c := range old {
		c.Close()
	}
}

// Read implements net.Conn. The wait comes after the read: the bytes are here,
// and not reading on is what slows the sender down.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), minBurst)])
	if n > 0 {
		c.received(n)
		if err := c.spend(n); err != nil {
			return 0, err
		}
		if !c.bulkIn.Load() {
			charge(c.limiter.down, n)
		} else if werr := wait(c.ctx, c.limiter.down, n); werr != nil && err == nil {
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
		if err := c.waitToSend(len(part)); err != nil {
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

// waitToSend waits for the limit and moves the write deadline by as much: it is
// there for a peer that does not read, and this wait is not the peer's doing.
func (c *conn) waitToSend(bytes int) error {
	if !c.bulkOut.Load() {
		charge(c.limiter.up, bytes)
		return c.ctx.Err()
	}
	began := time.Now()
	if err := wait(c.ctx, c.limiter.up, bytes); err != nil {
		return err
	}
	waited := time.Since(began)
	c.mu.Lock()
	defer c.mu.Unlock()
	if waited < time.Millisecond || c.writeBy.IsZero() {
		return nil
	}
	c.writeBy = c.writeBy.Add(waited)
	return c.Conn.SetWriteDeadline(c.writeBy)
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBy = t
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.SetReadDeadline(t)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.cancel()
		if c.closed != nil {
			c.closed()
		}
	})
	return c.Conn.Close()
}
