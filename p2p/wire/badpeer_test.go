package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"seeder/p2p/catalog"
	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// call is a request of a client, for tables.
type call func(ctx context.Context, c *Client) error

func callState(ctx context.Context, c *Client) error {
	_, err := readState(ctx, c, pipeAddr, nil)
	return err
}

func readState(ctx context.Context, c *Client, addr string, refs []string) (b []byte, err error) {
	err = c.State(ctx, addr, refs, nil, MaxStateBytes, func(r io.Reader) (err error) { b, err = io.ReadAll(r); return err })
	return b, err
}

func callCatalog(ctx context.Context, c *Client) error {
	_, err := c.Catalog(ctx, pipeAddr, catalog.Buckets{})
	return err
}

func callSeed(ctx context.Context, c *Client) error {
	_, err := c.Seed(ctx, pipeAddr, testSeed)
	return err
}

func callRegister(ctx context.Context, c *Client) error {
	_, err := c.Register(ctx, pipeAddr, testSeed, swarm.Peer{Name: "me", Address: "10.0.0.1:7951"})
	return err
}

func callChunk(ctx context.Context, c *Client) error {
	_, err := c.Chunk(ctx, swarm.Peer{Address: pipeAddr}, testSeed, 3, upTo(1000))
	return err
}

func callNext(ctx context.Context, c *Client) error {
	want := chunk.NewBitmap(100)
	want.Set(3)
	_, err := c.Next(ctx, swarm.Peer{Address: pipeAddr}, testSeed, want, upTo(1000))
	return err
}

func callHaves(ctx context.Context, c *Client) error {
	return c.FollowHaves(ctx, swarm.Peer{Address: pipeAddr}, testSeed, 100, func(swarm.Haves) {})
}

func callProbe(ctx context.Context, c *Client) error { return c.Probe(ctx, pipeAddr) }

const ok = "HTTP/1.1 200 OK\r\n"

// TestSilentPeer: whatever a peer stops at, every request ends by itself, and
// soon (virtual time).
func TestSilentPeer(t *testing.T) {
	t.Parallel()
	chunk := ok + "Seeder-Chunk: 3\r\nSeeder-Encoding: raw\r\nContent-Length: 1000\r\n\r\nsome"
	haves := ok + "\r\n" + string(appendMessage(nil, haveMap, make([]byte, 13)))
	for _, tc := range []struct {
		name   string
		answer string
		call   call
		within time.Duration
	}{
		{"no answer to state", "", callState, answerTimeout},
		{"no answer to a seed index", "", callSeed, answerTimeout},
		{"no answer to have stream", "", callHaves, answerTimeout},
		{"no answer to a probe", "", callProbe, answerTimeout},
		{"no answer to chunk", "", callChunk, chunkTimeout},
		{"half a header", ok + "Seeder-Chu", callChunk, chunkTimeout},
		{"half a chunk", chunk, callChunk, maxSilence},
		{"half a choice", chunk, callNext, maxSilence},
		{"half a state", ok + "Content-Length: 10\r\n\r\n123", callState, maxSilence},
		{"half a catalog", ok + "\r\nabc", callCatalog, maxSilence},
		{"a have stream that stops", haves, callHaves, maxSilence},
		{"half a message", haves + "\x02", callHaves, maxSilence},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := scripted(t, func(w io.Writer, wait func()) {
				_, _ = io.WriteString(w, tc.answer)
				wait()
			})
			began := time.Now()
			err := tc.call(t.Context(), c)
			if err == nil {
				t.Errorf("%s: no error", tc.name)
			}
			if took := time.Since(began); took > tc.within {
				t.Errorf("%s: took %s, want at most %s (%v)", tc.name, took, tc.within, err)
			}
		})
	}
}

// TestDrippingPeer: a peer that sends a byte now and then holds nobody forever.
func TestDrippingPeer(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]call{"catalog": callCatalog, "have stream": callHaves} {
		synctest.Test(t, func(t *testing.T) {
			c := scripted(t, func(w io.Writer, _ func()) {
				_, _ = io.WriteString(w, ok+"\r\n\x01\x0d")
				for {
					if _, err := w.Write([]byte{0}); err != nil {
						return
					}
					time.Sleep(10 * time.Second)
				}
			})
			began := time.Now()
			err := call(t.Context(), c)
			if took := time.Since(began); err == nil || took > smallTimeout+10*time.Second { // closing TLS may take 5 s
				t.Errorf("%s: %v after %s, want an error within %s", name, err, took, smallTimeout)
			}
		})
	}
}

// TestSilentHandshake: a host that accepts and says nothing is given up.
func TestSilentHandshake(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]call{"state": callState, "chunk": callChunk, "probe": callProbe} {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			defer far.Close()
			go io.Copy(io.Discard, far)
			c := NewClient(ClientConfig{
				Credentials: credentials(t, secret),
				DialContext: func(context.Context, string, string) (net.Conn, error) { return near, nil },
			})
			began := time.Now()
			err := call(t.Context(), c)
			if took := time.Since(began); err == nil || took > dialTimeout {
				t.Errorf("%s: %v after %s, want an error within %s", name, err, took, dialTimeout)
			}
		})
	}
}

// TestWrongAnswers: what a peer must not say is an error, and never more memory
// than the bounds.
func TestWrongAnswers(t *testing.T) {
	t.Parallel()
	message := func(b []byte) string { return ok + "\r\n" + string(b) }
	body := func(s string) string { return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", ok, len(s), s) }
	frame := func(header string) string { return ok + header + "\r\n" + strings.Repeat("x", 10) }
	peers := `{"peers":[` + strings.TrimSuffix(strings.Repeat(`{"name":"a","address":"10.0.0.1:1"},`, maxPeers+1), ",") + `]}`
	fullMap := appendMessage(nil, haveMap, make([]byte, 13))
	for _, tc := range []struct {
		name, answer string
		call         call
		want         string
	}{
		{"no HTTP", "hello\r\n\r\n", callState, "malformed"},
		{"another status", "HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n", callState, "418"},
		{"a redirect", "HTTP/1.1 302 Found\r\nLocation: https://elsewhere:1/\r\nContent-Length: 0\r\n\r\n", callState, "302"},
		{"an endless header", ok + "A: " + strings.Repeat("a", 1<<20), callState, "header"},
		{"a state too long", ok + "Content-Length: 16777217\r\n\r\n", callState, "at most 16777216"},
		{"a state with no end", ok + "\r\n" + strings.Repeat("x", MaxStateBytes+1), callState, "more than 16777216"},
		{"a state cut off", ok + "Content-Length: 10\r\n\r\n123", callState, "EOF"},
		{"a seed index too long", ok + "Content-Length: 8388609\r\n\r\n", callSeed, "at most 8388608"},
		{"another seed index", body("no"), callSeed, "other bytes"},
		{"records cut off", body("\x7fabc"), callCatalog, "cut off"},
		{"a record too long", body(string(binary.AppendUvarint(nil, catalog.MaxRecordBytes+1)) + strings.Repeat("x", 9000)), callCatalog, "too long"},
		{"too many peers", body(peers), callRegister, "at most 32"},
		{"peers without end", ok + "\r\n" + strings.Repeat(" ", maxPeersBytes+1), callRegister, "more than 65536"},
		{"a peer without an address", body(`{"peers":[{"name":"a"}]}`), callRegister, "address"},
		{"another chunk", frame("Seeder-Chunk: 4\r\nSeeder-Encoding: raw\r\nContent-Length: 10\r\n"), callChunk, "chunk 4 came"},
		{"a chunk not asked for", frame("Seeder-Chunk: 4\r\nSeeder-Encoding: raw\r\nContent-Length: 10\r\n"), callNext, "got chunk 4, which was not requested"},
		{"no chunk number", frame("Seeder-Encoding: raw\r\nContent-Length: 10\r\n"), callNext, "invalid chunk number"},
		{"a chunk number beyond all", frame("Seeder-Chunk: 65536\r\nSeeder-Encoding: raw\r\nContent-Length: 10\r\n"), callNext, "invalid chunk number"},
		{"an unknown encoding", frame("Seeder-Chunk: 3\r\nSeeder-Encoding: br\r\nContent-Length: 10\r\n"), callChunk, "br"},
		{"a frame without a length", frame("Seeder-Chunk: 3\r\nSeeder-Encoding: raw\r\n"), callChunk, "frame of -1 bytes"},
		{"a frame too long", frame("Seeder-Chunk: 3\r\nSeeder-Encoding: raw\r\nContent-Length: 1001\r\n"), callChunk, "longer than the chunk"},
		{"a frame cut off", frame("Seeder-Chunk: 3\r\nSeeder-Encoding: raw\r\nContent-Length: 11\r\n"), callChunk, "EOF"},
		{"a have stream without a map", message(appendMessage(nil, haveNew, []byte{1})), callHaves, "begin with the map"},
		{"a map of another length", message(appendMessage(nil, haveMap, make([]byte, 12))), callHaves, "12 bytes"},
		{"a message too long", message(append(fullMap, haveNew, 0xff, 0xff, 0xff, 0xff, 0x0f)), callHaves, "at most"},
		{"a chunk number beyond the last", message(append(fullMap, haveNew, 1, 100)), callHaves, "wrong chunk number"},
		{"a length without end", message(append(fullMap, haveNew, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)), callHaves, "overflow"},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := scripted(t, func(w io.Writer, _ func()) { _, _ = io.WriteString(w, tc.answer) })
			err := tc.call(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: got %v, want an error with %q", tc.name, err, tc.want)
			}
		})
	}
}

// TestWrongRequests: the server refuses what no client of ours sends.
func TestWrongRequests(t *testing.T) {
	t.Parallel()
	_, addr := pair(t, &handler{served: &served{n: 100}})
	tr := &http.Transport{TLSClientConfig: credentials(t, secret).ClientConfig(protocolHTTP)}
	defer tr.CloseIdleConnections()
	swarms := "/v1/swarms/" + testSeed.String()
	for _, tc := range []struct {
		name, method, path string
		body               []byte
		want               int
	}{
		{"unknown path", "GET", "/v2/state", nil, 404},
		{"another method", "DELETE", "/v1/state", nil, 405},
		{"no digest", "GET", "/v1/seeds/abc", nil, 400},
		{"another hash", "GET", "/v1/seeds/sha512:" + strings.Repeat("a", 128), nil, 400},
		{"a path upwards", "GET", "/v1/seeds/..%2f..%2fetc", nil, 400},
		{"no digest of a swarm", "GET", "/v1/swarms/x/haves", nil, 400},
		{"unknown swarm", "GET", "/v1/swarms/sha256:" + strings.Repeat("a", 64) + "/haves", nil, 404},
		{"no number", "GET", swarms + "/chunks/x", nil, 400},
		{"a number in a long form", "GET", swarms + "/chunks/01", nil, 400},
		{"a negative number", "GET", swarms + "/chunks/-1", nil, 400},
		{"a number beyond all", "GET", swarms + "/chunks/65536", nil, 400},
		{"a map too short", "POST", swarms + "/chunks", make([]byte, 8), 400},
		{"a map too long", "POST", swarms + "/chunks", make([]byte, chunk.MaxChunks/8+1), 400},
		{"no JSON", "POST", swarms + "/peers", []byte("x"), 400},
		{"a long registration", "POST", swarms + "/peers", bytes.Repeat([]byte(" "), maxPeersBytes+1), 400},
		{"a short summary", "POST", "/v1/catalog", make([]byte, catalog.BucketsBytes-1), 400},
		{"a long summary", "POST", "/v1/catalog", make([]byte, catalog.BucketsBytes+1), 400},
		{"a long header", "GET", "/v1/state?ref=" + strings.Repeat("a", 2*maxHeaderBytes), nil, 431},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tc.method, "https://"+addr+tc.path, bytes.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != tc.want {
			t.Errorf("%s: status %d, want %d", tc.name, resp.StatusCode, tc.want)
		}
	}
}

// TestSlowClients: a client that does not get on loses its connection, wherever
// it stops (virtual time).
func TestSlowClients(t *testing.T) {
	t.Parallel()
	post := "POST /v1/catalog HTTP/1.1\r\nHost: n\r\nContent-Length: 2048\r\n\r\n"
	for _, tc := range []struct {
		name   string
		sends  string
		drips  bool
		within time.Duration
	}{
		{"says nothing", "", false, headerTimeout},
		{"drips a header", "GET / HTTP/1.1\r\nA: ", true, headerTimeout},
		{"stops in a body", post, false, bodyTimeout},
		{"drips a body", post, true, bodyTimeout},
		{"idles", "HEAD / HTTP/1.1\r\nHost: n\r\n\r\n", false, idleTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, p := pipePair(t, &handler{}, Limits{}, Limits{})
			nc, err := p.dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			tc2 := tls.Client(nc, credentials(t, secret).ClientConfig(protocolHTTP))
			began := time.Now()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = io.Copy(io.Discard, tc2)
				nc.Close()
			}()
			_, _ = io.WriteString(tc2, tc.sends)
			for tc.drips {
				if _, err := tc2.Write([]byte("a")); err != nil {
					break
				}
				time.Sleep(time.Second)
			}
			<-ended
			// net/http lingers half a second so that an answer is not lost.
			if took := time.Since(began); took > tc.within+2*time.Second {
				t.Errorf("%s: kept for %s, want %s", tc.name, took, tc.within)
			}
		})
	}
}

// TestNoHandshake: a connection without a handshake ends.
func TestNoHandshake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, p := pipePair(t, &handler{}, Limits{}, Limits{})
		nc, err := p.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, _ = io.Copy(io.Discard, nc)
		if took := time.Since(began); took > headerTimeout {
			t.Errorf("kept for %s, want %s", took, headerTimeout)
		}
		nc.Close()
	})
}

// TestDeafClient: a peer that asks for a chunk and does not read it gives the
// upload slot back.
func TestDeafClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &served{n: 100, chunk: make([]byte, chunk.MaxBytes)}
		_, p := pipePair(t, &handler{served: s}, Limits{}, Limits{})
		nc, err := p.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		tc := tls.Client(nc, credentials(t, secret).ClientConfig(protocolHTTP))
		if _, err := io.WriteString(tc, "GET /v1/swarms/"+testSeed.String()+"/chunks/1 HTTP/1.1\r\nHost: n\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(tc, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		const patience = writeStall + 6*time.Second // crypto/tls gives its last word 5 s
		time.Sleep(patience)
		if s.done.Load() != 1 {
			t.Errorf("the slot is still taken after %s", patience)
		}
	})
}

// TestSilentConnections: connections that send nothing keep nobody out, neither
// 200 of the same host nor more than a host may have of another one.
func TestSilentConnections(t *testing.T) {
	t.Parallel()
	for host, n := range map[string]int{"127.0.0.1": 200, "127.0.0.2": maxConnsPerHost + 20} {
		c, addr := pair(t, &handler{})
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}
		for range n {
			nc, err := dialer.DialContext(t.Context(), "tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if _, err := readState(ctx, c, addr, nil); err != nil {
			t.Errorf("behind %d silent connections of %s: %v", n, host, err)
		}
		cancel()
	}
}

// TestConnectionBounds: beyond the bounds connections are closed, and room comes
// back with each that ends.
func TestConnectionBounds(t *testing.T) {
	t.Parallel()
	l := newGate(nil, &ServerConfig{Credentials: credentials(t, secret)}, &connSet{})
	open := map[string]*conn{}
	enter := func(host string) (n int) {
		for {
			c := newConn(nil, unlimited, nil, nil, nil)
			if !l.enter(host, c) {
				return n
			}
			n++
			open[host] = c
		}
	}
	if n := enter("a"); n != maxConnsPerHost {
		t.Errorf("one host got %d connections, want %d", n, maxConnsPerHost)
	}
	open["a"].closed()
	if n := enter("a"); n != 1 {
		t.Errorf("%d connections after one has ended, want 1", n)
	}
	total := maxConnsPerHost
	for _, host := range []string{"b", "c", "d", "e", "f"} {
		total += enter(host)
	}
	if total != maxConns || enter("g") != 0 {
		t.Errorf("%d connections in all, want %d", total, maxConns)
	}
	for range maxConnsPerHost {
		l.leave("b")
	}
	if _, ok := l.perHost["b"]; ok {
		t.Error("a host without connections is remembered")
	}
}

// TestShortPayload: a chunk that turns out shorter than promised breaks the
// answer instead of padding it.
func TestShortPayload(t *testing.T) {
	t.Parallel()
	s := &served{n: 100, chunk: make([]byte, 1000), short: true}
	c, addr := pair(t, &handler{served: s})
	_, err := c.Chunk(t.Context(), swarm.Peer{Address: addr}, testSeed, 3, upTo(4000))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want an unexpected end", err)
	}
}

// TestClosesAfterEveryReply: a peer that keeps no connection alive costs a
// handshake for each chunk, and no chunk.
func TestClosesAfterEveryReply(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := scripted(t, func(w io.Writer, _ func()) {
			_, _ = io.WriteString(w, ok+"Seeder-Chunk: 3\r\nSeeder-Encoding: raw\r\nContent-Length: 4\r\n\r\nsome")
		})
		for range 20 {
			reply, err := c.Chunk(t.Context(), swarm.Peer{Address: pipeAddr}, testSeed, 3, upTo(1000))
			if err != nil || string(reply.Payload) != "some" {
				t.Fatalf("%q %v", reply.Payload, err)
			}
		}
	})
}
