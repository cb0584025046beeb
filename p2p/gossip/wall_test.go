package gossip

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"seeder/p2p/trust"
)

// pipePackets is a socket whose packets the test makes.
type pipePackets struct {
	in    chan []byte
	ended chan struct{}
	once  sync.Once

	mu  sync.Mutex
	out [][]byte
}

func (p *pipePackets) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case msg := <-p.in:
		return copy(b, msg), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9}, nil
	case <-p.ended:
		return 0, nil, net.ErrClosed
	}
}

func (p *pipePackets) WriteTo(b []byte, _ net.Addr) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.out) < 1000 {
		p.out = append(p.out, bytes.Clone(b))
	}
	return len(b), nil
}

func (p *pipePackets) Close() error {
	p.once.Do(func() { close(p.ended) })
	return nil
}

func (p *pipePackets) LocalAddr() net.Addr {
	return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7950}
}
func (p *pipePackets) SetDeadline(time.Time) error      { return nil }
func (p *pipePackets) SetReadDeadline(time.Time) error  { return nil }
func (p *pipePackets) SetWriteDeadline(time.Time) error { return nil }

// behind is memberlist behind the wall, without the loops of Gossip: what gets
// through the wall is handled before the function returns.
type behind struct {
	*Gossip
	packets *pipePackets
	answer  func(net.Conn) // the other end of a stream that memberlist opens
}

var wallKey = bytes.Repeat([]byte{7}, 32)

func newBehind(t testing.TB) *behind {
	t.Helper()
	b := &behind{packets: &pipePackets{in: make(chan []byte), ended: make(chan struct{})}}
	b.Gossip = New(Config{
		NodeName: "a", BindAddr: "127.0.0.1:7950", Keys: [][]byte{wallKey}, Log: slog.New(slog.DiscardHandler),
		Meta:   Meta{ID: testID, TransferAddress: ":7951", Protocol: 1, Version: "test"},
		Listen: func(string) (net.PacketConn, error) { return b.packets, nil },
		Dial: func(context.Context, string) (net.Conn, trust.NodeID, error) {
			near, far := net.Pipe()
			go b.answer(far)
			return near, testID, nil
		},
	})
	var err error
	if b.seal, err = newSealer(b.cfg.Keys); err != nil {
		t.Fatal(err)
	}
	conf, err := b.config()
	if err != nil {
		t.Fatal(err)
	}
	b.place.instance = b.members.self
	tr, err := b.openTransport(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := &delegate{Gossip: b.Gossip, of: b.place.instance, transport: tr}
	conf.Name, conf.Delegate, conf.Events, conf.Conflict = "a", d, d, d // the name that the messages are for
	conf.Transport = tr
	conf.ProbeInterval, conf.GossipInterval, conf.PushPullInterval = time.Hour, time.Hour, time.Hour
	b.transport.Store(tr)
	b.queue = &memberlist.TransmitLimitedQueue{NumNodes: func() int { return 1 }, RetransmitMult: 1}
	list, err := memberlist.Create(conf)
	if err != nil {
		t.Fatal(err)
	}
	b.list.Store(list)
	t.Cleanup(func() {
		if err := list.Shutdown(); err != nil {
			t.Error(err)
		}
		b.lines.close()
	})
	return b
}

// send has memberlist take what is in a packet, if the wall lets it through, and
// returns when it has.
func (b *behind) send(t testing.TB, packet []byte) {
	t.Helper()
	b.packets.in <- packet
	nonce := NewNonce()
	for {
		b.packets.in <- b.seal.seal(append([]byte{kindUser, probeKind}, nonce[:]...))
		if small, _ := b.Arrived(nonce); small {
			return
		}
	}
}

// ask opens a stream to the node, sends a message and returns the answer.
func (b *behind) ask(msg []byte) ([]byte, error) {
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		b.Serve(far)
		close(done)
	}()
	defer func() {
		near.Close()
		<-done
	}()
	if err := near.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := near.Write(frame(msg)); err != nil {
		return nil, err
	}
	return readFrame(near)
}

func frame(msg []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(msg))), msg...)
}

