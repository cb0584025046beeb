package attack

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"seeder/p2p/trust"
	"seeder/test/harness"
)

// wallAttacks are those on the wall before memberlist.
func wallAttacks() []attack {
	return []attack{
		{name: "packets with a forged version", bound: "dropped", run: (*arena).forgedPackets},
		{name: "answers sent back with a forged version", bound: "closed", run: (*arena).forgedStreams},
		{name: "packets of members, sent again", bound: "both stay members", run: (*arena).replays, before: (*arena).restart},
		{name: "streams of 20 MiB without the secret", bound: "closed after 16 KiB each", run: (*arena).floods},
		{name: "handshakes with certificates of 200 KB", bound: "closed after 16 KiB each", run: (*arena).certificates},
		{name: "silent streams", bound: "256 are kept, 128 of one address; a member gets in", run: (*arena).silence},
		{name: "junk packets of many addresses", bound: "dropped", run: (*arena).junk},
		{name: "with the secret: messages that memberlist cannot take", bound: "dropped", run: (*arena).empties},
	}
}

// sniffUDP collects the payloads of packets to a port that cross the switch.
func sniffUDP(n *harness.Network, port uint16) func() [][]byte {
	var mu sync.Mutex
	var out [][]byte
	stop := n.Frames(func(f []byte) {
		const ethernet, ip, udp = 14, 20, 8
		if len(f) < ethernet+ip+udp || f[12] != 8 || f[13] != 0 || f[ethernet+9] != syscall.IPPROTO_UDP {
			return
		}
		if h := f[ethernet+ip:]; binary.BigEndian.Uint16(h[2:]) == port {
			mu.Lock()
			defer mu.Unlock()
			out = append(out, bytes.Clone(h[udp:]))
		}
	})
	n.T.Cleanup(stop)
	return func() [][]byte {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(out)
	}
}

// packets sends payloads from the stranger to a host's gossip port.
func (a *arena) packets(to *harness.Host, payloads [][]byte) {
	a.t.Helper()
	err := a.stranger.InNet(func() error {
		conn, err := net.Dial("udp4", to.Address+":7950")
		if err != nil {
			return err
		}
		defer conn.Close()
		for _, p := range payloads {
			if _, err := conn.Write(p); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		a.t.Fatal(err)
	}
}

// connect opens a stream from the stranger, from its nth address.
func (a *arena) connect(n int, port string) (conn net.Conn, err error) {
	err = a.stranger.InNet(func() error {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(10, 77, 0, byte(100+n%100))}}
		conn, err = d.Dial("tcp4", a.victim.Address+":"+port)
		return err
	})
	return conn, err
}

// addresses gives the stranger a hundred addresses.
func (a *arena) addresses() {
	a.stranger.Sh("for i in $(seq 100 199); do ip addr replace 10.77.0.$i/24 dev eth0; done")
}

// forgedPackets: one changed byte in a packet that was recorded ended a daemon whose
// packets memberlist opened itself.
func (a *arena) forgedPackets() string {
	harness.Eventually(a.t, 20*time.Second, "packets were recorded", func() error {
		if n := len(a.sniffed()); n < 20 {
			return fmt.Errorf("%d packets", n)
		}
		return nil
	})
	var forged [][]byte
	for _, p := range a.sniffed()[:20] {
		for i := range min(len(p), 30) {
			f := bytes.Clone(p)
			f[i] ^= 1
			forged = append(forged, f)
		}
	}
	a.packets(a.victim, forged)
	return fmt.Sprintf("%d packets", len(forged))
}

// forgedStreams sends what memberlist would answer with an error, and the answer back
// with its version changed.
func (a *arena) forgedStreams() string {
	question := append([]byte("\xf4\x06seeder\x0a\x00\x00\x00\x3d\x01"), make([]byte, 60)...)
	n := 0
	for _, port := range []string{"7950", "7951"} {
		for range a.times(100) {
			answer := a.exchange(port, question)
			if len(answer) > 5 {
				answer[5] ^= 1
			}
			a.exchange(port, answer)
			n += 2
		}
	}
	return fmt.Sprintf("%d streams", n)
}

