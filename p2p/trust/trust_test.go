package trust

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func secrets(t *testing.T, lines ...string) Secrets {
	t.Helper()
	s, err := ParseSecrets([]byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func identity(t *testing.T) *Identity {
	t.Helper()
	id, err := LoadOrCreateIdentity(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func credentials(t *testing.T, s Secrets) *Credentials {
	t.Helper()
	c, err := NewCredentials(identity(t), s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Two secrets as generated: chosen ones cost time.
const (
	one = "Bw4VHCMqMTg_Rk1UW2JpcHd-hYyTmqGor7a9xMvS2eA"
	two = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
)

func TestParseSecrets(t *testing.T) {
	t.Parallel()
	s := secrets(t, "# a comment", "", "  "+one+"  ", two)
	if len(s) != 2 || bytes.Equal(s[0], s[1]) || !s.Equal(secrets(t, one, two)) {
		t.Fatalf("got %q", s)
	}
	for in, want := range map[string]string{
		"":                          "seeder secret generate",
		"# nothing\n":               "seeder secret generate",
		"short":                     "5 bytes, at least 16",
		one + "\ntoo short":         "line 2",
		strings.Repeat(one+"\n", 9): "more than 8",
	} {
		if _, err := ParseSecrets([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", in, err, want)
		}
	}
	if a, b := GenerateSecret(), GenerateSecret(); a == b || len(a) < MinSecretBytes {
		t.Errorf("generated %q and %q", a, b)
	}
}

func TestDerivedKeysDiffer(t *testing.T) {
	t.Parallel()
	s := secrets(t, one, two)
	keys := s.GossipKeys()
	if len(keys) != 2 || len(keys[0]) != 32 || string(keys[0]) == string(keys[1]) {
		t.Fatalf("gossip keys %x", keys)
	}
	if string(s[0].derive("cluster CA", 32)) == string(keys[0]) {
		t.Fatal("gossip key and CA key are the same")
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "identity")
	a, err := LoadOrCreateIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("identity has mode %v, want 0600", st.Mode())
	}
	b, err := LoadOrCreateIdentity(path)
	if err != nil || a.ID() != b.ID() {
		t.Fatalf("loaded %v %v, want %v", b, err, a.ID())
	}
	if id, err := ParseNodeID(string(a.ID())); err != nil || id != a.ID() {
		t.Errorf("id %s does not parse: %v", a.ID(), err)
	}
	for _, bad := range []string{"", "abc", strings.ToUpper(string(a.ID())), string(a.ID()) + "a"} {
		if _, err := ParseNodeID(bad); err == nil {
			t.Errorf("%q parsed as a node id", bad)
		}
	}
	if err := os.WriteFile(path, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateIdentity(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("damaged identity: %v, want an error that names %s", err, path)
	}
}

func TestSignatures(t *testing.T) {
	t.Parallel()
	id := identity(t)
	sig := id.Sign("purpose", []byte("payload"))
	if !Verify(id.Public(), "purpose", []byte("payload"), sig) {
		t.Fatal("own signature does not verify")
	}
	for name, ok := range map[string]bool{
		"other purpose": Verify(id.Public(), "purpos", []byte("epayload"), sig),
		"other payload": Verify(id.Public(), "purpose", []byte("payloae"), sig),
		"other key":     Verify(identity(t).Public(), "purpose", []byte("payload"), sig),
		"no key":        Verify(nil, "purpose", []byte("payload"), sig),
	} {
		if ok {
			t.Errorf("signature verifies for %s", name)
		}
	}
}

// serve answers over TLS with the id of who asks.
func serve(t *testing.T, c *Credentials) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := PeerID(*r.TLS)
		if err != nil {
			t.Errorf("peer id: %v", err)
		}
		w.Header().Set("Peer", string(id))
	}))
	srv.Listener = tls.NewListener(srv.Listener, c.ServerConfig("http/1.1"))
	srv.Start()
	t.Cleanup(srv.Close)
	return srv
}

func get(t *testing.T, cfg *tls.Config, srv *httptest.Server) (*http.Response, error) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: cfg}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.Replace(srv.URL, "http:", "https:", 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err == nil {
		resp.Body.Close()
	}
	return resp, err
}

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	id := identity(t)
	mine, err := NewCredentials(id, secrets(t, one))
	if err != nil {
		t.Fatal(err)
	}
	srv := serve(t, credentials(t, secrets(t, one)))
	resp, err := get(t, mine.ClientConfig("http/1.1"), srv)
	if err != nil || resp.Header.Get("Peer") != string(id.ID()) {
		t.Fatalf("got %v %v, want the client's id %s", resp, err, id.ID())
	}
	if resp.TLS.Version != tls.VersionTLS13 || resp.ProtoMajor != 1 {
		t.Errorf("TLS %x, HTTP/%d: want 1.3 and 1", resp.TLS.Version, resp.ProtoMajor)
	}
}

func TestOtherSecretIsTold(t *testing.T) {
	t.Parallel()
	srv := serve(t, credentials(t, secrets(t, one)))
	if _, err := get(t, credentials(t, secrets(t, two)).ClientConfig("http/1.1"), srv); !errors.Is(err, ErrSecretsDiffer) {
		t.Fatalf("got %v, want ErrSecretsDiffer", err)
	}
	// A client that trusts anybody is refused by the server.
	cfg := credentials(t, secrets(t, two)).ClientConfig("http/1.1")
	cfg.VerifyConnection = nil
	if _, err := get(t, cfg, srv); err == nil {
		t.Fatal("a client with another secret got in")
	}
	if _, err := get(t, &tls.Config{InsecureSkipVerify: true}, srv); err == nil {
		t.Fatal("a client without a certificate got in")
	}
}

func TestNoPlainText(t *testing.T) {
	t.Parallel()
	srv := serve(t, credentials(t, secrets(t, one)))
	resp, err := http.Get(srv.URL)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Fatal("plain HTTP was answered")
		}
	}
}