// What memberlist sends, in hexadecimal, and what it must not see.
var (
	badOnes = map[string]string{
		"empty":                     "",
		"compressed":                "0982a3416c676f00a34275660a",
		"compressed, LZW bomb":      "0982a3416c676f00a3427566c5ffff" + strings.Repeat("00", 500),
		"encrypted":                 "0a00000010",
		"label":                     "f406736565646572",
		"unknown kind":              "ff",
		"compound within compound":  "0701000607010002" + "0000",
		"compound without parts":    "07",
		"compound that lies":        "07ff0001",
		"compound with a tail":      "0701000108ff",
		"compound with an empty":    "07010000",
		"push/pull in a packet":     "0683a54e6f64657300ac557365725374617465" + "4c656e00a44a6f696ec2",
		"no map":                    "00c0",
		"a map that lies":           "008f",
		"a length that lies":        "0081a44e6f6465db7fffffff41",
		"a nested value":            "0081a44e6f646591919191",
		"a field twice":             "0082a55365714e6f01a55365714e6f01",
		"a number too large":        "0281a55365714e6fcf0000000100000000",
		"a negative number":         "0281a55365714e6fd0ff",
		"a float":                   "0281a55365714e6fcb4000000000000000",
		"an address of three bytes": "0481a441646472c403010203",
	}
)

// TestWallRefuses: of what a member with the secret may send, memberlist never sees
// what it cannot take.
func TestWallRefuses(t *testing.T) {
	t.Parallel()
	b := newBehind(t)
	for name, h := range badOnes {
		msg, err := hex.DecodeString(h)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := checkPacket(msg); err == nil {
			t.Errorf("%s: let through as a packet", name)
		}
		b.send(t, b.seal.seal(msg))
		for _, answer := range []bool{false, true} {
			if err := checkStream(msg, answer); err == nil && name != "push/pull in a packet" {
				t.Errorf("%s: let through on a stream (answer %t)", name, answer)
			}
		}
		if len(msg) > 0 && name != "push/pull in a packet" {
			if got, err := b.ask(msg); err == nil {
				t.Errorf("%s: answered with %x", name, got)
			}
		}
	}
	if n := b.list.Load().NumMembers(); n != 1 {
		t.Errorf("%d members", n)
	}
}

// TestForgedVersion: the byte that ended a daemon. A packet whose version was changed
// on the way, or that came with another one, does not open.
func TestForgedVersion(t *testing.T) {
	t.Parallel()
	s, err := newSealer([][]byte{wallKey})
	if err != nil {
		t.Fatal(err)
	}
	good := s.seal([]byte{kindUser, probeKind})
	if msg, err := s.open(good); err != nil || !bytes.Equal(msg, []byte{kindUser, probeKind}) {
		t.Fatalf("%x %v", msg, err)
	}
	if bytes.Equal(good, s.seal([]byte{kindUser, probeKind})) {
		t.Error("two packets with the same nonce")
	}
	for i := range good {
		forged := bytes.Clone(good)
		forged[i] ^= 1
		if _, err := s.open(forged); !errors.Is(err, errUnsealed) {
			t.Errorf("opens with byte %d changed: %v", i, err)
		}
		if _, err := s.open(good[:i]); !errors.Is(err, errUnsealed) {
			t.Errorf("opens cut at %d: %v", i, err)
		}
	}
	b := newBehind(t)
	old, err := hex.DecodeString("f406736565646572" + "00" + strings.Repeat("00", 60))
	if err != nil {
		t.Fatal(err)
	}
	b.send(t, old)
	old[8] = 1
	b.send(t, old)
}

// fromHost is a connection from one of several hosts.
type fromHost struct {
	net.Conn
	host int
}

func (c fromHost) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IP{10, 0, 0, byte(c.host)}, Port: 40000}
}

// TestStreamsAreBounded: what a stream may cost before and after its message.
func TestStreamsAreBounded(t *testing.T) {
	t.Parallel()
	b := newBehind(t)
	for _, head := range [][]byte{{0, 0, 0, 0}, {0, 0x10, 0, 1}, {0xff, 0xff, 0xff, 0xff}} {
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			b.Serve(far)
			close(done)
		}()
		if _, err := near.Write(head); err != nil {
			t.Error(err)
		}
		<-done // refused by its length alone
		near.Close()
	}
	// More than one host's share waits, then more than that of all: the next is closed at
	// once, and room comes back.
	var open []net.Conn
	var wg sync.WaitGroup
	tr := b.transport.Load()
	for host := range maxStreams / maxStreamsPerHost {
		for range maxStreamsPerHost {
			near, far := net.Pipe()
			open = append(open, near)
			wg.Go(func() { b.Serve(fromHost{far, host}) })
		}
		eventually(t, "the streams are open", func() bool {
			tr.mu.Lock()
			defer tr.mu.Unlock()
			return tr.arrived == len(open)
		})
		next := host
		if len(open) == maxStreams {
			next = host + 1 // the share of all is used up
		}
		near, far := net.Pipe()
		began := time.Now()
		b.Serve(fromHost{far, next})
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) > streamTimeout/2 {
			t.Errorf("one stream too many of host %d, with %d open: %v after %s", next, len(open), err, time.Since(began))
		}
	}
	for _, c := range open {
		c.Close()
	}
	wg.Wait()
	if answer, err := b.ask(aPing("a")); err != nil || answer[0] != kindAck {
		t.Errorf("afterwards: %x %v", answer, err)
	}
}

