package web

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/control/controltest"
	"seeder/p2p/report"
	"seeder/store"
)

// serveHTTPD runs the http listener on l until the test ends.
func serveHTTPD(t *testing.T, cfg config.HTTP, l net.Listener) {
	t.Helper()
	h := NewServer(cfg, &controltest.Node{}, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
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

// TestHTTPSlowClients: a connection on which a request takes forever to arrive is
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
	h := NewServer(config.HTTP{Bind: "127.0.0.1:0"}, &controltest.Node{}, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
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

func TestHealthAndMetrics(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{}
	reg := prometheus.NewRegistry()
	cache := func() (int64, int64) { return 7, 9 }
	reg.MustRegister(NewGauges(fakeGauges{f}, func(context.Context) []store.Disk {
		return []store.Disk{{Dir: "/data", FreeBytes: 7, ReserveBytes: 5}}
	}, cache, func() bool { return true }))
	h := NewServer(config.HTTP{Bind: "127.0.0.1:0", Pprof: true}, f, nil, reg, slog.New(slog.DiscardHandler))
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil))
		return w.Code, w.Body.String()
	}
	if code, _ := get("/debug/pprof/goroutine"); code != http.StatusOK {
		t.Errorf("profiles that were asked for: %d", code)
	}
	h.handler = NewServer(config.HTTP{}, f, nil, reg, slog.New(slog.DiscardHandler)).handler
	if code, _ := get("/debug/pprof/goroutine"); code != http.StatusNotFound {
		t.Errorf("profiles that nobody asked for: %d", code)
	}
	if code, _ := get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d", code)
	}
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || body != "this host waits for containerd: no such socket\nthis host cannot join the cluster: the secrets differ\n" {
		t.Errorf("/readyz: %d %s", code, body)
	}
	_, body := get("/metrics")
	clitest.WantAll(t, body, `seeder_members{state="alive"} 1`, `seeder_members{state="dead"} 1`, `seeder_members{state="left"} 0`,
		`seeder_images{state="ready"} 1`, `seeder_images{state="waiting"} 2`, `seeder_images{state="failed"} 0`, "seeder_containerd_up 0",
		"seeder_unconverged_since_timestamp_seconds 1000.5", "seeder_last_announcement_timestamp_seconds 0", "seeder_secret_changed 1",
		`seeder_disk_free_bytes{dir="/data"} 7`, `seeder_disk_reserve_bytes{dir="/data"} 5`, `seeder_build_info{goversion="`,
		`seeder_image_behind{image="app:v1",state="failed"} 1`, `seeder_image_behind{image="`+longRef+`2",state="waiting"} 1`)
}

// longRef begins references that differ behind what the page shows of one.
var longRef = "registry.example.com/" + strings.Repeat("a", 2*maxReference) + ":v"

// fakeGauges adds what only the gauges ask for.
type fakeGauges struct{ *controltest.Node }

func (fakeGauges) Counts() report.Counts {
	return report.Counts{
		Images:           map[report.State]int{report.Ready: 1, report.Waiting: 2, report.Fetching: 0, report.Importing: 0, report.Failed: 0, report.Excluded: 0},
		UnconvergedSince: time.UnixMilli(1000500),
		Behind: []report.Behind{{Reference: "docker.io/library/app:v1", State: report.Failed},
			{Reference: longRef + "1", State: report.Waiting}, {Reference: longRef + "2", State: report.Waiting}},
	}
}

func TestHTTPPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := NewServer(config.HTTP{Bind: l.Addr().String()}, &controltest.Node{}, nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	_, err = h.Open()
	if err == nil {
		t.Fatal("no error")
	}
	clitest.WantAll(t, err.Error(), "http.bind "+l.Addr().String(), "in use", "set http.bind")
}
