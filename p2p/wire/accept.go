package wire

import (
	"container/list"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"seeder/p2p/trust"
)

// The protocols of the transfer port (ALPN, RFC 7301).
const (
	protocolHTTP = "http/1.1"
	// protocolGossip is a stream of gossip: this package hands it on as it is.
	protocolGossip = "seeder-gossip/1"
)

const (
	// maxConns bounds the connections of the transfer port whose other side has proved
	// that it has the secret: a swarm of 64 followers and as many requests needs a few
	// hundred.
	maxConns = 2048
	// maxConnsPerHost keeps one host from keeping all others out. A node opens a few to
	// each peer.
	maxConnsPerHost = 512

	// maxStrange bounds the connections that are still to prove it, maxStrangePerHost
	// those from one address. The oldest ends where another one comes: a silent one
	// keeps nobody out. A handshake takes some milliseconds.
	maxStrange        = 256
	maxStrangePerHost = 128
	// maxKnown is the room that is kept besides for addresses from which the secret was
	// proved before, so that members need not compete with strangers.
	maxKnown = 256
	// maxProved bounds how many such addresses are remembered.
	maxProved = 4096
	// maxHandshakeBytes bounds what is read of a connection before it has proved
	// anything: a handshake of this cluster takes less than 4 KiB.
	maxHandshakeBytes = 16 << 10
	// acceptPause is the wait after an error of accept that may pass, such as too many
	// open files.
	acceptPause = 20 * time.Millisecond
)

// gate accepts the connections of the transfer port, lets each prove that it has
// the secret, and hands it to the protocol that it asked for. What has proved
// nothing costs a bounded number of connections, bytes and seconds. It is the
// listener of the HTTP server.
type gate struct {
	net.Listener
	cfg   *ServerConfig
	tls   *tls.Config
	conns *connSet

	ready  chan net.Conn
	failed chan error // of accept, once
	done   chan struct{}
	wg     sync.WaitGroup // the connections until they are handed on

	mu      sync.Mutex
	closed  bool
	strange list.List // of *visitor, the oldest first
	known   list.List // the same from addresses in proved
	proved  map[string]time.Time
	total   int            // connections that have proved it
	perHost map[string]int // of total
}

// visitor is a connection that has proved nothing yet.
type visitor struct {
	conn *conn
	host string
}

func newGate(l net.Listener, cfg *ServerConfig, conns *connSet) *gate {
	protocols := []string{protocolHTTP}
	if cfg.Gossip != nil {
		protocols = append(protocols, protocolGossip)
	}
	return &gate{
		Listener: l, cfg: cfg, conns: conns, tls: cfg.Credentials.ServerConfig(protocols...),
		ready: make(chan net.Conn), failed: make(chan error, 1), done: make(chan struct{}),
		proved: map[string]time.Time{}, perHost: map[string]int{},
	}
}

// run accepts until Close.
func (g *gate) run() {
	for {
		c, err := g.Listener.Accept()
		switch {
		case err == nil:
			v := g.visitor(c)
			leave := g.visit(v) // here, in the order in which they come
			g.wg.Go(func() { g.receive(v, leave) })
		case passes(err):
			g.cfg.Log.Debug("failed to accept a connection", "err", err)
			select {
			case <-time.After(acceptPause):
			case <-g.done:
				return
			}
		default:
			g.failed <- err
			return
		}
	}
}

// passes reports whether accept may succeed after err.
func passes(err error) bool {
	return slices.ContainsFunc([]syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR,
	}, func(e syscall.Errno) bool { return errors.Is(err, e) })
}

// Accept implements net.Listener, for the HTTP server.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case c := <-g.ready:
		return c, nil
	case err := <-g.failed:
		return nil, err
	case <-g.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It ends what has proved nothing yet.
func (g *gate) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	close(g.done)
	for _, visitors := range []*list.List{&g.strange, &g.known} {
		for e := visitors.Front(); e != nil; e = e.Next() {
			e.Value.(*visitor).conn.Conn.Close()
		}
	}
	return g.Listener.Close()
}

