package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/internal/text"
	"seeder/p2p/swarm"
)

func (h *handler) Probe(_ context.Context, _ string, n Nonce) (Answer, error) {
	if n == (Nonce{9}) {
		return Answer{}, &swarm.BusyError{RetryAfter: time.Second}
	}
	return Answer{Transfer: strings.Repeat("é", maxWhyBytes), GossipUDP: n == Nonce{1}}, nil
}

func (h *handler) Recheck(context.Context, digest.Digest, int, string) error { return nil }

func (h *handler) Held(_ context.Context, refs []string) ([]string, error) {
	return append(slices.Clone(refs[:len(refs)/2]), "not asked for"), nil
}

func TestEcho(t *testing.T) {
	t.Parallel()
	c, addr := pair(t, &handler{})
	for _, size := range []struct{ there, back int }{{0, 0}, {EchoBytes, 0}, {0, EchoBytes}, {EchoBytes, EchoBytes}} {
		e := c.Echo(t.Context(), addr, size.there, size.back)
		if e.Reason != nil || e.Trip <= 0 || e.Ahead.Abs() > e.Trip+time.Millisecond {
			t.Errorf("%+v: %+v", size, e)
		}
	}
	for _, bad := range []string{"", "-1", "01", "16385", "x"} {
		if _, err := c.small(t.Context(), http.MethodPost, addr, "/v1/echo?bytes="+bad, nil, 0); err == nil || !strings.Contains(err.Error(), "400") {
			t.Errorf("%q bytes: %v", bad, err)
		}
	}
	if e := c.Echo(t.Context(), addr, EchoBytes+1, 0); e.Reason == nil {
		t.Error("more than the bound was taken")
	}
}

// TestEchoNeedsNoLimit: what tells a lost packet from a link must not wait for a
// limit of this node's own.
func TestEchoNeedsNoLimit(t *testing.T) {
	t.Parallel()
	limited, addr := pair(t, &handler{})
	limited.cfg.Limiter.SetLimits(Limits{UploadBytesPerSec: 1, DownloadBytesPerSec: 1})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 12 { // more than the burst
		if e := limited.Echo(ctx, addr, EchoBytes, EchoBytes); e.Reason != nil {
			t.Fatal(e.Reason)
		}
	}
}

// TestEchoOfClock: a clock that is off shows by how much.
func TestEchoOfClock(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	c, addr := other(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(headerClock, r.URL.Query().Get("bytes"))
		switch r.URL.Query().Get("bytes") {
		case "1":
			w.Header().Set(headerClock, strconv.FormatInt(time.Now().Add(day).UnixNano(), 10))
		case "2":
			w.Header().Set(headerClock, "yesterday")
		case "3":
			w.Header().Set(headerClock, "-5000000000")
		}
		w.Write([]byte("x"))
	})
	if e := c.Echo(t.Context(), addr, 0, 1); e.Reason != nil || (e.Ahead-day).Abs() > time.Second {
		t.Errorf("%+v", e)
	}
	for _, bytes := range []int{2, 3} {
		if e := c.Echo(t.Context(), addr, 0, bytes); e.Reason == nil || !strings.Contains(e.Reason.Error(), "want a time") {
			t.Errorf("%+v", e)
		}
	}
}

// other is a node that answers something else, with the right secret.
func other(t *testing.T, answer http.HandlerFunc) (c *Client, addr string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", credentials(t, secret).ServerConfig(protocolHTTP))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: answer}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		<-ended
	})
	c = NewClient(ClientConfig{Credentials: credentials(t, secret)})
	t.Cleanup(c.Close)
	return c, l.Addr().String()
}

// TestSmallHandshake: the first packet of an echo fits any network, so that lost
// large packets do not look like a closed port.
func TestSmallHandshake(t *testing.T) {
	t.Parallel()
	c, addr := pair(t, &handler{})
	first := 0
	dial := c.fresh.Transport.(*http.Transport).DialContext
	c.fresh.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return &measured{Conn: conn, first: &first}, err
	}
	if e := c.Echo(t.Context(), addr, 0, 0); e.Reason != nil || first == 0 || first > 600 {
		t.Errorf("a first packet of %d bytes, %v", first, e.Reason)
	}
}

// measured notes how much is written first.
type measured struct {
	net.Conn
	first *int
}

func (m *measured) Write(p []byte) (int, error) {
	if *m.first == 0 {
		*m.first = len(p)
	}
	return m.Conn.Write(p)
}

func TestAskBack(t *testing.T) {
	t.Parallel()
	c, addr := pair(t, &handler{})
	a, err := c.AskBack(t.Context(), addr, Nonce{1})
	if err != nil || !a.GossipUDP || a.GossipUDPLarge {
		t.Fatalf("%+v %v", a, err)
	}
	if n := len(a.Transfer); n > maxWhyBytes || n < maxWhyBytes-2*len("…") {
		t.Errorf("a reason of %d bytes", len(a.Transfer))
	}
	var busy *swarm.BusyError
	if _, err := c.AskBack(t.Context(), addr, Nonce{9}); !errors.As(err, &busy) || busy.RetryAfter != time.Second {
		t.Errorf("a busy node: %v", err)
	}
	for _, bad := range []string{"", "{}", `{"nonce":"zz"}`, `{"nonce":"` + strings.Repeat("z", 32) + `"}`, strings.Repeat(" ", 300) + "{}"} {
		if _, err := c.small(t.Context(), http.MethodPost, addr, "/v1/probe", []byte(bad), 1000); err == nil || !strings.Contains(err.Error(), "400") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestHeld(t *testing.T) {
	t.Parallel()
	c, addr := pair(t, &handler{})
	got, err := c.Held(t.Context(), addr, []string{"a", "b"})
	if err != nil || !slices.Equal(got, []string{"a"}) {
		t.Errorf("%q %v", got, err)
	}
	if got, err := c.Held(t.Context(), addr, make([]string, 3*MaxHeldRefs)); err != nil {
		t.Errorf("more than fit one question: %q %v", got, err)
	}
	many := "/v1/held?" + strings.Repeat("ref=a&", MaxHeldRefs+1)
	if _, err := c.small(t.Context(), http.MethodGet, addr, many, nil, 1000); err == nil || !strings.Contains(err.Error(), "400") {
		t.Errorf("too many: %v", err)
	}
}

// FuzzDecodeProbe: what doctor's questions and answers say is bounded and prints.
func FuzzDecodeProbe(f *testing.F) {
	f.Add([]byte(`{"nonce":"000102030405060708090a0b0c0d0e0f"}`), "5")
	f.Add([]byte(`{"transfer":"\u001b[2J","gossip_udp":true}`), "-1")
	f.Add([]byte(`{"refs":["a","b"]}`), "16384")
	f.Fuzz(func(t *testing.T, b []byte, n string) {
		_, _ = decodeProbe(b)
		if a, err := decodeAnswer(b); err == nil {
			if why := a.Transfer; len(why) > maxWhyBytes || !text.Valid(why, maxWhyBytes) {
				t.Fatalf("accepted %q", why)
			}
		}
		if refs, err := decodeHeld(b, []string{"a"}); err == nil && len(refs) > 1 {
			t.Fatalf("accepted %q", refs)
		}
		if got, err := parseEcho(n); err == nil && (got < 0 || got > EchoBytes) {
			t.Fatalf("accepted %q", n)
		}
	})
}
