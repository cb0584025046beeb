package gossip

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"seeder/p2p/trust"
)

// node is one member on loopback.
type node struct {
	*Gossip
	addr  string // of its transfer port, where it is joined
	shut  func()
	creds *trust.Credentials
	ident *trust.Identity
	log   *syncBuffer

	mu    sync.Mutex
	hints []Hint
	diffs []string
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// secretsOf are secrets of a cluster in which packets have these keys.
func secretsOf(keys [][]byte) (out trust.Secrets) {
	for _, k := range keys {
		out = append(out, trust.Secret(k))
	}
	return out
}

// listen stands for the transfer port: mutual TLS with the cluster's certificates,
// and nothing but gossip's streams behind it.
func (n *node) listen(t *testing.T, addr string, keys [][]byte) (dial Dial, serve func()) {
	t.Helper()
	id, err := trust.LoadOrCreateIdentity(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	n.ident = id
	if n.creds, err = trust.NewCredentials(id, secretsOf(keys)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	n.addr = l.Addr().String()
	var wg sync.WaitGroup
	n.shut = func() {
		l.Close()
		wg.Wait()
	}
	t.Cleanup(n.shut)
	serve = func() {
		wg.Go(func() {
			for {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { n.receive(tls.Server(nc, n.creds.ServerConfig("test"))) })
			}
		})
	}
	return n.dial, serve
}

func (n *node) receive(tc *tls.Conn) {
	defer tc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := trust.Explain(tc.HandshakeContext(ctx)); err == nil {
		n.Serve(tc)
	} else if errors.Is(err, trust.ErrSecretsDiffer) {
		n.Strange(tc.RemoteAddr())
	}
}

func (n *node) dial(ctx context.Context, addr string) (net.Conn, trust.NodeID, error) {
	d := tls.Dialer{Config: n.creds.ClientConfig("test")}
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, "", trust.Explain(err)
	}
	id, err := trust.PeerID(nc.(*tls.Conn).ConnectionState())
	return explained{nc}, id, err
}

type explained struct{ net.Conn }

func (e explained) Read(p []byte) (int, error) {
	n, err := e.Conn.Read(p)
	return n, trust.Explain(err)
}

func start(t *testing.T, name string, key byte, change func(*Config), join ...string) *node {
	t.Helper()
	return startAt(t, name, "127.0.0.1:0", [][]byte{bytes.Repeat([]byte{key}, 32)}, change, join...)
}

func startAt(t *testing.T, name, addr string, keys [][]byte, change func(*Config), join ...string) *node {
	t.Helper()
	n := &node{log: &syncBuffer{}}
	dial, serve := n.listen(t, addr, keys)
	_, port, _ := net.SplitHostPort(n.addr)
	cfg := Config{
		NodeName: name, BindAddr: "127.0.0.1:0", Join: func() []string { return join }, Dial: dial, Keys: keys, Identity: n.ident,
		Meta: Meta{ID: n.id(), TransferAddress: ":" + port, Protocol: 1, Version: "test"},
		Log:  slog.New(slog.NewTextHandler(n.log, nil)),
		OnHint: func(h Hint) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.hints = append(n.hints, h)
		},
		OnCatalog: func(member string, _ uint64) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.diffs = append(n.diffs, member)
		},
	}
	if change != nil {
		change(&cfg)
	}
	n.Gossip = New(cfg)
	if err := n.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	serve()
	return n
}

// id is the one that n's certificate proves.
func (n *node) id() trust.NodeID {
	cert, err := n.creds.ClientConfig("test").GetClientCertificate(nil)
	if err != nil {
		return ""
	}
	return trust.IDOf(cert.PrivateKey.(ed25519.PrivateKey).Public().(ed25519.PublicKey))
}

// setKeys changes keys and certificates, as a rotation does.
func (n *node) setKeys(t *testing.T, keys [][]byte) {
	t.Helper()
	if err := errors.Join(n.creds.SetSecrets(secretsOf(keys)), n.SetKeys(keys)); err != nil {
		t.Fatal(err)
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

func (n *node) state(name string) string {
	for _, m := range n.Members() {
		if m.Name == name {
			return m.State
		}
	}
	return ""
}
