package web

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/html"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/show"
	"seeder/p2p/report"
)

// pageHandler serves the status page of c until the test ends.
func pageHandler(t testing.TB, c Cluster) http.Handler {
	t.Helper()
	mux := http.NewServeMux()
	p := newPage(c, nil, slog.New(slog.DiscardHandler))
	p.routes(mux)
	t.Cleanup(p.Close)
	return mux
}

func getPage(t testing.TB, h http.Handler, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", target, nil)
	r.Host = "localhost:7952"
	h.ServeHTTP(w, r)
	return w
}

// TestPageShowsTheCluster: the first view has everything, without a script.
func TestPageShowsTheCluster(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		nodes, images int
		target        string
		want, lacks   []string
		most          int // bytes
	}{
		{nodes: 0, target: "/", want: []string{"Nothing is announced yet", "seeder announce REF", "All quiet: nothing waits"}, most: 12 << 10},
		{nodes: 1, target: "/", want: []string{"Nothing is announced yet", "edge-001 this node", "containerd answers", "1 alive", "none announced", "All quiet: nothing waits"}, most: 12 << 10},
		{nodes: 1, images: 1, target: "/", want: []string{"The image is ready on this node, the only member", "1 of 1"}, most: 12 << 10},
		{nodes: 3, images: 5, target: "/", want: []string{
			"! k3s-dashboard-proxy:v1 failed on edge-003: import: unpack layer 3", "3 of 5 images are ready on every node. Nodes: 1 failed, 2 fetching seeder images k3s-dashboard-proxy:v1", "4 of 5 ready", "version 3, 240 MiB, announced by edge-001, about a minute ago",
			"↓ fetching 78%", "no space left on device", "31 MiB/s in all", "edge-001 56.9 MiB, edge-003 37.9 MiB, here already 3 MiB", "/s 1 s left", "7 times.", "! 2 members do not answer", "10.0.0.3:7951",
		}, lacks: []string{"Show the matrix", "All quiet"}, most: 40 << 10},
		{nodes: 300, images: 40, target: "/", want: []string{
			"0 of 40 images are ready on every node", "297 alive", "2 dead, 1 left", "28 more", "293 of 299", "edge-012 has not answered since", "3 failed, 1 unreachable, 2 dead", "Show the matrix of 299 nodes",
			"edge-003, edge-197, edge-294 k3s-dashboard-proxy:v1 ! failed", "and 37 more ? unreachable speaks protocol 0 to 0", "All members", "edge-005 and 295 more",
		}, lacks: []string{"Hide the matrix"}, most: 288 << 10},
		{nodes: 300, images: 40, target: "/?show=matrix", want: []string{"Hide the matrix", "edge-300"}, lacks: []string{"Show the matrix"}, most: 640 << 10},
		{nodes: 450, images: 250, target: "/?show=matrix&at=31&nodes=401", want: []string{"31–60 of 250", "401–449 of 449", "edge-450"}, most: 640 << 10},
		{nodes: 12, images: 250, target: "/?at=101", want: []string{"101–200 of 250 Before After"}, most: 288 << 10},
	} {
		t.Run(fmt.Sprintf("%d nodes, %d images%s", c.nodes, c.images, c.target), func(t *testing.T) {
			t.Parallel()
			w := getPage(t, pageHandler(t, makeUp(c.nodes, c.images)), c.target)
			if w.Code != http.StatusOK {
				t.Fatal(w.Code, w.Body)
			}
			said := text(document(t, w.Body.String()))
			for _, want := range c.want {
				if !strings.Contains(said, want) {
					t.Errorf("the page does not say %q: %s", want, said[:min(len(said), 4000)])
				}
			}
			for _, lacks := range c.lacks {
				if strings.Contains(said, lacks) {
					t.Errorf("the page says %q", lacks)
				}
			}
			if got := w.Body.Len(); got > c.most {
				t.Errorf("%d bytes, want at most %d", got, c.most)
			}
		})
	}
}