// aPing is a ping as memberlist encodes it.
func aPing(node string) []byte {
	return append([]byte{kindPing, 0x82, 0xa5, 'S', 'e', 'q', 'N', 'o', 7, 0xa4, 'N', 'o', 'd', 'e', 0xa0 | byte(len(node))}, node...)
}

// states is a push/pull with so many members, of which each is as long as may be.
func states(n int) []byte {
	b := []byte{kindPushPull, 0x83, 0xa5, 'N', 'o', 'd', 'e', 's', 0xcd, byte(n >> 8), byte(n), 0xac}
	b = append(b, "UserStateLen"...)
	b = append(b, 0, 0xa4, 'J', 'o', 'i', 'n', 0xc2)
	for i := range n {
		b = append(b, 0x87, 0xa4)
		b = append(b, "Name"...)
		b = append(b, 0xda, 0, 128)
		b = append(b, fmt.Sprintf("%0128d", i)...)
		b = append(b, 0xa4)
		b = append(b, "Addr"...)
		b = append(b, 0xa4, 10, byte(i>>16), byte(i>>8), byte(i), 0xa4)
		b = append(b, "Port"...)
		b = append(b, 0xcd, 0x1f, 0x0e, 0xa4)
		b = append(b, "Meta"...)
		b = append(b, 0xa2, '{', '}', 0xab)
		b = append(b, "Incarnation"...)
		b = append(b, 1, 0xa5)
		b = append(b, "State"...)
		b = append(b, 0, 0xa3)
		b = append(b, "Vsn"...)
		b = append(b, 0xa6, 1, 5, 2, 0, 0, 0)
	}
	return b
}

// TestStatesAreBounded: an exchange of states is taken up to its bound, and one that
// lies about itself is not.
func TestStatesAreBounded(t *testing.T) {
	t.Parallel()
	if err := checkStream(states(1000), false); err != nil {
		t.Errorf("1,000 members: %v", err)
	}
	if n := len(states(1000)); n > maxStreamBytes/4 {
		t.Errorf("1,000 members take %d bytes", n)
	}
	if err := checkStream(states(maxStates+1), false); err == nil {
		t.Error("more members than the bound")
	}
	whole := states(3)
	for cut := range whole {
		if err := checkStream(whole[:cut], true); err == nil {
			t.Errorf("cut at %d", cut)
		}
	}
	if err := checkStream(append(whole, 0), false); err == nil {
		t.Error("with a tail")
	}
	b := newBehind(t)
	if answer, err := b.ask(states(3)); err != nil || answer[0] != kindPushPull {
		t.Fatalf("%x %v", answer, err)
	}
	eventually(t, "they are members", func() bool { return b.list.Load().NumMembers() == 4 })
}

// TestReplays: packets that somebody recorded change nothing when they are sent
// again, also after those who sent them have started anew.
func TestReplays(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var recorded [][]byte
	record := func(c *Config) {
		c.Listen = func(addr string) (net.PacketConn, error) {
			p, err := net.ListenPacket("udp", addr)
			return recorder{p, func(b []byte) {
				mu.Lock()
				defer mu.Unlock()
				if len(recorded) < 500 {
					recorded = append(recorded, bytes.Clone(b))
				}
			}}, err
		}
	}
	a := start(t, "a", 7, record)
	b := start(t, "b", 7, record, a.addr)
	eventually(t, "they know each other", func() bool { return len(a.Alive()) == 2 && len(b.Alive()) == 2 })
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b.shut()
	eventually(t, "b has left", func() bool { return a.state("b") == StateLeft })
	b = startAt(t, "b", b.addr, b.cfg.Keys, nil, a.addr)
	eventually(t, "b is back", func() bool { return a.state("b") == StateAlive && len(b.Alive()) == 2 })
	mu.Lock()
	packets := recorded
	mu.Unlock()
	if len(packets) < 5 {
		t.Fatalf("only %d packets were recorded", len(packets))
	}
	for range 20 {
		for _, n := range []*node{a, b} {
			conn, err := net.Dial("udp", n.transport.Load().packets.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range packets {
				if _, err := conn.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			conn.Close()
		}
		if a.state("b") != StateAlive || b.state("a") != StateAlive {
			t.Fatalf("a replay changed who is alive: %+v %+v", a.Members(), b.Members())
		}
	}
	// Both still hear of each other what is new.
	a.SetCatalog(9)
	eventually(t, "b hears of a's catalog", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.diffs) > 0
	})
}

