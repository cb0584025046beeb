package gossip

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"seeder/p2p/trust"
)

const (
	// maxStreams and maxStreamsPerHost bound the streams from other members that are
	// open at once: with maxStreamBytes each, they bound memory, too. A member opens
	// one every half minute, and one when it joins.
	maxStreams        = 32
	maxStreamsPerHost = 8
	// packetQueue is what the kernel is asked to hold of packets that were not read.
	packetQueue = 1 << 20
	// readPause is the wait after a socket's error that may pass.
	readPause = 10 * time.Millisecond
)

// transport is the wall between the network and memberlist: nothing gets through
// that the cluster's secret has not authenticated and that memberlist cannot take.
//
// Packets are sealed (seal.go) and go to the UDP address of a member. Streams are
// connections whose other side a handshake has proved: they go to the member's
// transfer address, which its metadata names, or, where only an address is known, to
// that. They are framed (stream.go) and what they carry is checked (filter.go).
//
// It lives as long as one memberlist, also while that says farewell: Shutdown ends its
// goroutines, closes the socket and every stream, and waits for both.
type transport struct {
	packets net.PacketConn
	seal    *sealer
	dial    Dial
	proved  func(id trust.NodeID) // of the other side of a stream
	vouched func(by trust.NodeID, user []byte)
	member  func(name string) (Member, error)
	strange func(from net.Addr) // a packet came that no key opens
	log     *slog.Logger

	incarnations incarnations
	advertised   atomic.Pointer[netip.AddrPort] // what others are told

	packetCh chan *memberlist.Packet
	streamCh chan net.Conn

	dials  context.Context // ends when the node begins to leave
	ctx    context.Context // ends with Shutdown
	cancel context.CancelFunc
	reader sync.WaitGroup

	mu      sync.Mutex
	idle    *sync.Cond
	open    int            // streams that memberlist has, or is about to get
	arrived int            // of them, those that others opened
	perHost map[string]int // of arrived
}

// Dial connects to the transfer port at addr for a stream of gossip and returns the
// identity that the other side has proved.
type Dial func(ctx context.Context, addr string) (net.Conn, trust.NodeID, error)

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// start begins to read packets. Streams are opened until ctx ends.
func (t *transport) start(ctx context.Context) {
	t.dials = ctx
	t.ctx, t.cancel = context.WithCancel(context.WithoutCancel(ctx))
	t.idle = sync.NewCond(&t.mu)
	t.perHost = map[string]int{}
	t.packetCh, t.streamCh = make(chan *memberlist.Packet), make(chan net.Conn)
	if c, ok := t.packets.(interface{ SetReadBuffer(int) error }); ok {
		_ = c.SetReadBuffer(packetQueue) // the kernel's own default does, too
	}
	t.reader.Go(t.read)
}

// port is the UDP port that the socket is bound to.
func (t *transport) port() int {
	if a, ok := t.packets.LocalAddr().(*net.UDPAddr); ok {
		return a.Port
	}
	return 0
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *transport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	if bound, ok := t.packets.LocalAddr().(*net.UDPAddr); ip == "" && ok && !bound.IP.IsUnspecified() {
		ip = bound.IP.String()
	}
	parsed := net.ParseIP(ip)
	if parsed == nil {
		return nil, 0, fmt.Errorf("advertised address %q is not an IP address", ip)
	}
	if v4 := parsed.To4(); v4 != nil {
		parsed = v4
	}
	addr, _ := netip.AddrFromSlice(parsed)
	at := netip.AddrPortFrom(addr.Unmap(), uint16(port))
	t.advertised.Store(&at)
	return parsed, port, nil
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr) // never a name: looking one up would hold up gossip
	if err != nil {
		return time.Time{}, fmt.Errorf("send a packet: %w", err)
	}
	_, err = t.packets.WriteTo(t.seal.seal(b), net.UDPAddrFromAddrPort(to))
	return time.Now(), err
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packetCh }

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streamCh }