// TestPageWhenContainerdIsAway: the first thing said is what to do something about.
func TestPageWhenContainerdIsAway(t *testing.T) {
	t.Parallel()
	m := makeUp(3, 4)
	m.status.Containerd = report.ContainerdStatus{Address: "/run/x.sock", Reason: "no such socket"}
	said := text(document(t, getPage(t, pageHandler(t, m), "/").Body.String()))
	for _, want := range []string{"! This host waits for containerd: no such socket 3 of 4 images are ready on every node. Nodes: 1 waiting, 1 fetching seeder doctor", "! does not answer"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in %s", want, said)
		}
	}
}

// TestPageWithADeadMember: the page is not green while a host is away, or while this one
// cannot join, though all that is announced is ready on those that are there.
func TestPageWithADeadMember(t *testing.T) {
	t.Parallel()
	m := makeUp(3, 1)
	m.members.Members[2].State, m.members.Members[2].Since = "dead", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	img := &m.images.Images[0]
	img.Ready, img.Away = 2, 1
	img.Nodes[2].State, img.Nodes[2].Away, img.Nodes[2].Reason = report.Unreachable, true, "no answer to gossip"
	m.status.Members = 2
	alone := makeUp(1, 1)
	alone.status.Join = report.JoinStatus{Refused: true, Reason: "join 10.0.0.2: the secrets differ"}
	for _, c := range []struct {
		m    *madeUp
		want []string
	}{
		{m, []string{"! edge-003 has not answered since 2026-01-02 03:04:05 UTC All that is announced is ready on the 2 nodes that are alive. systemctl status seeder # on edge-003; if it will not come back: seeder members forget edge-003", "2 of 3", "1 dead", "edge-003 ! dead 2026-01-02 03:04:05"}},
		{alone, []string{"! This host cannot join the cluster: join 10.0.0.2: the secrets differ", "seeder doctor"}},
	} {
		said := text(document(t, getPage(t, pageHandler(t, c.m), "/").Body.String()))
		for _, want := range c.want {
			if !strings.Contains(said, want) {
				t.Errorf("no %q in %s", want, said[:min(len(said), 1500)])
			}
		}
		if strings.Contains(said, "✓ The image is ready") {
			t.Error("the headline is green")
		}
	}
}

// TestPageMatrix: each cell says its state in words, in the column of its node.
func TestPageMatrix(t *testing.T) {
	t.Parallel()
	m := makeUp(300, 40)
	doc := document(t, getPage(t, pageHandler(t, m), "/?show=matrix").Body.String())
	var matrix *html.Node
	for n := range doc.Descendants() {
		if n.Type == html.ElementNode && attr(n, "class") == "scroll grid matrix" {
			matrix = n
		}
	}
	if matrix == nil {
		t.Fatal("no matrix")
	}
	var table [][]string
	for n := range matrix.Descendants() {
		if n.Type == html.ElementNode && n.Data == "tr" {
			var row []string
			for c := range n.ChildNodes() {
				if c.Type == html.ElementNode {
					row = append(row, text(c))
				}
			}
			table = append(table, row)
		}
	}
	if len(table) != 41 || len(table[0]) != 300 {
		t.Fatalf("%d rows of %d", len(table), len(table[0]))
	}
	for _, img := range m.images.Images {
		i := slices.IndexFunc(table, func(row []string) bool { return row[0] == cli.ShortRef(img.Reference) })
		for _, n := range img.Nodes {
			if j := slices.Index(table[0], n.Name); j < 0 || table[i][j] != show.StateText(n) {
				t.Fatalf("%s on %s: %v, want %s", img.Reference, n.Name, table[i][j], show.StateText(n))
			}
		}
	}
}

