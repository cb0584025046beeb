package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"seeder/p2p/report"
)

// page is the status page of the http listener:
//
//	GET /            HTML, complete without JavaScript
//	GET /page.css | /page.js | /icon.svg
//
// Parameters of /: show=matrix (every node against every image) and at=N (images from
// the N-th on) and nodes=N (nodes from the N-th on). The script asks for the same
// address again, with the ETag that it has, and puts what differs into place, so that
// one template alone says what is shown and escapes it.
//
// Everything shown comes from any holder of the cluster's secret: it is cut to length,
// freed of what turns text about, and escaped, and the policy of the answer lets no
// script run but page.js.
type page struct {
	looks   *looks
	details *details
	node    string
	log     *slog.Logger
}

//go:embed page/page.html
var pageHTML string

//go:embed page/page.css
var pageCSS []byte

//go:embed page/page.js
var pageJS []byte

//go:embed page/icon.svg
var pageIcon []byte

// The templates are of this program, so they parse.
var pageTemplate = template.Must(template.New("").Parse(pageHTML))

// pageVersion changes with what the script has to fit to.
var pageVersion = tagOf([]byte(pageHTML), pageCSS, pageJS, pageIcon)

// maxPageBytes bounds an answer, whatever members call themselves; a thirtieth of it is
// usual with 300 nodes, a sixth with their matrix.
const maxPageBytes = 4 << 20

func newPage(c Cluster, pods Pods, log *slog.Logger) *page {
	return &page{looks: newLooks(c, pods), details: &details{cluster: c}, node: c.Status(context.Background()).Node, log: log}
}

// Close ends what is being asked.
func (p *page) Close() { p.looks.close() }

// routes adds the page to mux.
func (p *page) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", p.guard(p.serve))
	for _, f := range []struct {
		name, kind string
		body       []byte
	}{
		{"page.css", "text/css; charset=utf-8", pageCSS},
		{"page.js", "text/javascript; charset=utf-8", pageJS},
		{"icon.svg", "image/svg+xml", pageIcon},
	} {
		mux.HandleFunc("GET /"+f.name, p.guard(func(w http.ResponseWriter, r *http.Request) {
			answerTagged(w, r, f.kind, tagOf(f.body), f.body)
		}))
	}
}

// pagePolicy lets the page load what it is made of from where it came and nothing
// else, and nobody frame it.
const pagePolicy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// ours refuses requests under another name, of everything that is served: metrics and
// reasons tell of the cluster, too.
func (p *page) ours(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.isOurs(r) {
			w.Header().Set("X-Content-Type-Options", "nosniff")
			http.Error(w, fmt.Sprintf("nothing is served under the name %q; use the address of the host, its node name or localhost", cleanText(r.Host, maxName)), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// guard sets the headers of every answer of the page.
func (p *page) guard(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", pagePolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		if ip, _ := netip.ParseAddr(hostOf(r)); ip.IsLoopback() || isLocalhost(hostOf(r)) { // elsewhere browsers ignore it without TLS, and say so as an error
			h.Set("Cross-Origin-Opener-Policy", "same-origin")
		}
		h.Set("Cache-Control", "no-cache")
		next(w, r)
	}
}

// isOurs guards against DNS rebinding, by which a page from elsewhere has the browser
// of somebody on this host read what is on its loopback addresses: there only an IP
// address, localhost or the node's name may stand in Host, which no stranger's DNS
// answers for. A request without Host comes from no browser: health probes of HTTP/1.0
// send none. On other addresses the page is for everybody who reaches them (http.bind), under
// whatever name.
func (p *page) isOurs(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if ok && !local.IP.IsLoopback() {
		return true
	}
	host := hostOf(r)
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return host == "" || isLocalhost(host) || p.node != "" && host == strings.ToLower(p.node)
}

// hostOf is the host that a request asks for, in lower case and without its port.
func hostOf(r *http.Request) string {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

func isLocalhost(host string) bool {
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// serve renders the page of this moment.
func (p *page) serve(w http.ResponseWriter, r *http.Request) {
	l, err := p.looks.get(r.Context())
	if err != nil {
		http.Error(w, "the node is busy or stopping: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), detailTimeout)
	defer cancel()
	v := newPageView(l, parsePageQuery(r.URL.Query()), func(img report.ImageState) report.ImageDetail {
		return p.details.of(ctx, img, l.at)
	})
	var main, whole bytes.Buffer
	if err := pageTemplate.ExecuteTemplate(&main, "main", v); err != nil {
		p.fail(w, err)
		return
	}
	v.Version = pageVersion
	v.Main = template.HTML(main.String()) // which has escaped it
	if err := pageTemplate.ExecuteTemplate(&whole, "page", v); err != nil {
		p.fail(w, err)
		return
	}
	// When it was looked makes no other page.
	answerTagged(w, r, "text/html; charset=utf-8", tagOf([]byte(pageVersion), main.Bytes()), whole.Bytes())
}

func (p *page) fail(w http.ResponseWriter, err error) {
	p.log.Error("failed to render the status page", "err", err)
	http.Error(w, "failed to render the page; see the log of the daemon", http.StatusInternalServerError)
}

// answerTagged writes body, or that it is what the client has.
func answerTagged(w http.ResponseWriter, r *http.Request, kind, tag string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("ETag", `"`+tag+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

func tagOf(parts ...[]byte) string {
	sum := sha256.New()
	for _, b := range parts {
		sum.Write(b)
	}
	return hex.EncodeToString(sum.Sum(nil)[:12])
}
