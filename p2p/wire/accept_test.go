package wire

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"seeder/p2p/trust"
)

// visitors opens so many connections that say nothing, from one address of loopback
// each, and returns them.
func visitors(t *testing.T, addr string, n, perHost int) (open []net.Conn) {
	t.Helper()
	for i := range n {
		host := i / perHost
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, byte(host>>8), byte(1+host))}}
		c, err := d.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		open = append(open, c)
	}
	return open
}

func isClosed(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	return err != nil && !(errors.As(err, &timeout) && timeout.Timeout())
}

// within polls a condition of real sockets.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// TestOldestStrangerGoes: of connections that have proved nothing the oldest gives way,
// of one address first where that has too many, and anyone who has the secret gets in.
func TestOldestStrangerGoes(t *testing.T) {
	t.Parallel()
	c, addr := pair(t, &handler{})
	one := visitors(t, addr, maxStrangePerHost+5, maxStrangePerHost+5)
	within(t, "the first five of an address are closed", func() bool {
		for _, c := range one[:5] {
			if !isClosed(c) {
				return false
			}
		}
		return true
	})
	if isClosed(one[5]) || isClosed(one[len(one)-1]) {
		t.Error("more than the oldest of that address are closed")
	}
	many := visitors(t, addr, maxStrange, 1)
	within(t, "those of one address have given way to those of many", func() bool {
		for _, c := range one {
			if !isClosed(c) {
				return false
			}
		}
		return true
	})
	if isClosed(many[len(many)-1]) {
		t.Error("the newest is closed")
	}
	if err := c.Echo(t.Context(), addr, 0, 0).Reason; err != nil {
		t.Errorf("somebody with the secret: %v", err)
	}
}

// TestProvedHostsHaveRoom: an address from which the secret was proved does not compete
// with those from which it was not.
func TestProvedHostsHaveRoom(t *testing.T) {
	t.Parallel()
	g := newGate(nil, &ServerConfig{Credentials: credentials(t, secret)}, &connSet{})
	closed := map[string]int{}
	visit := func(host string) {
		near, far := net.Pipe()
		t.Cleanup(func() { far.Close() })
		g.visit(&visitor{conn: newConn(closing{near, func() { closed[host]++ }}, unlimited, nil, nil, nil), host: host})
	}
	g.mu.Lock()
	g.prove("member")
	g.mu.Unlock()
	visit("member")
	for i := range 3 * maxStrange {
		visit(fmt.Sprint("stranger ", i))
	}
	if closed["member"] > 0 || closed["stranger 0"] != 1 || closed[fmt.Sprint("stranger ", 2*maxStrange)] > 0 {
		t.Errorf("closed: %v", closed)
	}
	for i := range 2 * maxProved {
		g.mu.Lock()
		g.prove(fmt.Sprint("member ", i))
		g.mu.Unlock()
	}
	if len(g.proved) > maxProved {
		t.Errorf("%d addresses are remembered, at most %d are meant", len(g.proved), maxProved)
	}
}

type closing struct {
	net.Conn
	closed func()
}

func (c closing) Close() error {
	c.closed()
	return c.Conn.Close()
}

// TestHandshakesAreBounded: what has proved nothing is read up to 16 KiB, also where TLS
// itself would take more: a hello of 64 KiB in records as it wants them.
func TestHandshakesAreBounded(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	count := func(int) {}
	g := newGate(nil, &ServerConfig{Credentials: credentials(t, secret), Log: slog.New(slog.DiscardHandler), Sent: count, Received: count}, &connSet{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer far.Close()
	wg.Go(func() { g.receive(g.visitor(near), func() {}) })
	const piece = 1000
	record := append([]byte{22, 3, 1, piece >> 8, piece & 0xff}, make([]byte, piece)...)
	copy(record[5:], []byte{1, 0, 0xff, 0xf0, 3, 3})
	sent := 0
	for sent < 1<<20 {
		n, err := far.Write(record) // the pipe holds nothing: these bytes were read
		if sent += n; err != nil {
			break
		}
		clear(record[5:])
	}
	if sent < 8<<10 || sent > 16<<10+piece {
		t.Errorf("%d bytes were read of somebody who has proved nothing, want 16 KiB", sent)
	}
}

// TestGossipStreams: a stream of gossip reaches its handler with the proved identity
// on both sides, no limit holds it up, and it ends with the server.
func TestGossipStreams(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	limits := NewLimiter(Limits{UploadBytesPerSec: 1, DownloadBytesPerSec: 1})
	serving := make(chan struct{})
	var mu sync.Mutex
	var strangers []net.Addr
	creds := credentials(t, secret)
	s := NewServer(ServerConfig{
		Credentials: creds, Handlers: handlers(&handler{}), Limiter: limits,
		Gossip: func(c net.Conn) {
			b := make([]byte, 200<<10)
			if _, err := io.ReadFull(c, b); err == nil {
				_, _ = c.Write(b)
			}
			close(serving)
			_, _ = c.Read(b) // until the end
		},
		Strange: func(from net.Addr) {
			mu.Lock()
			defer mu.Unlock()
			strangers = append(strangers, from)
		},
	})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	c := NewClient(ClientConfig{Credentials: credentials(t, secret), Limiter: limits})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	nc, id, err := c.DialGossip(ctx, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if want := idOf(t, creds); id != want {
		t.Errorf("the other side has proved %s, want %s", id, want)
	}
	b := make([]byte, 200<<10)
	if _, err := nc.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nc, b); err != nil {
		t.Fatal(err)
	}
	<-serving

	other := NewClient(ClientConfig{Credentials: credentials(t, "quite another secret than that")})
	defer other.Close()
	if nc, _, err := other.DialGossip(ctx, l.Addr().String()); err == nil {
		nc.Close()
		t.Error("a stranger got a stream")
	} else if !errors.Is(err, trust.ErrSecretsDiffer) {
		t.Errorf("a stranger is told %v", err)
	}
	within(t, "the server has heard of the stranger", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(strangers) == 1
	})
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := nc.Read(b); err == nil {
		t.Error("the stream outlives the server")
	}
}

// idOf is the identity that credentials prove.
func idOf(t *testing.T, c *trust.Credentials) trust.NodeID {
	t.Helper()
	cert, err := c.ClientConfig(protocolHTTP).GetClientCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	return trust.IDOf(cert.PrivateKey.(ed25519.PrivateKey).Public().(ed25519.PublicKey))
}