// TestPageHostileNames: whatever a member calls itself and its images, it is text,
// stays in its place, and is bounded.
func TestPageHostileNames(t *testing.T) {
	t.Parallel()
	for _, size := range [][2]int{{3, 5}, {60, 40}} {
		for _, target := range []string{"/", "/?show=matrix", "/?show=%22%3E%3Cscript%3E&at=-1&nodes=9999999999999999999", "/?at=%00"} {
			w := getPage(t, pageHandler(t, makeHostile(size[0], size[1])), target)
			doc := document(t, w.Body.String())
			if said := text(doc); !strings.Contains(said, "<script>window.hacked=1</script>") {
				t.Errorf("the name is not shown as it is: %s", said[:2000])
			}
			if got := w.Header().Get("X-Injected"); got != "" {
				t.Errorf("a header from a name: %s", got)
			}
		}
	}
}

// TestPageIsBounded: with names of the longest escapes everywhere, thousands of nodes and
// all different reasons, the answer keeps its bound.
func TestPageIsBounded(t *testing.T) {
	t.Parallel()
	m := makeUp(450, 101)
	wide := strings.Repeat(`"`, 512)
	for i := range m.members.Members {
		ms := &m.members.Members[i]
		ms.Name += wide
		ms.Address, ms.Version, ms.Reason = wide, wide, wide
	}
	for i := range m.images.Images {
		img := &m.images.Images[i]
		img.Reference, img.AnnouncedBy, img.Digest = img.Reference+wide, wide, wide
		for j := range img.Nodes {
			n := &img.Nodes[j]
			n.Name += wide
			switch j % 3 {
			case 0:
				n.State, n.Reason = report.Failed, fmt.Sprint(i, j, wide)
			case 1:
				n.State, n.RateBytesPerSecond, n.Reason = report.Fetching, 0, wide
				n.Sources = slices.Repeat([]report.Source{{Name: wide, Bytes: 1}}, 10)
			}
		}
	}
	w := getPage(t, pageHandler(t, m), "/?show=matrix")
	document(t, w.Body.String())
	t.Logf("%d bytes", w.Body.Len())
}

// TestPageHeaders: nothing but what the page is made of may load, nobody may frame it.
func TestPageHeaders(t *testing.T) {
	t.Parallel()
	h := pageHandler(t, makeUp(3, 4))
	for path, kind := range map[string]string{"/": "text/html; charset=utf-8", "/page.css": "text/css; charset=utf-8", "/page.js": "text/javascript; charset=utf-8", "/icon.svg": "image/svg+xml"} {
		w := getPage(t, h, path)
		for key, want := range map[string]string{
			"Content-Type": kind, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-cache", "Content-Security-Policy": pagePolicy,
		} {
			if got := w.Header().Get(key); w.Code != http.StatusOK || got != want {
				t.Errorf("%s: %d, %s: %q, want %q", path, w.Code, key, got, want)
			}
		}
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("If-None-Match", w.Header().Get("ETag"))
		r.Host = "127.0.0.1:7952"
		again := httptest.NewRecorder()
		h.ServeHTTP(again, r)
		if again.Code != http.StatusNotModified || again.Body.Len() > 0 {
			t.Errorf("%s: %d with the same ETag, %d bytes", path, again.Code, again.Body.Len())
		}
	}
	for host, want := range map[string]string{"localhost:7952": "same-origin", "127.0.0.1:7952": "same-origin", "[::1]:7952": "same-origin", "10.0.0.1:7952": "", "edge-001:7952": "", "": ""} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if got := w.Header().Get("Cross-Origin-Opener-Policy"); got != want {
			t.Errorf("opener policy for host %q: %q, want %q", host, got, want)
		}
	}
	for _, part := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} {
		if !strings.Contains(pagePolicy, part) {
			t.Errorf("the policy lacks %s", part)
		}
	}
	if regexp.MustCompile(`unsafe|\*|http`).MatchString(pagePolicy) {
		t.Error("the policy lets in what it should not")
	}
}