type recorder struct {
	net.PacketConn
	note func([]byte)
}

func (r recorder) WriteTo(b []byte, to net.Addr) (int, error) {
	r.note(b)
	return r.PacketConn.WriteTo(b, to)
}

// TestStrangersAreBounded: whatever comes from hosts without the secret, the log has
// at most so many lines in its time, and the last one says what was left out.
func TestStrangersAreBounded(t *testing.T) {
	t.Parallel()
	var buf syncBuffer
	s := newStrangers(slog.New(slog.NewTextHandler(&buf, nil)))
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s.now = func() time.Time { return now }
	for i := range 10_000 {
		s.packet(&net.UDPAddr{IP: net.IPv4(10, 1, byte(i%3000>>8), byte(i%3000)), Port: 7950})
	}
	if got := strings.Count(buf.String(), "\n"); got > warnLines {
		t.Errorf("%d lines, at most %d are meant", got, warnLines)
	}
	for i := range 3 * maxStrangers {
		s.connected(fmt.Sprintf("10.2.0.%d", i))
		now = now.Add(time.Second)
	}
	list := s.list(time.Time{})
	if len(list) != maxStrangers || list[0].Host != fmt.Sprintf("10.2.0.%d", 3*maxStrangers-1) {
		t.Errorf("%d are remembered, %v is the last", len(list), list[0])
	}
	if got := strings.Count(buf.String(), "\n"); got > warnLines {
		t.Errorf("%d lines, at most %d are meant", got, warnLines)
	}
	before := buf.String()
	now = now.Add(warnEvery)
	s.packet(&net.UDPAddr{IP: net.IPv4(10, 3, 0, 1)})
	if later := strings.TrimPrefix(buf.String(), before); !strings.Contains(later, "suppressed=") || !strings.Contains(later, "10.3.0.1") {
		t.Errorf("after %s: %q", warnEvery, later)
	}
}

// seeds are messages that memberlist takes, and those that it must not see.
func seeds(f *testing.F) {
	f.Add(aPing("a"))
	f.Add(states(2))
	for _, h := range badOnes {
		if msg, err := hex.DecodeString(h); err == nil {
			f.Add(msg)
		}
	}
	f.Add(append([]byte{kindCompound, 2, 0, byte(len(aPing("a"))), 0, 2}, append(aPing("a"), kindUser, 0)...))
	f.Add(append([]byte{kindCRC, 0, 0, 0, 0}, aPing("a")...))
}

// FuzzPacket: no plaintext of a packet ends the process, also not in memberlist.
func FuzzPacket(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) > maxPacketBytes-sealOverhead {
			return
		}
		b := newBehind(t)
		b.send(t, b.seal.seal(msg))
		b.send(t, b.seal.seal(msg)) // and with what the first has left
	})
}

// FuzzSealed: nor does what no member has sealed.
func FuzzSealed(f *testing.F) {
	s, err := newSealer([][]byte{wallKey})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.seal(aPing("a")))
	f.Add(bytes.Repeat([]byte{sealVersion}, sealOverhead))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, packet []byte) {
		if msg, err := s.open(packet); err == nil && len(msg) != len(packet)-sealOverhead {
			t.Fatalf("%d bytes open to %d", len(packet), len(msg))
		}
	})
}

// FuzzStream: no question on a stream ends the process, and no answer to one.
func FuzzStream(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) == 0 || len(msg) > maxStreamBytes {
			return
		}
		b := newBehind(t)
		if checkStream(msg, false) == nil {
			_, _ = b.ask(msg)
		} else if got, err := b.ask(msg); err == nil {
			t.Fatalf("answered %x with %x", msg, got)
		}
		b.answer = func(far net.Conn) {
			defer far.Close()
			if _, err := readFrame(far); err == nil {
				_, _ = far.Write(frame(msg))
			}
		}
		if _, err := b.list.Load().Join([]string{"127.0.0.1:1"}); err == nil && checkStream(msg, true) != nil {
			t.Fatalf("joined by %x", msg)
		}
	})
}
