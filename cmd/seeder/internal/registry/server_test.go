package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/report"
	"seeder/store"
	"seeder/store/ctrd"
	"seeder/store/storetest"
)

const announcedRef = "docker.io/library/k3s-dashboard:latest"

// announcements is a Catalog that a test fills.
type announcements struct {
	mu   sync.Mutex
	refs map[string]announcement
	asks int
}

type announcement struct {
	target ocispec.Descriptor
	state  report.State
}

func (a *announcements) set(ref string, target ocispec.Descriptor, s report.State) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refs[ref] = announcement{target, s}
}

// asked is how often somebody has looked.
func (a *announcements) asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asks
}

// Here implements Catalog.
func (a *announcements) Here(ref string) (ocispec.Descriptor, report.State, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asks++
	x, ok := a.refs[ref]
	return x.target, x.state, ok
}

// References implements Catalog.
func (a *announcements) References() (refs []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for ref := range a.refs {
		refs = append(refs, ref)
	}
	return refs
}

// served is a registry of an embedded store that holds one image.
type served struct {
	*testing.T
	url     string
	auth    Credentials
	catalog *announcements
	store   *store.Store
	img     *storetest.Image
	server  *Server
	// listener is its address.
	listener string
	dir      string
}

func serve(t *testing.T) *served {
	t.Helper()
	return servePush(t, func(*served) Push { return Push{} })
}