// TestPageHosts: on a loopback address a page from elsewhere cannot have a browser read
// the status under its own name.
func TestPageHosts(t *testing.T) {
	t.Parallel()
	s := NewServer(config.HTTP{Pprof: true}, makeUp(3, 4), nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	t.Cleanup(s.page.Close)
	h := s.handler
	for _, c := range []struct {
		local, host string
		ok          bool
	}{
		{"127.0.0.1", "127.0.0.1:7952", true}, {"127.0.0.1", "localhost:7952", true}, {"127.0.0.1", "LOCALHOST", true}, {"::1", "[::1]:7952", true},
		{"127.0.0.1", "seeder.localhost:7952", true}, {"127.0.0.1", "edge-001:7952", true}, {"127.0.0.1", "localhost.:7952", true},
		{"127.0.0.1", "evil.example:7952", false}, {"::1", "evil.example", false}, {"127.0.0.1", "localhost.evil.example", false}, {"127.0.0.1", "evillocalhost", false}, {"127.0.0.1", "", true},
		{"10.0.0.1", "host1.lan:7952", true},
	} {
		for _, path := range []string{"/", "/page.js", "/metrics", "/healthz", "/readyz", "/debug/pprof/"} {
			r := httptest.NewRequest("GET", path, nil)
			r.Host = c.host
			r = r.WithContext(contextWithLocal(r, c.local))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if ok := w.Code != http.StatusMisdirectedRequest; ok != c.ok || !c.ok && strings.Contains(w.Body.String(), "edge-001") {
				t.Errorf("%s on %s as %q: %d %s", path, c.local, c.host, w.Code, w.Body.String()[:min(100, w.Body.Len())])
			}
		}
	}
}

// TestPageOnlyReads: by no method but GET and HEAD, and nothing beside it.
func TestPageOnlyReads(t *testing.T) {
	t.Parallel()
	h := pageHandler(t, makeUp(1, 0))
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"HEAD", "/", 200}, {"POST", "/", 405}, {"PUT", "/page.js", 405}, {"DELETE", "/", 405}, {"GET", "/x", 404}, {"GET", "/page/page.html", 404}, {"GET", "/page.html", 404}, {"GET", "/../page.js", 307},
	} {
		r := httptest.NewRequest(c.method, "/", strings.NewReader("x=1"))
		r.URL = &url.URL{Path: c.path}
		r.Host = "localhost"
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, w.Code, c.want)
		}
	}
}

// TestPageIsSharedAndAsksNobodyUnseen: however many look at the same time, the members
// are asked once, and not at all while nobody looks.
func TestPageIsSharedAndAsksNobodyUnseen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := makeUp(3, 4)
		m.hold = make(chan struct{})
		p := newPage(m, nil, slog.New(slog.DiscardHandler))
		t.Cleanup(p.Close)
		h := http.NewServeMux()
		p.routes(h)
		var viewers sync.WaitGroup
		for range 50 {
			viewers.Go(func() {
				if w := getPage(t, h, "/"); w.Code != http.StatusOK {
					t.Error(w.Code)
				}
			})
		}
		synctest.Wait()
		close(m.hold)
		viewers.Wait()
		if got := m.asked.Load(); got != 1 {
			t.Errorf("the members were asked %d times for 50 who look, want once", got)
		}
		getPage(t, h, "/")
		if got := m.asked.Load(); got != 1 {
			t.Errorf("asked %d times at the same moment", got)
		}
		time.Sleep(maxLook)
		getPage(t, h, "/")
		if got := m.asked.Load(); got != 2 {
			t.Errorf("asked %d times, want once more for who looks again", got)
		}
		time.Sleep(time.Hour)
		if got := m.asked.Load(); got != 2 {
			t.Errorf("asked %d times in an hour in which nobody looked", got)
		}
		p.looks.mu.Lock()
		defer p.looks.mu.Unlock()
		if p.looks.last != nil {
			t.Error("a matrix that nobody looks at is kept")
		}
	})
}

