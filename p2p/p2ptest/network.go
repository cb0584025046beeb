package p2ptest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"seeder/p2p"
)

// Network is a network in memory whose faults are made on purpose. Packets are
// lost on the way; what is lost of a connection comes later, as TCP would have it.
// It is for a bubble of testing/synctest: nothing in it waits but on channels,
// conditions and timers. It is safe for concurrent use.
//
// The seed decides the chances that it takes; in which order the goroutines of one
// virtual instant take them, nobody does.
type Network struct {
	mu      sync.Mutex
	rng     *rand.Rand
	hosts   map[string]*Host // by IP address
	latency time.Duration
	loss    float64
	cut     map[path]bool
	links   map[path]Link
	conns   map[*conn]bool
	packets int64 // bytes sent
	dialled int   // connections
}

// path is one direction between two hosts, by IP address.
type path struct{ from, to string }

const (
	// defaultLatency is one way on a LAN with a switch or two.
	defaultLatency = 500 * time.Microsecond
	// retransmit is what a lost segment costs a connection, a lost SYN a dial.
	retransmit, retransmitSYN = 200 * time.Millisecond, time.Second
	// dialTimeout is the kernel's as wire asks for it.
	dialTimeout = 5 * time.Second
	// packetQueue is how many packets a socket holds that nobody has read.
	packetQueue = 4096
	// backlog is how many connections wait to be accepted.
	backlog = 256
)

// NewNetwork returns a network without hosts.
func NewNetwork(seed uint64) *Network {
	return &Network{
		rng: rand.New(rand.NewPCG(seed, 2)), hosts: map[string]*Host{}, latency: defaultLatency,
		cut: map[path]bool{}, links: map[path]Link{}, conns: map[*conn]bool{},
	}
}

// Host adds a host that is up.
func (n *Network) Host(ip string) *Host {
	h := &Host{net: n, up: true, listeners: map[int]*listener{}, packets: map[int]*socket{}}
	h.ip.Store(&ip)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[ip] = h
	return h
}

// SetLatency sets how long a way takes, give or take a half by chance.
func (n *Network) SetLatency(oneWay time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.latency = oneWay
}

// SetLoss sets the share of packets that is lost.
func (n *Network) SetLoss(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = share
}

// PacketBytes is how many bytes have been sent as packets, those that were lost
// among them.
func (n *Network) PacketBytes() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.packets
}

// Cut lets nothing through any more that goes from one of those hosts to one of
// these. The other direction stays as it is.
func (n *Network) Cut(from, to []*Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range from {
		for _, b := range to {
			n.cut[path{a.addr(), b.addr()}] = true
		}
	}
}

// Part cuts both directions.
func (n *Network) Part(a, b []*Host) {
	n.Cut(a, b)
	n.Cut(b, a)
}

// Heal ends all cuts, and all that SetLink set: what connections carry arrives then.
func (n *Network) Heal() {
	n.mu.Lock()
	clear(n.cut)
	clear(n.links)
	conns := n.openConns("")
	n.mu.Unlock()
	for _, c := range conns {
		c.in.wake()
	}
}

// openConns lists the ends of connections of one host, of all where ip is empty.
// mu is held.
func (n *Network) openConns(ip string) []*conn {
	var out []*conn
	for c := range n.conns {
		if ip == "" || c.in.path.to == ip || c.in.path.from == ip {
			out = append(out, c)
		}
	}
	return out
}

// passes reports whether anything gets through on p.
func (n *Network) passes(p path) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.passesLocked(p)
}

func (n *Network) passesLocked(p path) bool {
	from, to := n.hosts[p.from], n.hosts[p.to]
	return from != nil && to != nil && from.up && to.up && !n.cut[p]
}

// trip is how long one packet takes on p; false says that it does not arrive.
func (n *Network) trip(p path) (time.Duration, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[p]
	d := time.Duration(float64(n.latency)*(0.5+n.rng.Float64())) + l.Delay + time.Duration(float64(l.Jitter)*n.rng.Float64())
	return d, n.rng.Float64() >= n.loss && (l.Loss == 0 || n.rng.Float64() >= l.Loss) && n.passesLocked(p)
}

func (n *Network) count(bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.packets += int64(bytes)
}

// Host is one machine: the p2p.Network of the node on it.
type Host struct {
	net *Network
	ip  atomic.Pointer[string] // empty: it has no address

	// the network's lock guards these
	up        bool
	gone      bool              // by Crash: another Host has its address
	listeners map[int]*listener // by port
	packets   map[int]*socket   // by port
	watchers  []chan struct{}   // of the address
}

var _ p2p.Network = (*Host)(nil)

// IP is the host's address.
func (h *Host) IP() string { return h.addr() }

func (h *Host) addr() string { return *h.ip.Load() }

// SetUp false takes the host off the net without a word, as a power cut does. When
// it is back, the other ends of its old connections are told that they are gone.
func (h *Host) SetUp(up bool) {
	h.net.mu.Lock()
	back := up && !h.up
	h.up = up
	conns := h.net.openConns(h.addr())
	h.net.mu.Unlock()
	if !back {
		return
	}
	for _, c := range conns {
		c.in.fail(syscall.ECONNRESET)
	}
}

// Listen implements p2p.Network.
func (h *Host) Listen(addr string) (net.Listener, error) {
	port, err := portOf(addr)
	if err != nil {
		return nil, err
	}
	return h.listen(port)
}

// mayListen says why the host cannot listen on a port. The caller holds the network's mutex.
func (h *Host) mayListen(port int, taken bool) error {
	switch {
	case h.gone:
		return fmt.Errorf("listen on %s:%d: %w", h.addr(), port, syscall.ENETDOWN)
	case taken:
		return fmt.Errorf("listen on %s:%d: %w", h.addr(), port, syscall.EADDRINUSE)
	}
	return nil
}