func (g *gate) visitor(nc net.Conn) *visitor {
	c := newConn(nc, unlimited, g.cfg.Sent, g.cfg.Received, nil)
	c.budget = maxHandshakeBytes
	return &visitor{conn: c, host: hostOf(nc)}
}

// receive makes the handshake of one connection and hands it on.
func (g *gate) receive(v *visitor, leave func()) {
	c, host := v.conn, v.host
	tc := tls.Server(c, g.tls)
	err := c.SetDeadline(time.Now().Add(headerTimeout))
	if err == nil {
		err = tc.Handshake()
	}
	leave()
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		c.Close()
		g.cfg.Log.Debug("failed to complete a handshake", "from", c.RemoteAddr(), "err", err)
		if g.cfg.Strange != nil && errors.Is(trust.Explain(err), trust.ErrSecretsDiffer) {
			g.cfg.Strange(c.RemoteAddr())
		}
		return
	}
	if !g.enter(host, c) {
		tc.Close()
		return
	}
	c.budget = -1
	if id, err := trust.PeerID(tc.ConnectionState()); err == nil && g.cfg.Proved != nil {
		g.cfg.Proved(id)
	}
	if tc.ConnectionState().NegotiatedProtocol == protocolGossip {
		g.cfg.Gossip(tc)
		tc.Close()
		return
	}
	c.limiter = g.cfg.Limiter
	select {
	case g.ready <- tc:
	case <-g.done:
		tc.Close()
	}
}

// visit books a connection that has proved nothing, and ends the oldest one where
// there are too many from its address or in all. leave takes it off the books.
func (g *gate) visit(v *visitor) (leave func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	visitors, most := &g.strange, maxStrange
	if _, proved := g.proved[v.host]; proved {
		visitors, most = &g.known, maxKnown
	}
	var oldest *list.Element // of the same address
	same := 0
	for e := visitors.Front(); e != nil; e = e.Next() {
		if e.Value.(*visitor).host != v.host {
			continue
		}
		if same++; oldest == nil {
			oldest = e
		}
	}
	switch {
	case same >= maxStrangePerHost:
		g.end(visitors, oldest)
	case visitors.Len() >= most:
		g.end(visitors, visitors.Front())
	}
	if g.closed {
		v.conn.Conn.Close()
	}
	place := visitors.PushBack(v)
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		visitors.Remove(place) // nothing where it was ended
	}
}

// end closes a connection that has proved nothing. Its handshake ends with an error.
func (g *gate) end(visitors *list.List, e *list.Element) {
	e.Value.(*visitor).conn.Conn.Close()
	visitors.Remove(e)
}

// enter books a connection that has proved the secret until it is closed; false
// says that there are too many.
func (g *gate) enter(host string, c *conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.prove(host)
	if g.closed || g.total >= maxConns || g.perHost[host] >= maxConnsPerHost {
		return false
	}
	g.total++
	g.perHost[host]++
	g.conns.add(c)
	c.closed = func() {
		g.conns.remove(c)
		g.leave(host)
	}
	return true
}

// prove remembers an address, in the place of the one that was heard of least
// recently where there are too many. mu is held.
func (g *gate) prove(host string) {
	if _, known := g.proved[host]; !known && len(g.proved) >= maxProved {
		var oldest string
		for h, at := range g.proved {
			if oldest == "" || at.Before(g.proved[oldest]) {
				oldest = h
			}
		}
		delete(g.proved, oldest)
	}
	g.proved[host] = time.Now()
}

func (g *gate) leave(host string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	if g.perHost[host]--; g.perHost[host] == 0 {
		delete(g.perHost, host)
	}
}

// hostOf is the IP address of the other side.
func hostOf(c net.Conn) string {
	addr := c.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// errTalkative ends a connection that sends too much before it proves anything.
var errTalkative = errors.New("more bytes than a handshake takes")

// spend takes n bytes from what a connection may send before it has proved
// anything; a negative budget has no end.
func (c *conn) spend(n int) error {
	if c.budget < 0 {
		return nil
	}
	if c.budget -= n; c.budget < 0 {
		c.budget = 0
		return errTalkative
	}
	return nil
}

// unlimited is for bytes that no limit holds up: handshakes and gossip.
var unlimited = NewLimiter(Limits{})