// exchange sends bytes on a stream of its own and reads what comes.
func (a *arena) exchange(port string, b []byte) []byte {
	conn, err := a.connect(0, port)
	if err != nil {
		return nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	_, _ = conn.Write(b)
	answer := make([]byte, 1024)
	k, _ := conn.Read(answer)
	return answer[:k]
}

// restart ends the other member, which says farewell, and starts it again.
func (a *arena) restart() {
	a.member.Seeder.Stop(a.t, syscall.SIGTERM)
	a.member.StartSeeder(harness.StoreNode)
	a.victim.AwaitMembers(2)
}

// replays sends everything that was recorded again: the farewell of the other member's
// earlier run is among it.
func (a *arena) replays() string {
	recorded := a.sniffed()
	n := 0
	for n < a.times(20_000) {
		part := recorded[:min(len(recorded), 500)]
		for _, h := range []*harness.Host{a.victim, a.member} {
			a.packets(h, part)
			n += len(part)
		}
	}
	return fmt.Sprintf("%d packets, the farewell of an earlier run among them", n)
}

// floods sends up to 20 MiB on each of many streams.
func (a *arena) floods() string {
	a.addresses()
	heads := map[string][]byte{
		"7950": append([]byte("\xf4\x06seeder\x0a\x01\x40\x00\x00"), 1),
		"7951": {22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb, 3, 3},
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var sent int64
	streams := a.times(100)
	for i := range streams {
		for port, head := range heads {
			wg.Go(func() {
				conn, err := a.connect(i, port)
				if err != nil {
					return
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				n, _ := io.Copy(conn, io.MultiReader(bytes.NewReader(head), io.LimitReader(zeros{}, 20<<20)))
				mu.Lock()
				defer mu.Unlock()
				sent += n
			})
		}
	}
	wg.Wait()
	return fmt.Sprintf("%d streams to each port, %.1f MiB left the sender in all", streams, float64(sent)/(1<<20))
}

// zeros is an endless reader.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// certificates makes handshakes whose client shows far too much.
func (a *arena) certificates() string {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		a.t.Fatal(err)
	}
	cert := tls.Certificate{PrivateKey: private}
	for size := 0; size < 200_000; size += len(der) {
		cert.Certificate = append(cert.Certificate, der)
	}
	a.addresses()
	var wg sync.WaitGroup
	handshakes := a.times(1000)
	for i := range 20 {
		wg.Go(func() {
			for range handshakes / 20 {
				conn, err := a.connect(i, "7951")
				if err != nil {
					continue
				}
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				tc := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}, NextProtos: []string{"seeder-gossip/1"}})
				if tc.Handshake() == nil {
					if _, err := tc.Read(make([]byte, 1)); err == nil {
						a.t.Error("a stranger was answered")
					}
				}
				conn.Close()
			}
		})
	}
	wg.Wait()
	return fmt.Sprintf("%d handshakes", handshakes)
}

