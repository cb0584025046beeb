package wire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/swarm"
	"seeder/p2p/trust"
	"seeder/store/chunk"
)

func FuzzReadHaves(f *testing.F) {
	m := chunk.NewBitmap(70)
	m.Set(69)
	f.Add(appendHaves(nil, swarm.Haves{Map: m, New: []int{3, 69}, Complete: true}, 70), 70)
	f.Add(appendMessage(nil, haveKeepAlive, nil), 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 0 || n > chunk.MaxChunks {
			return
		}
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			h, ok, err := readHaves(r, n)
			if err != nil {
				return
			}
			for _, c := range h.New {
				if c < 0 || c >= n {
					t.Fatalf("chunk %d of %d", c, n)
				}
			}
			if ok && h.Map != nil && h.Map.Count() > n {
				t.Fatalf("%d chunks of %d", h.Map.Count(), n)
			}
		}
	})
}

func FuzzDecodePeers(f *testing.F) {
	b, _ := encodePeers([]swarm.Peer{{Name: "a", Address: "10.0.0.1:1"}})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if peers, err := decodePeers(b); err == nil {
			for _, p := range peers {
				if checkAddress(p.Address) != nil || p.Name == "" {
					t.Fatalf("accepted %+v", p)
				}
			}
		}
		if p, err := decodePeer(b); err == nil && checkAddress(p.Address) != nil {
			t.Fatalf("accepted %+v", p)
		}
	})
}

func FuzzDecodeRecords(f *testing.F) {
	f.Add([]byte{1, 1})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		recs, bad, err := decodeRecords(b)
		if err == nil && len(b) > 0 && len(recs)+bad == 0 {
			t.Fatal("bytes without a record and without an error")
		}
	})
}

func FuzzPath(f *testing.F) {
	f.Add("sha256:"+strings.Repeat("a", 64), "12")
	f.Fuzz(func(t *testing.T, d, n string) {
		if got, err := parseDigest(d); err == nil && len(got) != 71 {
			t.Fatalf("accepted %q", d)
		}
		if got, err := parseChunk(n); err == nil && (got < 0 || got >= chunk.MaxChunks) {
			t.Fatalf("accepted %q", n)
		}
	})
}

// FuzzHaves: what is written is read again, whatever the chunks.
func FuzzHaves(f *testing.F) {
	f.Add([]byte{1, 2, 69}, 70)
	f.Add([]byte{0}, 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 1 || n > chunk.MaxChunks {
			return
		}
		m := chunk.NewBitmap(n)
		var chunks []int
		for i, x := range b {
			c := (int(x) + 251*i) % n
			if !m.Has(c) {
				m.Set(c)
				chunks = append(chunks, c)
			}
		}
		r := bufio.NewReader(bytes.NewReader(appendHaves(nil, swarm.Haves{Map: m, New: chunks, Complete: true}, n)))
		h, ok, err := readHaves(r, n)
		if err != nil || !ok || !slices.Equal(h.Map, m) {
			t.Fatalf("map: got %v %v, want %v", h.Map, err, m)
		}
		if len(chunks) > 0 {
			slices.Sort(chunks)
			if h, _, err = readHaves(r, n); err != nil || !slices.Equal(h.New, chunks) {
				t.Fatalf("new: got %v %v, want %v", h.New, err, chunks)
			}
		}
		if h, _, err = readHaves(r, n); err != nil || !h.Complete {
			t.Fatalf("complete: got %+v %v", h, err)
		}
	})
}

// anyHandler answers whatever gets through to it, which it checks.
type anyHandler struct {
	*handler
	t *testing.T
}

func (h anyHandler) Register(_ context.Context, seed digest.Digest, from string, p swarm.Peer) []swarm.Peer {
	if _, err := trust.ParseNodeID(from); err != nil || seed.Validate() != nil || p.Name == "" || checkAddress(p.Address) != nil {
		h.t.Errorf("%q registers %+v for %q", from, p, seed)
	}
	return nil
}

// deadlines lets a recorder stand for a connection.
type deadlines struct{ *httptest.ResponseRecorder }

func (deadlines) SetReadDeadline(time.Time) error  { return nil }
func (deadlines) SetWriteDeadline(time.Time) error { return nil }

// FuzzRequest: whatever a member asks, the answer is one of those that the other
// side knows, and no handler sees what is out of bounds.
func FuzzRequest(f *testing.F) {
	id := identity(f)
	s := &served{n: 70, chunk: []byte("chunk")}
	path := "/v1/swarms/" + testSeed.String()
	for _, request := range []string{
		"GET /v1/state?ref=a&ref=b HTTP/1.1\r\nHost: n\r\n\r\n",
		"POST /v1/catalog HTTP/1.1\r\nHost: n\r\nContent-Length: 2048\r\n\r\n" + strings.Repeat("x", 2048),
		"GET /v1/seeds/" + testSeed.String() + " HTTP/1.1\r\nHost: n\r\n\r\n",
		"GET " + path + "/haves HTTP/1.1\r\nHost: n\r\n\r\n",
		"GET " + path + "/chunks/3 HTTP/1.1\r\nHost: n\r\n\r\n",
		"POST " + path + "/chunks HTTP/1.1\r\nHost: n\r\nContent-Length: 16\r\n\r\n\xff" + strings.Repeat("\x00", 15),
		"POST " + path + "/peers HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n2a\r\n" + `{"name":"me","address":"10.0.0.1:7951"}    ` + "\r\n0\r\n\r\n",
		"POST " + path + "/peers HTTP/1.1\r\nHost: n\r\nContent-Length: 30\r\n\r\n" + `{"name":"me","address":"none"}`,
		"GET /v1/seeds/none HTTP/1.1\r\nHost: n\r\n\r\n",
		"POST /v1/echo?bytes=5 HTTP/1.1\r\nHost: n\r\nContent-Length: 2\r\n\r\nxx",
		"POST /v1/probe HTTP/1.1\r\nHost: n\r\nContent-Length: 44\r\n\r\n" + `{"nonce":"000102030405060708090a0b0c0d0e0f"}`,
		"GET /v1/held?ref=a HTTP/1.1\r\nHost: n\r\n\r\n",
		"GET /v2/state HTTP/1.1\r\nHost: n\r\n\r\n",
	} {
		f.Add([]byte(request))
	}
	known := []int{http.StatusOK, http.StatusNoContent, http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusConflict, http.StatusServiceUnavailable, http.StatusMovedPermanently, http.StatusTemporaryRedirect}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		ctx, cancel := context.WithCancel(t.Context())
		if cancel(); !strings.HasSuffix(r.URL.Path, "/haves") { // that one lasts until then
			ctx = t.Context()
		}
		r.TLS = &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{{PublicKey: id.Public()}}}
		h := anyHandler{&handler{seed: []byte("seed"), recs: [][]byte{{1}}, served: s}, t}
		w := httptest.NewRecorder()
		NewServer(ServerConfig{Credentials: &trust.Credentials{}, Handlers: handlers(h)}).routes().ServeHTTP(deadlines{w}, r.WithContext(ctx))
		if !slices.Contains(known, w.Code) {
			t.Fatalf("answered %d", w.Code)
		}
	})
}