// TestPageCloses: a look that is being taken ends with the listener, and who waits is
// told.
func TestPageCloses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := makeUp(3, 4)
		m.hold = make(chan struct{}) // nobody answers
		p := newPage(m, nil, slog.New(slog.DiscardHandler))
		mux := http.NewServeMux()
		p.routes(mux)
		code := make(chan int)
		go func() { code <- getPage(t, mux, "/").Code }()
		synctest.Wait()
		p.Close()
		if got := <-code; got != http.StatusServiceUnavailable {
			t.Errorf("%d, want 503", got)
		}
		if got := getPage(t, mux, "/").Code; got != http.StatusServiceUnavailable {
			t.Errorf("%d after the end, want 503", got)
		}
	})
}

func TestPageServedByTheListener(t *testing.T) {
	t.Parallel()
	l := listenTCP(t)
	h := NewServer(config.HTTP{}, makeUp(3, 4), nil, noMetrics(), slog.New(slog.DiscardHandler))
	h.serve(l)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://localhost:" + port + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte("2 of 4 images are ready")) && !bytes.Contains(body, []byte("3 of 4 images are ready")) {
		t.Errorf("%s %v %s", resp.Status, err, body)
	}
}

func TestTimeLeft(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		bytes, rate int64
		want        string
	}{{0, 1, ""}, {1, 10, "1 s left"}, {100, 10, "10 s left"}, {595, 10, "1 min left"}, {6100, 10, "11 min left"}, {72000, 1, "20 h left"}, {1 << 60, 1, ""}} {
		if got := timeLeft(c.bytes, c.rate); got != c.want {
			t.Errorf("%d at %d/s: %q, want %q", c.bytes, c.rate, got, c.want)
		}
	}
}

// FuzzCleanText: whatever a member says becomes one printable line within its bound.
func FuzzCleanText(f *testing.F) {
	for _, s := range hostileText {
		f.Add(s[:min(len(s), 300)], 64)
	}
	f.Fuzz(func(t *testing.T, s string, most int) {
		most = min(max(most, 1), 1000)
		got := cleanText(s, most)
		if n := utf8.RuneCountInString(got); n > most+1 || !utf8.ValidString(got) {
			t.Fatalf("%q: %d characters", got, n)
		}
		if i := strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Fatalf("%q", got[i:])
		}
	})
}

func BenchmarkPage(b *testing.B) {
	for _, target := range []string{"/", "/?show=matrix"} {
		b.Run("300 nodes, 40 images "+target, func(b *testing.B) {
			l := &look{}
			m := makeUp(300, 40)
			l.images, l.members, l.status, l.events = m.images, m.members, m.status, m.events
			q, err := url.Parse(target)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				var out bytes.Buffer
				if err := pageTemplate.ExecuteTemplate(&out, "main", newPageView(l, parsePageQuery(q.Query()), func(img report.ImageState) report.ImageDetail { return m.Describe(b.Context(), img.Reference) })); err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(out.Len()))
			}
		})
	}
}

// TestPageWithABlockedImage: an image that is ready and that the kubelet refuses to start is
// not simply ready.
func TestPageWithABlockedImage(t *testing.T) {
	t.Parallel()
	m := makeUp(3, 1)
	m.images.Images[0].Nodes[1].Blocked = "the kubelet refuses it: rm FILE && systemctl restart k3s-agent"
	said := text(document(t, getPage(t, pageHandler(t, m), "/").Body.String()))
	for _, want := range []string{"! k3s-dashboard:v1 is ready on edge-002, but the kubelet refuses it: rm FILE", "! ready, blocked", "edge-002 k3s-dashboard:v1 ! blocked the kubelet refuses it"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in %s", want, said[:min(len(said), 1800)])
		}
	}
}