// silence opens streams and says nothing; a host with the secret gets in all the same.
func (a *arena) silence() string {
	a.addresses()
	streams := a.times(6000)
	var mu sync.Mutex
	var open []net.Conn
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := w; i < streams; i += 20 {
				conn, err := a.connect(i, "7951")
				if err != nil {
					continue
				}
				mu.Lock()
				open = append(open, conn)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	began := time.Now()
	if err := a.knock(); err != nil {
		a.t.Errorf("a new host with the secret, behind %d silent streams: %v", len(open), err)
	}
	return fmt.Sprintf("%d streams; a new host's handshake took %d ms behind them", len(open), time.Since(began).Milliseconds())
}

// knock makes a handshake with the secret from an address that the victim does not
// know, and asks something.
func (a *arena) knock() error {
	tc, err := a.withSecret("http/1.1")
	if err != nil {
		return err
	}
	defer tc.Close()
	if _, err := tc.Write([]byte("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		return err
	}
	_, err = tc.Read(make([]byte, 1))
	return err
}

// withSecret is a connection of somebody who has stolen the secret.
func (a *arena) withSecret(protocol string) (*tls.Conn, error) {
	secrets, err := trust.ParseSecrets([]byte(harness.Secret))
	if err != nil {
		return nil, err
	}
	id, err := trust.LoadOrCreateIdentity(a.t.TempDir() + "/identity")
	if err != nil {
		return nil, err
	}
	creds, err := trust.NewCredentials(id, secrets)
	if err != nil {
		return nil, err
	}
	conn, err := a.connect(99, "7951")
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	tc := tls.Client(conn, creds.ClientConfig(protocol))
	return tc, tc.HandshakeContext(context.Background())
}

// junk sends packets with forged source addresses, as anybody on the network can.
func (a *arena) junk() string {
	packets := a.times(10_000)
	err := a.stranger.InNet(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(a.victim.Address).To4())}
		for i := range packets {
			if err := unix.Sendto(fd, forgedUDP(i%3000, to.Addr, junkPayload(i)), 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return fmt.Sprintf("%d packets of %d addresses", packets, min(packets, 3000))
}

// junkPayload looks like a packet of a member until it is opened.
func junkPayload(i int) []byte {
	p := make([]byte, 69)
	rand.Read(p)
	copy(p, [][]byte{{1}, []byte("\xf4\x06seeder\x01"), {0}}[i%3])
	return p
}

// forgedUDP is an IPv4 packet to port 7950 from the nth address of 10.88.0.0/16.
func forgedUDP(n int, to [4]byte, payload []byte) []byte {
	p := make([]byte, 28, 28+len(payload))
	p[0], p[8], p[9] = 0x45, 64, syscall.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(payload)))
	copy(p[12:], []byte{10, 88, byte(n >> 8), byte(n)})
	copy(p[16:], to[:])
	binary.BigEndian.PutUint16(p[20:], 7950)
	binary.BigEndian.PutUint16(p[22:], 7950)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload))) // no checksum
	return append(p, payload...)
}

// empties sends, with the secret, messages that memberlist does not expect: among them
// the empty one that ended a daemon.
func (a *arena) empties() string {
	secrets, err := trust.ParseSecrets([]byte(harness.Secret))
	if err != nil {
		a.t.Fatal(err)
	}
	messages := [][]byte{
		{}, {0}, {6}, {7}, {7, 255}, {7, 1, 0, 0}, {9}, {10}, {12, 0, 0, 0, 0}, {244, 1}, {255},
		{6, 0x83, 0xa5, 'N', 'o', 'd', 'e', 's', 0xce, 0, 16, 0, 0}, {0, 0x81, 0xa4, 'N', 'o', 'd', 'e', 0xdb, 0x7f, 0xff, 0xff, 0xff},
		bytes.Repeat([]byte{7, 1, 0, 4}, 300), append([]byte{4}, bytes.Repeat([]byte{0x91}, 1000)...),
	}
	var packets [][]byte
	for _, m := range messages {
		packets = append(packets, sealed(a, secrets.GossipKeys()[0], m))
	}
	a.packets(a.victim, packets)
	streams := 0
	for _, m := range messages {
		for _, length := range []int{len(m), 1 << 20, 1 << 30} {
			tc, err := a.withSecret("seeder-gossip/1")
			if err != nil {
				a.t.Fatal(err)
			}
			_, _ = tc.Write(append(binary.BigEndian.AppendUint32(nil, uint32(length)), m...))
			_ = tc.CloseWrite()
			if answer, _ := io.ReadAll(tc); len(answer) > 0 {
				a.t.Errorf("%x was answered with %x", m, answer)
			}
			tc.Close()
			streams++
		}
	}
	return fmt.Sprintf("%d packets, %d streams", len(packets), streams)
}

// sealed is a packet as docs/protocol.md has it.
func sealed(a *arena, key, msg []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		a.t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		a.t.Fatal(err)
	}
	nonce := make([]byte, gcm.NonceSize())
	rand.Read(nonce)
	return gcm.Seal(append([]byte{1}, nonce...), nonce, msg, []byte("\x01seeder-gossip-packet"))
}
