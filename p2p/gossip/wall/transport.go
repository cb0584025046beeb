package wall

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"seeder/internal/wait"
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

// Transport is the wall as one memberlist has it: nothing gets through
// that the cluster's secret has not authenticated and that memberlist cannot take.
//
// Packets are sealed (seal.go) and go to the UDP address of a member. Streams are
// connections whose other side a handshake has proved: they go to the member's
// transfer address, which its metadata names, or, where only an address is known, to
// that. They are framed (stream.go) and what they carry is checked (filter.go).
//
// It lives as long as one memberlist, also while that says farewell: Shutdown ends its
// goroutines, closes the socket and every stream, and waits for both.
type Transport struct {
	wall         *Wall
	packets      net.PacketConn
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

var _ memberlist.NodeAwareTransport = (*Transport)(nil)

// start begins to read packets. Streams are opened until ctx ends.
func (t *Transport) start(ctx context.Context) {
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

// Port is the UDP port that the socket is bound to.
func (t *Transport) Port() int {
	if a, ok := t.packets.LocalAddr().(*net.UDPAddr); ok {
		return a.Port
	}
	return 0
}

// LocalAddr is what the socket for packets is bound to.
func (t *Transport) LocalAddr() net.Addr { return t.packets.LocalAddr() }

// Advertised is the address that others are told; nil: none yet.
func (t *Transport) Advertised() *netip.AddrPort { return t.advertised.Load() }

// Cut ends every stream and reads no more packets; Shutdown waits for them.
func (t *Transport) Cut() { t.cancel() }

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *Transport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
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
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr) // never a name: looking one up would hold up gossip
	if err != nil {
		return time.Time{}, fmt.Errorf("send a packet: %w", err)
	}
	_, err = t.packets.WriteTo(t.wall.seal.seal(b), net.UDPAddrFromAddrPort(to))
	return time.Now(), err
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *Transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// PacketCh implements memberlist.Transport.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packetCh }

// StreamCh implements memberlist.Transport.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streamCh }

// read hands the packets over that members sealed.
func (t *Transport) read() {
	buf := make([]byte, maxPacketBytes+1)
	for {
		n, from, err := t.packets.ReadFrom(buf)
		switch {
		case t.ctx.Err() != nil:
			return
		case err != nil:
			t.wall.cfg.Log.Debug("failed to read a packet", "err", err)
			if !wait.For(t.ctx, readPause) {
				return
			}
			continue
		case n > maxPacketBytes:
			continue
		}
		msg, err := t.wall.seal.open(buf[:n])
		if err != nil {
			t.wall.strangers.packet(from)
			continue
		}
		if err := checkPacket(msg); err != nil {
			t.wall.cfg.Log.Debug("dropped a packet of a member", "from", from, "err", err)
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
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport. With a name the
// address is that of the member's packets, and the stream goes to its transfer
// address; without one it is a transfer address itself, of a host to join.
func (t *Transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	addr, id := a.Addr, ""
	if a.Name != "" {
		var err error
		if addr, id, err = t.wall.cfg.Member(a.Name); err != nil {
			return nil, err
		}
		if addr == "" {
			return nil, fmt.Errorf("member %q has not said where its transfer port is", a.Name)
		}
	}
	if t.wall.cfg.Dial == nil {
		return nil, errors.New("gossip has no way to open a stream")
	}
	ctx, cancel := context.WithTimeout(t.dials, timeout)
	defer cancel()
	conn, proved, err := t.wall.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	if id != "" && proved != id {
		conn.Close()
		return nil, fmt.Errorf("the host at %s proves the identity %s, member %q has %s", addr, proved, a.Name, id)
	}
	t.wall.cfg.Proved(proved)
	s := &stream{Conn: conn, answer: true, heard: t.heard(proved)}
	if !t.enter(s, "") {
		conn.Close()
		return nil, net.ErrClosed
	}
	return s, nil
}

// heard takes what concerns this package from the messages of a stream whose other side has
// proved an identity.
func (t *Transport) heard(from string) func(msg []byte) {
	return func(msg []byte) {
		if user := t.incarnations.stream(msg); len(user) > 0 {
			t.wall.cfg.Exchanged(from, user)
		}
	}
}

// enter books a stream, which ends with the transport, until it is closed. With a
// host it is one that arrived from there, and false says that there are too many.
func (t *Transport) enter(s *stream, host string) bool {
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

func (t *Transport) leave(host string) {
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

// Serve reads the question of a stream that another member opened, hands it over
// and returns once memberlist has closed it. conn is closed in any case.
func (t *Transport) Serve(conn net.Conn) {
	done := make(chan struct{})
	s := &stream{Conn: conn, heard: t.heard(t.wall.cfg.Identity(conn))}
	if !t.enter(s, hostOf(conn.RemoteAddr())) {
		conn.Close()
		t.wall.cfg.Log.Debug("refused a stream: too many are open", "from", conn.RemoteAddr())
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
		t.wall.cfg.Log.Debug("dropped a stream of a member", "from", conn.RemoteAddr(), "err", err)
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
func (t *Transport) Shutdown() error {
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