func (h *Host) listen(port int) (*listener, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if err := h.mayListen(port, h.listeners[port] != nil); err != nil {
		return nil, err
	}
	l := &listener{host: h, port: port, conns: make(chan net.Conn, backlog), ended: make(chan struct{})}
	h.listeners[port] = l
	return l, nil
}

// Dial implements p2p.Network.
func (h *Host) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := h.dial(ctx, addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	return c, nil
}

func (h *Host) dial(ctx context.Context, addr string) (net.Conn, error) {
	ip, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	there, back := path{h.addr(), ip}, path{ip, h.addr()}
	for again := retransmitSYN; ; again *= 2 {
		if h.isGone() {
			return nil, syscall.ENETDOWN
		}
		syn, ok := h.net.trip(there)
		ack, acked := h.net.trip(back)
		if !ok || !acked {
			if err := pause(ctx, again); err != nil {
				return nil, err
			}
			continue
		}
		if err := pause(ctx, syn+ack); err != nil {
			return nil, err
		}
		return h.connect(ip, port)
	}
}

// connect hands one end of a new connection to the listener there.
func (h *Host) connect(ip, port string) (net.Conn, error) {
	p, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	to := h.net.hosts[ip]
	if h.gone {
		return nil, syscall.ENETDOWN
	}
	if to == nil || to.listeners[p] == nil {
		return nil, syscall.ECONNREFUSED
	}
	near := &net.TCPAddr{IP: net.ParseIP(h.addr()), Port: 32768 + h.net.rng.IntN(28_000)}
	far := &net.TCPAddr{IP: net.ParseIP(ip), Port: p}
	out, in := newHalf(h.net, path{h.addr(), ip}), newHalf(h.net, path{ip, h.addr()})
	h.net.dialled++
	mine := &conn{local: near, remote: far, in: in, out: out, owner: h, number: h.net.dialled}
	theirs := &conn{local: far, remote: near, in: out, out: in, owner: to, number: h.net.dialled}
	select {
	case to.listeners[p].conns <- theirs:
	default:
		return nil, syscall.ECONNREFUSED
	}
	h.net.conns[mine], h.net.conns[theirs] = true, true
	return mine, nil
}

// ListenPacket implements p2p.Network.
func (h *Host) ListenPacket(addr string) (net.PacketConn, error) {
	port, err := portOf(addr)
	if err != nil {
		return nil, err
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if err := h.mayListen(port, h.packets[port] != nil); err != nil {
		return nil, err
	}
	s := &socket{host: h, port: port, packets: make(chan packet, packetQueue), ended: make(chan struct{})}
	h.packets[port] = s
	return s, nil
}

func portOf(addr string) (int, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(port)
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return os.ErrDeadlineExceeded
		}
		return ctx.Err()
	}
}

// listener implements net.Listener.
type listener struct {
	host  *Host
	port  int
	conns chan net.Conn
	ended chan struct{}
	once  sync.Once
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.host.net.mu.Lock()
		delete(l.host.listeners, l.port)
		l.host.net.mu.Unlock()
		close(l.ended)
		for {
			select {
			case c := <-l.conns:
				c.Close()
			default:
				return
			}
		}
	})
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(l.host.addr()), Port: l.port} }

// socket implements net.PacketConn on one port of a host. It has no deadlines.
type socket struct {
	host    *Host
	port    int
	packets chan packet
	ended   chan struct{}
	once    sync.Once
}

type packet struct {
	bytes []byte
	from  net.Addr
}

// WriteTo implements net.PacketConn.
func (s *socket) WriteTo(b []byte, addr net.Addr) (int, error) {
	to, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("send a packet to %s: not a UDP address", addr)
	}
	ip := to.IP.String()
	s.host.net.count(len(b))
	b = slices.Clone(b)
	for range s.host.net.copies(path{s.host.addr(), ip}) {
		if d, arrives := s.host.net.trip(path{s.host.addr(), ip}); arrives && !s.host.isGone() {
			time.AfterFunc(d, func() { s.deliver(b, ip, to.Port) })
		}
	}
	return len(b), nil
}

// deliver puts a packet into the other host's queue, where there is room.
func (s *socket) deliver(b []byte, ip string, port int) {
	s.host.net.mu.Lock()
	var to *socket
	if h := s.host.net.hosts[ip]; h != nil {
		to = h.packets[port]
	}
	s.host.net.mu.Unlock()
	if to == nil {
		return
	}
	select {
	case to.packets <- packet{b, s.LocalAddr()}:
	default:
	}
}

// ReadFrom implements net.PacketConn.
func (s *socket) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-s.packets:
		return copy(b, p.bytes), p.from, nil
	case <-s.ended:
		return 0, nil, net.ErrClosed
	}
}

// LocalAddr implements net.PacketConn.
func (s *socket) LocalAddr() net.Addr {
	return &net.UDPAddr{IP: net.ParseIP(s.host.addr()), Port: s.port}
}

// Close implements net.PacketConn.
func (s *socket) Close() error {
	s.once.Do(func() {
		s.host.net.mu.Lock()
		delete(s.host.packets, s.port)
		s.host.net.mu.Unlock()
		close(s.ended)
	})
	return nil
}

// SetDeadline implements net.PacketConn.
func (s *socket) SetDeadline(time.Time) error { return errors.ErrUnsupported }

// SetReadDeadline implements net.PacketConn.
func (s *socket) SetReadDeadline(time.Time) error { return errors.ErrUnsupported }

// SetWriteDeadline implements net.PacketConn.
func (s *socket) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }
