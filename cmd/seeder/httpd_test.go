package main

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/control/controltest"
)

// serveHTTPD runs the http listener on l until the test ends.
func serveHTTPD(t *testing.T, cfg config.HTTP, l net.Listener) {
	t.Helper()
	h := newHTTPD(cfg, &controltest.Node{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	h.serve(l)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
}

func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestHTTPOnlyReads: whatever is asked for, by no method but GET and HEAD.
func TestHTTPOnlyReads(t *testing.T) {
	t.Parallel()
	l := listenTCP(t)
	serveHTTPD(t, config.HTTP{Pprof: true}, l)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, path := range []string{"/metrics", "/healthz", "/debug/pprof/", "/debug/pprof/heap"} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "SEEDER"} {
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+l.Addr().String()+path, strings.NewReader("x=1"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			resp.Body.Close()
			want := http.StatusMethodNotAllowed
			if method == "GET" || method == "HEAD" {
				want = http.StatusOK
			}
			if resp.StatusCode != want {
				t.Errorf("%s %s: %s, want %d", method, path, resp.Status, want)
			}
		}
	}
}

// TestHTTPHeadersAreBounded: who sends more header than anybody needs is cut off.
func TestHTTPHeadersAreBounded(t *testing.T) {
	t.Parallel()
	l := listenTCP(t)
	serveHTTPD(t, config.HTTP{}, l)
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 64<<10)+"\r\n\r\n") // ends with the connection
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, "431") {
		t.Errorf("64 KiB of header: %q %v, want 431", line, err)
	}
}

// oneConn is a listener for virtual time: it accepts one end of a pipe.
type oneConn struct {
	conn  chan net.Conn
	ended chan struct{}
}

func (l oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}
func (l oneConn) Close() error   { close(l.ended); return nil }
func (l oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// TestHTTPSlowClients: a connection on which a request takes for ever to arrive is
// closed, wherever the request has got to.
func TestHTTPSlowClients(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sent  string
		limit time.Duration
	}{
		"nothing":  {"", 5 * time.Second},
		"a header": {"GET /metrics HTTP/1.1\r\nX: ", 5 * time.Second},
		"a body":   {"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				l := oneConn{make(chan net.Conn, 1), make(chan struct{})}
				l.conn <- far
				serveHTTPD(t, config.HTTP{}, l)
				began := time.Now()
				go io.Copy(io.Discard, near) // ends with the connection
				_, err := io.WriteString(near, c.sent)
				for err == nil { // a byte now and then
					time.Sleep(time.Second)
					_, err = near.Write([]byte("x"))
				}
				if took := time.Since(began); took > c.limit+time.Second {
					t.Errorf("the connection was open for %s, want %s", took, c.limit)
				}
			})
		})
	}
}

// TestHTTPConnectionsAreBounded: who opens connections and says nothing takes so
// many descriptors and no more.
func TestHTTPConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	h := newHTTPD(config.HTTP{Bind: "127.0.0.1:0"}, &controltest.Node{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	addr, err := h.Open()
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	for range maxHTTPConns + 1 {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	last := conns[maxHTTPConns]
	if _, err := io.WriteString(last, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		_, err := last.Read(make([]byte, 1))
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("one more than %d was answered: %v", maxHTTPConns, err)
	case <-time.After(100 * time.Millisecond):
	}
	conns[0].Close()
	if err := <-answer; err != nil {
		t.Errorf("when another is closed: %v", err)
	}
	for _, c := range conns {
		c.Close()
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}