// servePush is serve with what pushed images go to.
func servePush(t *testing.T, to func(*served) Push) *served {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := store.Open(t.Context(), store.Config{DataDir: dir, Log: log,
		Containerd: ctrd.Config{Address: ctrd.Embedded, Root: filepath.Join(dir, "embedded")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	img := storetest.NewImage(t, announcedRef, 7)
	if _, err := s.ImportArchive(t.Context(), bytes.NewReader(img.OCIArchive(t)), ""); err != nil {
		t.Fatal(err)
	}
	auth, err := LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	catalog := &announcements{refs: map[string]announcement{announcedRef: {img.Target, report.Ready}}}
	out := &served{T: t, auth: auth, catalog: catalog, store: s, img: img, dir: dir}
	r, err := NewServer("127.0.0.1:0", auth, catalog, storeImages{s}, to(out), log)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := r.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	out.url, out.listener, out.server = "http://"+addr.String(), addr.String(), r
	return out
}

// storeImages are the Images of a store.
type storeImages struct{ *store.Store }

func (s storeImages) Held(ctx context.Context, d digest.Digest) (Blob, error) {
	b, err := s.OpenHeld(ctx, d)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (s storeImages) Arriving(ctx context.Context, d digest.Digest) (Arriving, error) {
	b, err := s.OpenArriving(ctx, d)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// request is one of the owner of the credentials.
func (s *served) request(method, path string) *http.Request {
	s.Helper()
	req, err := http.NewRequestWithContext(s.Context(), method, s.url+path, nil)
	if err != nil {
		s.Fatal(err)
	}
	req.Header.Set("Authorization", s.auth.header())
	return req
}

// do sends a request and reads the answer as far as it comes.
func (s *served) do(req *http.Request) (*http.Response, []byte, error) {
	s.Helper()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

// wants sends a request that has to be answered with status, and for a refusal with code.
func (s *served) wants(req *http.Request, status int, code string) (*http.Response, []byte) {
	s.Helper()
	resp, body, err := s.do(req)
	if err != nil || resp.StatusCode != status {
		s.Fatalf("%s %s: %s %q, %v; want %d", req.Method, req.URL, resp.Status, body, err, status)
	}
	if code != "" && req.Method != http.MethodHead {
		var errs struct{ Errors []struct{ Code string } }
		if err := json.Unmarshal(body, &errs); err != nil || len(errs.Errors) != 1 || errs.Errors[0].Code != code {
			s.Errorf("%s %s: %q, want the code %s", req.Method, req.URL, body, code)
		}
	}
	return resp, body
}

// TestPull: an announced image is there by tag and by digest, under the name that a client
// of this registry gives it and under that by which containerd asks a mirror; HEAD tells the
// size, a range gives the bytes of it.
func TestPull(t *testing.T) {
	t.Parallel()
	s := serve(t)
	target := s.img.Target
	s.wants(s.request("GET", "/v2/"), 200, "")
	for _, path := range []string{
		"/v2/library/k3s-dashboard/manifests/latest?ns=docker.io",
		"/v2/k3s-dashboard/manifests/latest",
		"/v2/docker.io/library/k3s-dashboard/manifests/latest",
		"/v2/library/k3s-dashboard/manifests/" + target.Digest.String() + "?ns=docker.io",
	} {
		for _, method := range []string{"HEAD", "GET"} {
			resp, body := s.wants(s.request(method, path), 200, "")
			if resp.ContentLength != target.Size || resp.Header.Get("Content-Type") != target.MediaType || resp.Header.Get("Docker-Content-Digest") != target.Digest.String() {
				t.Errorf("%s %s: %d bytes of %v, want %+v", method, path, resp.ContentLength, resp.Header, target)
			}
			if method == "GET" && digest.FromBytes(body) != target.Digest {
				t.Errorf("%s: %q is not the manifest", path, body)
			}
		}
	}
	for _, layer := range append(s.img.Manifests[0].Layers, s.img.Manifests[0].Config) {
		path := "/v2/library/k3s-dashboard/blobs/" + layer.Digest.String() + "?ns=docker.io"
		_, body := s.wants(s.request("GET", path), 200, "")
		if !bytes.Equal(body, s.img.Blobs[layer.Digest]) {
			t.Errorf("%s has other bytes", path)
		}
		if resp, _ := s.wants(s.request("HEAD", path), 200, ""); resp.ContentLength != layer.Size {
			t.Errorf("HEAD %s: %d bytes, want %d", path, resp.ContentLength, layer.Size)
		}
		for asked, want := range map[string][]byte{"bytes=10-19": body[10:20], "bytes=100-": body[100:], "bytes=-7": body[len(body)-7:], "bytes=-999999999": body} {
			req := s.request("GET", path)
			req.Header.Set("Range", asked)
			if _, got := s.wants(req, 206, ""); !bytes.Equal(got, want) {
				t.Errorf("%s %s: %d other bytes, want %d", path, asked, len(got), len(want))
			}
		}
		for _, asked := range []string{"bytes=999999999-", "bytes=-0", "bytes=-x"} {
			req := s.request("GET", path)
			req.Header.Set("Range", asked)
			s.wants(req, 416, "RANGE_INVALID")
		}
	}
}

// TestTags: of an announced repository the announced tags are listed, page by page where
// that is asked for.
func TestTags(t *testing.T) {
	t.Parallel()
	s := serve(t)
	for _, ref := range []string{"docker.io/library/k3s-dashboard:a", "docker.io/library/k3s-dashboard:v2",
		"docker.io/library/k3s-dashboard-2:other", "docker.io/library/k3s-dashboard@" + s.img.Target.Digest.String()} {
		s.catalog.set(ref, s.img.Target, report.Waiting)
	}
	for query, want := range map[string]string{
		"": `["a","latest","v2"]`, "?n=2": `["a","latest"]`, "?n=2&last=latest": `["v2"]`, "?last=v2": "null", "?ns=docker.io": `["a","latest","v2"]`,
	} {
		resp, body := s.wants(s.request("GET", "/v2/library/k3s-dashboard/tags/list"+query), 200, "")
		if got := string(body); got != `{"name":"library/k3s-dashboard","tags":`+want+`}` {
			t.Errorf("%q: %s, want the tags %s", query, got, want)
		}
		if link := resp.Header.Get("Link"); (link != "") != (query == "?n=2") {
			t.Errorf("%q: the next page is %q", query, link)
		}
	}
}

// TestNotAnnounced: what nobody has announced is refused at once, also where this host holds
// it, and with the codes of the distribution API.
func TestNotAnnounced(t *testing.T) {
	t.Parallel()
	s := serve(t)
	other := storetest.NewImage(t, "docker.io/library/other:v1", 9)
	if _, err := s.store.ImportArchive(t.Context(), bytes.NewReader(other.OCIArchive(t)), ""); err != nil {
		t.Fatal(err)
	}
	layer := other.Manifests[0].Layers[0].Digest.String()
	absent := digest.FromString("absent").String()
	s.catalog.set("docker.io/library/k3s-dashboard:failed", s.img.Target, report.Failed)
	s.catalog.set("docker.io/library/k3s-dashboard:excluded", s.img.Target, report.Excluded)
	for path, code := range map[string]string{
		"/v2/library/other/manifests/v1?ns=docker.io":                        "MANIFEST_UNKNOWN",
		"/v2/library/other/manifests/" + other.Target.Digest.String():        "NAME_UNKNOWN",
		"/v2/library/other/blobs/" + layer:                                   "NAME_UNKNOWN",
		"/v2/library/k3s-dashboard/manifests/v2?ns=docker.io":                "MANIFEST_UNKNOWN",
		"/v2/library/k3s-dashboard/manifests/failed?ns=docker.io":            "MANIFEST_UNKNOWN",
		"/v2/library/k3s-dashboard/manifests/excluded?ns=docker.io":          "MANIFEST_UNKNOWN",
		"/v2/library/k3s-dashboard/manifests/latest?ns=registry.example.com": "MANIFEST_UNKNOWN",
		"/v2/library/k3s-dashboard/manifests/" + absent:                      "MANIFEST_UNKNOWN",
		"/v2/library/k3s-dashboard/manifests/" + layer:                       "MANIFEST_UNKNOWN", // no manifest
		"/v2/library/k3s-dashboard/blobs/" + absent:                          "BLOB_UNKNOWN",
		"/v2/library/k3s-dash/blobs/" + layer:                                "NAME_UNKNOWN",
		"/v2/library/other/tags/list":                                        "NAME_UNKNOWN",
		"/v2/_catalog":                                                       "NAME_UNKNOWN",
		"/other":                                                             "NAME_UNKNOWN",
	} {
		begun := time.Now()
		s.wants(s.request("GET", path), 404, code)
		if took := time.Since(begun); took > defaultPatience.stalled/2 {
			t.Errorf("%s was refused after %s", path, took)
		}
	}
	for path, code := range map[string]string{
		"/v2/library/k3s-dashboard/manifests/latest?ns=docker.io/evil": "NAME_INVALID",
		"/v2/UPPER/manifests/latest":                                   "NAME_INVALID",
		"/v2/library/k3s-dashboard/blobs/sha256:zz":                    "DIGEST_INVALID",
		"/v2/library/k3s-dashboard/manifests/sha256:zz":                "DIGEST_INVALID",
	} {
		s.wants(s.request("GET", path), 400, code)
	}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		s.wants(s.request(method, "/v2/library/k3s-dashboard/blobs/uploads/"), 405, "UNKNOWN")
	}
	withBody := s.request("GET", "/v2/")
	withBody.Body = io.NopCloser(strings.NewReader("x"))
	withBody.ContentLength = 1
	s.wants(withBody, 400, "UNKNOWN")
}

// TestWhoMayRead: nothing is answered without the credentials, nor to a page that had its
// own name resolved to this host.
func TestWhoMayRead(t *testing.T) {
	t.Parallel()
	s := serve(t)
	path := "/v2/library/k3s-dashboard/manifests/latest?ns=docker.io"
	for name, header := range map[string]string{
		"none":           "",
		"another":        Credentials{s.auth.User, strings.Repeat("x", len(s.auth.Password))}.header(),
		"no password":    Credentials{s.auth.User, ""}.header(),
		"another's name": Credentials{"root", s.auth.Password}.header(),
		"a bearer token": "Bearer " + s.auth.Password,
		"nonsense":       "Basic \x80",
	} {
		for _, path := range []string{path, "/v2/", "/v2/_catalog", "/"} {
			req := s.request("GET", path)
			req.Header.Set("Authorization", header)
			resp, _ := s.wants(req, 401, "UNAUTHORIZED")
			if got := resp.Header.Get("WWW-Authenticate"); got != `Basic realm="seeder"` {
				t.Errorf("%s, %s: WWW-Authenticate is %q", name, path, got)
			}
		}
	}
	for host, status := range map[string]int{
		"evil.example.com": 403, "evil.example.com:7953": 403, "127.0.0.1.evil.example.com:7953": 403,
		"127.0.0.1:7953": 200, "localhost:7953": 200, "[::1]:7953": 200,
	} {
		req := s.request("GET", path)
		req.Host = host
		code := ""
		if status != 200 {
			code = "DENIED"
		}
		s.wants(req, status, code)
	}
}

// TestPullJoinsTheFetch: who pulls an image that is on its way gets it once it is here.
func TestPullJoinsTheFetch(t *testing.T) {
	t.Parallel()
	for _, byDigest := range []bool{false, true} {
		s := serve(t)
		coming := storetest.NewImage(t, "docker.io/library/coming:v1", 11)
		s.catalog.set(coming.Ref, coming.Target, report.Waiting)
		path := "/v2/library/coming/manifests/v1?ns=docker.io"
		if byDigest {
			path = "/v2/library/coming/manifests/" + coming.Target.Digest.String() + "?ns=docker.io"
		}
		req := s.request("GET", path)
		type answer struct {
			resp *http.Response
			body []byte
			err  error
		}
		answered := make(chan answer, 1)
		go func() {
			resp, body, err := s.do(req)
			answered <- answer{resp, body, err}
		}()
		for s.catalog.asked() < 3 {
			select {
			case a := <-answered:
				t.Fatalf("answered before the image is here: %s %q %v", a.resp.Status, a.body, a.err)
			case <-time.After(time.Millisecond):
			}
		}
		if _, err := s.store.ImportArchive(t.Context(), bytes.NewReader(coming.OCIArchive(t)), ""); err != nil {
			t.Fatal(err)
		}
		s.catalog.set(coming.Ref, coming.Target, report.Ready)
		if a := <-answered; a.err != nil || a.resp.StatusCode != 200 || digest.FromBytes(a.body) != coming.Target.Digest {
			t.Errorf("by digest %v: %s %q, %v", byDigest, a.resp.Status, a.body, a.err)
		}
	}
}

// TestPullGivesUp: an image that does not come any nearer is left to the real registry, and
// a client that goes away is not waited for.
func TestPullGivesUp(t *testing.T) {
	t.Parallel()
	catalog := &announcements{refs: map[string]announcement{announcedRef: {ocispec.Descriptor{}, report.Waiting}}}
	b := &backend{catalog: catalog, images: largeImages{}, patience: patience{stalled: 20 * time.Millisecond, total: time.Hour, look: time.Millisecond}}
	if _, err := b.await(t.Context(), announcedRef); err == nil || !strings.Contains(err.Error(), "is still waiting on this host") {
		t.Errorf("stalled: %v", err)
	}
	catalog.set(announcedRef, ocispec.Descriptor{}, report.Fetching)
	b.patience = patience{stalled: time.Hour, total: 20 * time.Millisecond, look: time.Millisecond}
	if _, err := b.await(t.Context(), announcedRef); err == nil || !strings.Contains(err.Error(), "is still fetching on this host") {
		t.Errorf("slow: %v", err)
	}
	b.patience = defaultPatience
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := b.await(ctx, announcedRef); err == nil || ctx.Err() == nil {
		t.Errorf("the client is gone: %v", err)
	}
}

// TestDamagedBlob: of a blob that has rotted on the disk the client never gets all, and
// after that nothing.
func TestDamagedBlob(t *testing.T) {
	t.Parallel()
	s := serve(t)
	layer := s.img.Manifests[0].Layers[0]
	file := filepath.Join(s.dir, "embedded", "content", "blobs", "sha256", layer.Digest.Encoded())
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	path := "/v2/library/k3s-dashboard/blobs/" + layer.Digest.String()
	if resp, body, err := s.do(s.request("GET", path)); err == nil || int64(len(body)) >= layer.Size {
		t.Errorf("a damaged blob of %d bytes: %s, %d bytes, %v", layer.Size, resp.Status, len(body), err)
	}
	s.wants(s.request("GET", path), 404, "BLOB_UNKNOWN")
}

// TestLargeManifest: what claims to be a manifest and has 5 MB is not read.
func TestLargeManifest(t *testing.T) {
	t.Parallel()
	large := ocispec.Descriptor{Digest: digest.FromString("large")}
	b := &backend{catalog: &announcements{refs: map[string]announcement{announcedRef: {large, report.Ready}}}, images: largeImages{}}
	if _, err := b.getTag(t.Context(), "k3s-dashboard", "latest"); err == nil || !strings.Contains(err.Error(), "a manifest at most 4194304") {
		t.Errorf("%v", err)
	}
}

// largeImages has one blob, which is never to be read; nothing arrives.
type largeImages struct{}

func (largeImages) Held(context.Context, digest.Digest) (Blob, error) { return largeBlob{}, nil }
func (largeImages) Arriving(context.Context, digest.Digest) (Arriving, error) {
	return nil, fs.ErrNotExist
}

// largeBlob is never to be read.
type largeBlob struct{ Blob }

func (largeBlob) Size() int64  { return 5 << 20 }
func (largeBlob) Close() error { return nil }

// TestManyConnections: who opens a thousand connections takes no more than maxConns at once,
// and those with nothing to say are closed.
func TestManyConnections(t *testing.T) {
	t.Parallel()
	s := serve(t)
	var conns []net.Conn
	for range 1000 {
		c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	conns[0].SetDeadline(time.Now().Add(4 * readTimeout))
	if _, err := conns[0].Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a silent connection: %v, want EOF", err)
	}
	for _, c := range conns {
		c.Close()
	}
	s.wants(s.request("GET", "/v2/"), 200, "")
}
