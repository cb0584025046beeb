package wall

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"seeder/docs"
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

// behind is memberlist behind the wall, and nothing else: what gets through the wall is
// handled before the function returns.
type behind struct {
	*Transport
	list    *memberlist.Memberlist
	packets *pipePackets
	marks   chan string    // messages of the members' own that arrived
	answer  func(net.Conn) // the other end of a stream that memberlist opens
}

const (
	testID   = "0123456789abcdef"
	markKind = 3
)

// NotifyMsg implements memberlist.Delegate. It never blocks: a mark that nobody waits for is lost.
func (b *behind) NotifyMsg(msg []byte) {
	select {
	case b.marks <- string(msg):
	default:
	}
}

// The rest of memberlist.Delegate: this member has nothing to say.
func (b *behind) NodeMeta(int) []byte             { return []byte("{}") }
func (b *behind) GetBroadcasts(int, int) [][]byte { return nil }
func (b *behind) LocalState(bool) []byte          { return nil }
func (b *behind) MergeRemoteState([]byte, bool)   {}

var wallKey = bytes.Repeat([]byte{7}, 32)

func newBehind(t testing.TB) *behind {
	t.Helper()
	b := &behind{packets: &pipePackets{in: make(chan []byte), ended: make(chan struct{})}, marks: make(chan string, 64)}
	w := New(Config{
		Log:    slog.New(slog.DiscardHandler),
		Listen: func(string) (net.PacketConn, error) { return b.packets, nil },
		Dial: func(context.Context, string) (net.Conn, string, error) {
			near, far := net.Pipe()
			go b.answer(far)
			return near, testID, nil
		},
		Identity:  func(net.Conn) string { return testID },
		Member:    func(string) (string, string, error) { return "127.0.0.1:7951", testID, nil },
		Proved:    func(string) {},
		Exchanged: func(string, []byte) {},
	})
	err := w.SetKeys([][]byte{wallKey})
	if err != nil {
		t.Fatal(err)
	}
	if b.Transport, err = w.Open(t.Context(), "127.0.0.1:7950"); err != nil {
		t.Fatal(err)
	}
	conf := memberlist.DefaultLANConfig()
	conf.Name, conf.Delegate, conf.Transport = "a", b, b.Transport
	conf.BindAddr, conf.BindPort, conf.AdvertisePort = "127.0.0.1", 7950, 7950
	conf.UDPBufferSize, conf.EnableCompression = PacketBytes, false
	conf.ProbeInterval, conf.GossipInterval, conf.PushPullInterval = time.Hour, time.Hour, time.Hour
	conf.LogOutput = io.Discard
	if b.list, err = memberlist.Create(conf); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.list.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// send has memberlist take what is in a packet, if the wall lets it through, and
// returns when it has.
func (b *behind) send(t testing.TB, packet []byte) {
	t.Helper()
	b.packets.in <- packet
	mark := string(append([]byte{markKind}, rand.Text()...))
	for {
		b.packets.in <- b.wall.seal.seal(append([]byte{kindUser}, mark...))
		select {
		case got := <-b.marks:
			if got == mark {
				return
			}
		case <-time.After(20 * time.Millisecond): // it was lost: memberlist's queue was full
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
		b.send(t, b.wall.seal.seal(msg))
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
	if n := b.list.NumMembers(); n != 1 {
		t.Errorf("%d members", n)
	}
}

// TestForgedVersion: the byte that ended a daemon. A packet whose version was changed
// on the way, or that came with another one, does not open.
func TestForgedVersion(t *testing.T) {
	t.Parallel()
	var s sealer
	if err := s.set([][]byte{wallKey}); err != nil {
		t.Fatal(err)
	}
	good := s.seal([]byte{kindUser, markKind})
	if msg, err := s.open(good); err != nil || !bytes.Equal(msg, []byte{kindUser, markKind}) {
		t.Fatalf("%x %v", msg, err)
	}
	if bytes.Equal(good, s.seal([]byte{kindUser, markKind})) {
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
	for host := range maxStreams / maxStreamsPerHost {
		for range maxStreamsPerHost {
			near, far := net.Pipe()
			open = append(open, near)
			wg.Go(func() { b.Serve(fromHost{far, host}) })
		}
		eventually(t, "the streams are open", func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.arrived == len(open)
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
	eventually(t, "they are members", func() bool { return b.list.NumMembers() == 4 })
}

// TestIncarnationsAreBounded: none above 2^31 passes the wall, so a member can always
// object to what is said of it.
func TestIncarnationsAreBounded(t *testing.T) {
	t.Parallel()
	for number, want := range map[uint32]bool{0: true, 1 << 31: true, 1<<31 + 1: false, math.MaxUint32: false} {
		for _, kind := range []byte{kindSuspect, kindDead} {
			b := binary.BigEndian.AppendUint32(append(appendString([]byte{kind, 0x83}, "Incarnation"), 0xce), number)
			b = appendString(appendString(b, "Node"), "b")
			b = appendString(appendString(b, "From"), "c")
			if err := checkPacket(b); (err == nil) != want {
				t.Errorf("kind %d, incarnation %d: %v", kind, number, err)
			}
		}
	}
}

// TestLogEnds: memberlist's timers outlive it, its log does not.
func TestLogEnds(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	w := NewLogWriter(slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelDebug})))
	fmt.Fprintln(w, "[ERR] memberlist: Failed to send ping")
	if got := buf.String(); !strings.Contains(got, "level=DEBUG") || !strings.Contains(got, "Failed to send ping") {
		t.Errorf("logged %q", got)
	}
	w.Close()
	before := buf.String()
	fmt.Fprintln(w, "[INFO] memberlist: Marking a as failed, suspect timeout reached")
	if buf.String() != before {
		t.Errorf("written after the end: %s", buf.String())
	}
}

// TestSetKeysReplaces: what a key sealed that is not accepted any more does not open.
func TestSetKeysReplaces(t *testing.T) {
	t.Parallel()
	var s sealer
	next := bytes.Repeat([]byte{8}, 32)
	if err := s.set([][]byte{wallKey}); err != nil {
		t.Fatal(err)
	}
	old := s.seal([]byte{kindUser, markKind})
	if err := s.set([][]byte{next, wallKey}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.open(old); err != nil {
		t.Errorf("while both are accepted: %v", err)
	}
	if err := s.set([][]byte{next}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.open(old); !errors.Is(err, errUnsealed) {
		t.Errorf("a packet of the old key opens: %v", err)
	}
}

// TestPacketVector: the packet of docs/protocol.md opens as the page says.
func TestPacketVector(t *testing.T) {
	t.Parallel()
	v := docs.Protocol(t, "packet")
	var s sealer
	if err := s.set([][]byte{v.Hex("key")}); err != nil {
		t.Fatal(err)
	}
	want := append([]byte{kindUser}, docs.Protocol(t, "hint").Hex("message")...)
	if got, err := s.open(v.Hex("packet")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("it opens to %x, %v", got, err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestStrangersAreBounded: whatever comes from hosts without the secret, the log has
// at most so many lines in its time, and the last one says what was left out.
func TestStrangersAreBounded(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
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
		b.send(t, b.wall.seal.seal(msg))
		b.send(t, b.wall.seal.seal(msg)) // and with what the first has left
	})
}

// FuzzSealed: nor does what no member has sealed.
func FuzzSealed(f *testing.F) {
	var s sealer
	if err := s.set([][]byte{wallKey}); err != nil {
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
		if _, err := b.list.Join([]string{"127.0.0.1:1"}); err == nil && checkStream(msg, true) != nil {
			t.Fatalf("joined by %x", msg)
		}
	})
}