// read hands the packets over that members sealed.
func (t *transport) read() {
	buf := make([]byte, maxPacketBytes+1)
	for {
		n, from, err := t.packets.ReadFrom(buf)
		switch {
		case t.ctx.Err() != nil:
			return
		case err != nil:
			t.log.Debug("failed to read a packet", "err", err)
			if !wait(t.ctx, readPause) {
				return
			}
			continue
		case n > maxPacketBytes:
			continue
		}
		msg, err := t.seal.open(buf[:n])
		if err != nil {
			t.strange(from)
			continue
		}
		if err := checkPacket(msg); err != nil {
			t.log.Debug("dropped a packet of a member", "from", from, "err", err)
			continue
		}
		t.incarnations.packet(msg)
		select {
		case t.packetCh <- &memberlist.Packet{Buf: msg, From: from, Timestamp: time.Now()}:
		case <-t.ctx.Done():
			return
		}
	}
}

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport. With a name the
// address is that of the member's packets, and the stream goes to its transfer
// address; without one it is a transfer address itself, of a host to join.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	addr, id := a.Addr, trust.NodeID("")
	if a.Name != "" {
		m, err := t.member(a.Name)
		if err != nil {
			return nil, err
		}
		if m.Address == "" {
			return nil, fmt.Errorf("member %q has not said where its transfer port is", a.Name)
		}
		addr, id = m.Address, m.ID
	}
	if t.dial == nil {
		return nil, errors.New("gossip has no way to open a stream")
	}
	ctx, cancel := context.WithTimeout(t.dials, timeout)
	defer cancel()
	conn, proved, err := t.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	if id != "" && proved != id {
		conn.Close()
		return nil, fmt.Errorf("the host at %s proves the identity %s, member %q has %s", addr, proved, a.Name, id)
	}
	t.proved(proved)
	s := &stream{Conn: conn, answer: true, heard: t.heard(proved)}
	if !t.enter(s, "") {
		conn.Close()
		return nil, net.ErrClosed
	}
	return s, nil
}

// heard takes what concerns this package from the messages of a stream whose other side has
// proved an identity.
func (t *transport) heard(from trust.NodeID) func(msg []byte) {
	return func(msg []byte) {
		if user := t.incarnations.stream(msg); len(user) > 0 {
			t.vouched(from, user)
		}
	}
}

// identityOf is the identity that the other side of a connection has proved, empty where it
// has proved none.
func identityOf(conn net.Conn) trust.NodeID {
	c, ok := conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return ""
	}
	id, err := trust.PeerID(c.ConnectionState())
	if err != nil {
		return ""
	}
	return id
}

// enter books a stream, which ends with the transport, until it is closed. With a
// host it is one that arrived from there, and false says that there are too many.
func (t *transport) enter(s *stream, host string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil || host != "" && (t.arrived >= maxStreams || t.perHost[host] >= maxStreamsPerHost) {
		return false
	}
	t.open++
	if host != "" {
		t.arrived++
		t.perHost[host]++
	}
	stop := context.AfterFunc(t.ctx, func() { s.Conn.Close() })
	s.closed = func() {
		stop()
		t.leave(host)
	}
	return true
}

func (t *transport) leave(host string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open--
	t.idle.Broadcast()
	if host == "" {
		return
	}
	t.arrived--
	if t.perHost[host]--; t.perHost[host] == 0 {
		delete(t.perHost, host)
	}
}

// serve reads the question of a stream that another member opened, hands it over
// and returns once memberlist has closed it. conn is closed in any case.
func (t *transport) serve(conn net.Conn) {
	done := make(chan struct{})
	s := &stream{Conn: conn, heard: t.heard(identityOf(conn))}
	if !t.enter(s, hostOf(conn.RemoteAddr())) {
		conn.Close()
		t.log.Debug("refused a stream: too many are open", "from", conn.RemoteAddr())
		return
	}
	leave := s.closed
	s.closed = func() {
		leave()
		close(done)
	}
	err := conn.SetDeadline(time.Now().Add(streamTimeout))
	if err == nil {
		err = s.receive()
	}
	if err != nil {
		t.log.Debug("dropped a stream of a member", "from", conn.RemoteAddr(), "err", err)
		s.Close()
		return
	}
	select {
	case t.streamCh <- s:
		<-done
	case <-t.ctx.Done():
		s.Close()
	}
}

// hostOf is the IP address in addr, without its zone.
func hostOf(addr net.Addr) string {
	if a, err := netip.ParseAddrPort(addr.String()); err == nil {
		return a.Addr().Unmap().WithZone("").String()
	}
	return addr.String()
}

// Shutdown implements memberlist.Transport.
func (t *transport) Shutdown() error {
	t.cancel()
	err := t.packets.Close()
	t.reader.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.open > 0 {
		t.idle.Wait()
	}
	return err
}
