package p2ptest

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// conn is one end of a connection.
type conn struct {
	local, remote net.Addr
	in, out       *half
	owner         *Host // whose end it is
	number        int   // in the order of dialling
	once          sync.Once
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) { return c.in.read(p) }

// Write implements net.Conn. It waits while more than sendBuffer is on its way through a
// link that is narrow; other buffers have no end.
func (c *conn) Write(p []byte) (int, error) { return c.out.write(p) }

// Close implements net.Conn. What was written before still arrives.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.out.finish()
		c.in.fail(net.ErrClosed)
		n := c.in.net
		n.mu.Lock()
		delete(n.conns, c)
		n.mu.Unlock()
	})
	return nil
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.setWriteDeadline(t)
	return nil
}

// sendBuffer is how many bytes a connection takes that a narrow link has not let through.
const sendBuffer = 256 << 10

// half is one direction of a connection. What is written arrives in order after a
// trip, later where a part was lost, and not while its path is cut.
type half struct {
	net  *Network
	path path

	mu     sync.Mutex
	cond   *sync.Cond // there is something new for the reader
	queue  []segment
	last   time.Time // when the last segment, or the end, arrives
	ended  bool      // the writer has closed
	lost   bool      // nothing arrives any more, and nobody is told
	dead   bool      // the reader's host has crashed, of which the writer is not told
	err    error     // the reader has closed, or the connection is broken
	readBy time.Time
	timer  *time.Timer // of readBy

	writeBy    time.Time // of a writer that a narrow link keeps waiting
	writeTimer *time.Timer
}

type segment struct {
	bytes []byte
	due   time.Time
}

func newHalf(n *Network, p path) *half {
	h := &half{net: n, path: p}
	h.cond = sync.NewCond(&h.mu)
	return h
}

func (h *half) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cond.Broadcast()
}

// fail breaks the connection for the reader, and for the writer.
func (h *half) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.err = err
	}
	h.queue = nil
	for _, t := range []*time.Timer{h.timer, h.writeTimer} {
		if t != nil {
			t.Stop()
		}
	}
	h.cond.Broadcast()
}

func (h *half) write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		full := h.fullUntil()
		switch {
		case h.ended:
			return 0, net.ErrClosed
		case h.err != nil:
			return 0, syscall.EPIPE
		case full <= 0:
			h.queue = append(h.queue, segment{bytes: append([]byte(nil), p...), due: h.arrives(len(p))})
			return len(p), nil
		case !h.writeBy.IsZero() && !time.Now().Before(h.writeBy):
			return 0, os.ErrDeadlineExceeded
		}
		room := time.AfterFunc(full, h.wake)
		h.cond.Wait()
		room.Stop()
	}
}

// fullUntil is how long a narrow link needs until the writer may go on. mu is held.
func (h *half) fullUntil() time.Duration {
	queue, narrow := h.net.takes(h.path, sendBuffer)
	if !narrow {
		return 0
	}
	return max(0, time.Until(h.last)) - queue
}

// finish ends the direction after what is on its way.
func (h *half) finish() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	h.arrives(0)
	h.cond.Broadcast() // a writer that waits
}

// arrives is when so many bytes that are written now will be there; the reader is woken
// then. mu is held.
func (h *half) arrives(bytes int) time.Time {
	d, ok := h.net.trip(h.path)
	if !ok {
		d += retransmit
	}
	if due := time.Now().Add(d); due.After(h.last) {
		h.last = due
	}
	if more, narrow := h.net.takes(h.path, bytes); narrow {
		h.last = h.last.Add(more)
	}
	time.AfterFunc(time.Until(h.last), h.wake)
	return h.last
}

func (h *half) setWriteDeadline(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writeBy = t
	if h.writeTimer != nil {
		h.writeTimer.Stop()
	}
	if h.err == nil && !t.IsZero() {
		h.writeTimer = time.AfterFunc(time.Until(t), h.wake)
	}
}

func (h *half) setDeadline(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readBy = t
	if h.timer != nil {
		h.timer.Stop()
	}
	switch {
	case h.err != nil || t.IsZero():
	case time.Until(t) <= 0:
		h.cond.Broadcast()
	default:
		h.timer = time.AfterFunc(time.Until(t), h.wake)
	}
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		now := time.Now()
		switch {
		case h.err != nil:
			return 0, h.err
		case h.dead:
			return 0, net.ErrClosed
		case !h.readBy.IsZero() && !now.Before(h.readBy):
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case h.lost || !h.net.passes(h.path):
		case len(h.queue) > 0 && !now.Before(h.queue[0].due):
			return h.take(p), nil
		case len(h.queue) == 0 && h.ended && !now.Before(h.last):
			return 0, io.EOF
		}
		h.cond.Wait()
	}
}

// take reads from the first segment. mu is held.
func (h *half) take(p []byte) int {
	s := &h.queue[0]
	n := copy(p, s.bytes)
	if s.bytes = s.bytes[n:]; len(s.bytes) == 0 {
		h.queue = h.queue[1:]
	}
	return n
}
