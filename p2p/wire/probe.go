package wire

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"seeder/internal/text"
)

// What doctor asks. None of it makes a node send more than it would send to the
// asker anyway, nor to anybody else: an echo is at most EchoBytes on the asker's
// own connection, and a probe connects back to the addresses that gossip knows of
// the node whose id the asker has proved.
const (
	// EchoBytes is the most that an echo carries in each direction: at least one
	// full packet of 9,000 bytes and ten of 1,500 in one go.
	EchoBytes = 16 << 10

	maxProbeBytes  = 256
	maxAnswerBytes = 4 << 10
	maxWhyBytes    = 300
	// MaxHeldRefs bounds one question for who holds what.
	MaxHeldRefs     = 64
	maxHeldBytes    = 64 << 10
	maxRefBytes     = 512
	headerClock     = "Seeder-Clock"
	maxClockSeconds = 1 << 38 // some 8,000 years
)

// Nonce names a probe, see gossip.Nonce.
type Nonce = [16]byte

// Answer is what a node found when it connected back to who asked: why not, empty
// where it could.
type Answer struct {
	Transfer string `json:"transfer"` // TCP and TLS, with an answer
	// Whether packets of the probe had come, in both sizes.
	GossipUDP      bool `json:"gossip_udp"`
	GossipUDPLarge bool `json:"gossip_udp_large"`
}

type probeJSON struct {
	Nonce string `json:"nonce"` // hexadecimal
}

// decodeProbe reads a request.
func decodeProbe(b []byte) (n Nonce, err error) {
	var in probeJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return n, fmt.Errorf("probe: %w", err)
	}
	if len(in.Nonce) != 2*len(n) {
		return n, fmt.Errorf("probe: a nonce of %d characters, want %d", len(in.Nonce), 2*len(n))
	}
	if _, err := hex.Decode(n[:], []byte(in.Nonce)); err != nil {
		return n, fmt.Errorf("probe: %w", err)
	}
	return n, nil
}

// decodeAnswer reads the answer to a probe.
func decodeAnswer(b []byte) (Answer, error) {
	var a Answer
	if err := json.Unmarshal(b, &a); err != nil {
		return Answer{}, fmt.Errorf("answer to a probe: %w", err)
	}
	a.Transfer = text.Clean(a.Transfer, maxWhyBytes-len("…"))
	return a, nil
}

type heldJSON struct {
	Refs []string `json:"refs"`
}

// decodeHeld reads the answer of /v1/held: those of asked that it has.
func decodeHeld(b []byte, asked []string) ([]string, error) {
	var in heldJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, fmt.Errorf("held references: %w", err)
	}
	if len(in.Refs) > MaxHeldRefs {
		return nil, fmt.Errorf("%d held references, at most %d", len(in.Refs), MaxHeldRefs)
	}
	has := map[string]bool{}
	for _, ref := range in.Refs {
		has[ref] = true
	}
	var out []string
	for _, ref := range asked {
		if has[ref] {
			out = append(out, ref)
		}
	}
	return out, nil
}

// parseEcho reads how many bytes are wanted.
func parseEcho(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > EchoBytes || strconv.Itoa(n) != s {
		return 0, fmt.Errorf("invalid number of bytes %q: want at most %d", s, EchoBytes)
	}
	return n, nil
}

func (s *Server) echo(w http.ResponseWriter, r *http.Request) {
	n, err := parseEcho(r.URL.Query().Get("bytes"))
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", errBadRequest, err))
		return
	}
	if _, err := body(w, r, EchoBytes); err != nil {
		s.refuse(w, r, err)
		return
	}
	w.Header().Set(headerClock, strconv.FormatInt(time.Now().UnixNano(), 10))
	s.send(w, r, make([]byte, n), nil)
}

