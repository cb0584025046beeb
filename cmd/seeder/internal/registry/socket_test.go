package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
	"seeder/store/storetest"
)

// socketClient asks what the control socket has, as `seeder push` does: over one connection,
// in HTTP/2.
type socketClient struct {
	*served
	*announcer
	http     *http.Client
	shutdown func()
}

func serveSocket(t *testing.T) *socketClient {
	t.Helper()
	c := &socketClient{}
	c.served = servePush(t, func(s *served) Push {
		c.announcer = &announcer{served: s}
		return Push{To: c.announcer, Dir: filepath.Join(s.dir, "pushed"), SocketAlone: true}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: c.server, Protocols: p}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	tr := &http.Transport{Protocols: p}
	c.http = &http.Client{Transport: tr}
	c.url = "http://" + l.Addr().String()
	c.shutdown = func() { // waits for the requests
		tr.CloseIdleConnections()
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}
	return c
}

// ask sends a request without credentials and says how it was answered.
func (c *socketClient) ask(method, path, encoding string, body io.Reader) (*http.Response, string) {
	c.Helper()
	req, err := http.NewRequestWithContext(c.Context(), method, c.url+path, body)
	if err != nil {
		c.Fatal(err)
	}
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return &http.Response{}, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.Fatal(err)
	}
	return resp, string(b)
}

func (c *socketClient) want(status int, method, path, encoding string, body io.Reader) *http.Response {
	c.Helper()
	resp, said := c.ask(method, path, encoding, body)
	if resp.StatusCode != status {
		c.Fatalf("%s %s: %d %s, want %d", method, path, resp.StatusCode, said, status)
	}
	return resp
}

// uploads takes a blob in one request.
const uploads = "/v2/pushed/blobs/uploads/?digest="

func packed(t *testing.T, b []byte, opts ...zstd.EOption) io.Reader {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

// TestPushOverSocket: without registry.push, what comes over the control socket is kept,
// verified as what it was before it was compressed, and becomes one archive; nothing is left
// when that is imported. The listener stays read-only.
func TestPushOverSocket(t *testing.T) {
	t.Parallel()
	c := serveSocket(t)
	defer c.shutdown()
	img := storetest.NewImage(t, "docker.io/library/app:v1", 31)
	if _, err := c.server.Archive(t.Context(), img.Target.Digest, img.Ref); err == nil {
		t.Error("there is an archive of what nobody has pushed")
	}
	for d, b := range img.Blobs {
		if d == img.Target.Digest {
			continue
		}
		c.want(404, "HEAD", "/v2/pushed/blobs/"+d.String(), "", nil)
		c.want(201, "POST", uploads+d.String(), "zstd", packed(t, b))
		c.want(200, "HEAD", "/v2/pushed/blobs/"+d.String(), "", nil)
	}
	manifest := img.Blobs[img.Target.Digest]
	c.want(201, "PUT", "/v2/pushed/manifests/"+img.Target.Digest.String(), "", bytes.NewReader(manifest))
	archive, err := c.server.Archive(t.Context(), img.Target.Digest, img.Ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.store.ImportArchive(t.Context(), archive, img.Ref); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(archive.Close(), c.server.Drop(t.Context(), img.Target.Digest)); err != nil {
		t.Fatal(err)
	}
	if left := c.left(); len(left) != 0 {
		t.Errorf("the push left %q", left)
	}
	if _, err := c.store.Prepare(t.Context(), img.Ref, chunk.PrepareOptions{At: img.Target.Digest}); err != nil {
		t.Error(err)
	}
	c.want(200, "HEAD", "/v2/pushed/blobs/"+img.Target.Digest.String(), "", nil) // containerd has it: it is not sent again
	listener := c.request("POST", "/v2/app/blobs/uploads/")
	listener.URL.Host = c.listener
	c.wants(listener, 405, "UNKNOWN")
}

// TestPushOverSocketRefused: what is wrong with a body is said, and nothing of it stays, nor
// of one that breaks off; an archive is closed also where nobody reads it.
func TestPushOverSocketRefused(t *testing.T) {
	t.Parallel()
	c := serveSocket(t)
	blob := bytes.Repeat([]byte("seeder"), 1<<20)
	d := digest.FromBytes(blob)
	c.want(415, "POST", uploads+d.String(), "gzip", bytes.NewReader(blob))
	c.want(400, "POST", uploads+d.String(), "zstd", packed(t, blob[1:]))
	for name, body := range map[string]io.Reader{
		"no zstd":      strings.NewReader("nothing of the kind"),
		"cut off":      io.LimitReader(packed(t, blob), 100),
		"a big window": packed(t, append(blob, blob...), zstd.WithWindowSize(16<<20), zstd.WithSingleSegment(false)),
	} {
		if resp, said := c.ask("POST", uploads+d.String(), "zstd", body); resp.StatusCode < 400 {
			t.Errorf("%s: %d %s", name, resp.StatusCode, said)
		}
	}
	c.want(413, "PUT", "/v2/pushed/manifests/"+d.String(), "", bytes.NewReader(blob))
	c.announcer.mu.Lock()
	c.full = errors.New("the disk is full")
	c.announcer.mu.Unlock()
	if resp, said := c.ask("POST", uploads+d.String(), "zstd", packed(t, blob)); resp.StatusCode != http.StatusInsufficientStorage || !strings.Contains(said, "the disk is full") {
		t.Errorf("no room: %d %s", resp.StatusCode, said)
	}
	c.announcer.mu.Lock()
	c.full = nil
	c.announcer.mu.Unlock()
	broken := io.MultiReader(bytes.NewReader(blob[:1<<20]), &failing{})
	if resp, said := c.ask("POST", uploads+d.String(), "", broken); resp.StatusCode != 0 {
		t.Errorf("a push that breaks off: %d %s", resp.StatusCode, said)
	}
	c.shutdown()
	c.server.socket.requests.Lock() // waits for the last of them
	left := c.left()
	c.server.socket.requests.Unlock()
	if len(left) != 0 {
		t.Errorf("what was refused, and a push that broke off, left %q", left)
	}
}

// failing breaks off.
type failing struct{}

// Read implements io.Reader.
func (*failing) Read([]byte) (int, error) { return 0, errors.New("gone") }

// TestSocketSaysWhoMayPush: whether this host may announce is known before anything is sent.
func TestSocketSaysWhoMayPush(t *testing.T) {
	t.Parallel()
	c := serveSocket(t)
	defer c.shutdown()
	if resp, said := c.ask("GET", "/v2/", "", nil); resp.StatusCode != http.StatusOK {
		t.Errorf("%d %s, want 200", resp.StatusCode, said)
	}
	c.mu.Lock()
	c.refused = errors.New("this node is not in announcers")
	c.mu.Unlock()
	if resp, said := c.ask("GET", "/v2/", "", nil); resp.StatusCode != http.StatusForbidden || said != `{"errors":[{"code":"DENIED","message":"this node is not in announcers"}]}` {
		t.Errorf("%d %s, want 403 and why", resp.StatusCode, said)
	}
}