// TestRotation: every step of moving from one secret to the next keeps each pair
// of hosts talking, whichever of them has gone ahead.
func TestRotation(t *testing.T) {
	t.Parallel()
	steps := [][]string{{one}, {one, two}, {two, one}, {two}}
	for i := range len(steps) - 1 {
		for _, pair := range [][2]int{{i, i + 1}, {i + 1, i}} {
			srv := serve(t, credentials(t, secrets(t, steps[pair[0]]...)))
			if _, err := get(t, credentials(t, secrets(t, steps[pair[1]]...)).ClientConfig("http/1.1"), srv); err != nil {
				t.Errorf("server with %q, client with %q: %v", steps[pair[0]], steps[pair[1]], err)
			}
		}
	}
}

func TestForeignProgramIsTold(t *testing.T) {
	t.Parallel()
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	nc, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	err = tls.Client(nc, credentials(t, secrets(t, one)).ClientConfig("http/1.1")).HandshakeContext(context.Background())
	if !errors.Is(err, errNotSeeder) {
		t.Fatalf("got %v, want errNotSeeder", err)
	}
}

// FuzzSecretLines: what ParseSecrets reads, without the slow hash of each secret.
func FuzzSecretLines(f *testing.F) {
	f.Add([]byte("# comment\n" + one + "\n"))
	f.Add([]byte(one + "\r\n" + two))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := secretLines(data)
		if err == nil && len(s) == 0 {
			t.Fatal("no error and no secret")
		}
		for _, x := range s {
			if len(x) < MinSecretBytes {
				t.Fatalf("secret of %d bytes", len(x))
			}
		}
	})
}

func FuzzIdentityFile(f *testing.F) {
	path := filepath.Join(f.TempDir(), "identity")
	if _, err := LoadOrCreateIdentity(path); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("-----BEGIN SEEDER NODE IDENTITY-----\nAAAA\n-----END SEEDER NODE IDENTITY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := parseIdentity(b)
		if err != nil {
			return
		}
		if again, err := parseIdentity(id.encode()); err != nil || again.ID() != id.ID() {
			t.Fatalf("%s becomes another one: %v", id.ID(), err)
		}
	})
}