func (s *Server) probe(w http.ResponseWriter, r *http.Request) {
	in, err := body(w, r, maxProbeBytes)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	nonce, err := decodeProbe(in)
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", errBadRequest, err))
		return
	}
	from, err := peerOf(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	a, err := s.cfg.Handlers.Prober.Probe(r.Context(), from, nonce)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	a.Transfer = text.Clean(a.Transfer, maxWhyBytes-len("…"))
	b, err := json.Marshal(a)
	s.send(w, r, b, err)
}

func (s *Server) held(w http.ResponseWriter, r *http.Request) {
	refs := r.URL.Query()["ref"]
	if len(refs) > MaxHeldRefs {
		s.refuse(w, r, fmt.Errorf("%w: %d references, at most %d", errBadRequest, len(refs), MaxHeldRefs))
		return
	}
	held, err := s.cfg.Handlers.Prober.Held(r.Context(), refs)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	b, err := json.Marshal(heldJSON{Refs: held})
	s.send(w, r, b, err)
}

// Echoed is what an echo shows.
type Echoed struct {
	Trip   time.Duration // there and back, without the handshakes
	Ahead  time.Duration // how far the other clock is ahead of ours, half a trip more or less
	Reason error         // why it did not answer
}

// Echo sends so many bytes to a node over a connection of its own and has as many
// sent back, up to EchoBytes each. The connection waits for no limit of this node.
func (c *Client) Echo(ctx context.Context, addr string, there, back int) Echoed {
	var wrote atomic.Int64 // when the request was out, in nanoseconds after began
	began := time.Now()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaders: func() { wrote.Store(int64(time.Since(began))) },
	})
	resp, err := c.do(ctx, c.fresh, http.MethodPost, addr, "/v1/echo?bytes="+strconv.Itoa(back), make([]byte, there))
	if err != nil {
		return Echoed{Reason: err}
	}
	defer resp.Body.Close()
	out := Echoed{Trip: time.Since(began) - time.Duration(wrote.Load())}
	middle := began.Add(time.Duration(wrote.Load()) + out.Trip/2)
	ns, err := strconv.ParseInt(resp.Header.Get(headerClock), 10, 64)
	if err != nil {
		return Echoed{Reason: fmt.Errorf("invalid %s %q: want a time", headerClock, resp.Header.Get(headerClock))}
	}
	if sec := ns / int64(time.Second); sec < 0 || sec > maxClockSeconds {
		return Echoed{Reason: fmt.Errorf("invalid %s %d: want a time", headerClock, ns)}
	}
	out.Ahead = time.Unix(0, ns).Sub(middle)
	n, err := io.Copy(io.Discard, io.LimitReader(resp.Body, EchoBytes+1))
	if err == nil && n != int64(back) {
		err = fmt.Errorf("got %d bytes, want %d", n, back)
	}
	out.Reason = err
	return out
}

// AskBack asks a node to connect back to this one and say what it saw.
func (c *Client) AskBack(ctx context.Context, addr string, n Nonce) (Answer, error) {
	b, err := json.Marshal(probeJSON{Nonce: hex.EncodeToString(n[:])})
	if err != nil {
		return Answer{}, err
	}
	out, err := c.smallBy(ctx, c.fresh, http.MethodPost, addr, "/v1/probe", b, maxAnswerBytes)
	if err != nil {
		return Answer{}, err
	}
	return decodeAnswer(out)
}

// Held asks a node which of these references its store has, no matter who announced
// them or nobody.
func (c *Client) Held(ctx context.Context, addr string, refs []string) ([]string, error) {
	q := url.Values{}
	size := 0
	for _, ref := range refs[:min(len(refs), MaxHeldRefs)] {
		if size += len(ref); len(ref) <= maxRefBytes && size <= maxQueryBytes/2 {
			q.Add("ref", ref)
		}
	}
	b, err := c.small(ctx, http.MethodGet, addr, "/v1/held?"+q.Encode(), nil, maxHeldBytes)
	if err != nil {
		return nil, err
	}
	return decodeHeld(b, refs)
}
