package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/report"
	"seeder/store"
	"seeder/store/chunk"
	"seeder/store/storetest"
)

// announcer imports into the store of a test and announces in its catalog.
type announcer struct {
	*served
	mu      sync.Mutex
	refused error // what MayAnnounce says
	full    error // what Room says
	room    int64 // bytes that Room grants before it says full
	failing error // what Publish says
}

// MayAnnounce implements Publisher.
func (a *announcer) MayAnnounce() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.refused
}

// Room implements Publisher.
func (a *announcer) Room(_ context.Context, bytes int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.room -= bytes; a.room >= 0 {
		return nil
	}
	return a.full
}

// Publish implements Publisher.
func (a *announcer) Publish(ctx context.Context, archive io.Reader, ref string) error {
	a.mu.Lock()
	failing := a.failing
	a.mu.Unlock()
	if failing != nil {
		return failing
	}
	if _, err := a.store.ImportArchive(ctx, archive, ref); err != nil {
		return err
	}
	p, err := a.store.Prepare(ctx, ref, chunk.PrepareOptions{})
	if err != nil {
		return err
	}
	a.catalog.set(ref, p.Target, report.Ready)
	return nil
}

func servePushes(t *testing.T) (*served, *announcer) {
	t.Helper()
	var a *announcer
	s := servePush(t, func(s *served) Push {
		a = &announcer{served: s}
		return Push{To: a, Dir: filepath.Join(s.dir, "pushed")}
	})
	return s, a
}

// send is a request with a body.
func (s *served) send(method, path, contentType string, body []byte) *http.Request {
	s.Helper()
	req := s.request(method, path)
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	req.Header.Set("Content-Type", contentType)
	return req
}

// push sends a blob as Docker does, in one PATCH, and says where it was begun.
func (s *served) push(repo string, d digest.Digest, b []byte) {
	s.Helper()
	resp, _ := s.wants(s.request("POST", "/v2/"+repo+"/blobs/uploads/"), 202, "")
	resp, _ = s.wants(s.send("PATCH", resp.Header.Get("Location"), blobMediaType, b), 202, "")
	s.wants(s.request("PUT", resp.Header.Get("Location")+"?digest="+d.String()), 201, "")
}

// left are the names in the directory of what is pushed.
func (s *served) left() (names []string) {
	s.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, "pushed"))
	if err != nil {
		s.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestPush: an image that is pushed blob by blob, its manifest last, is announced under the
// name that the kubelet has for it, and nothing of the push is left; what this host has need
// not be sent, and a blob of another repository can be mounted. An index comes with all of
// its manifests.
func TestPush(t *testing.T) {
	t.Parallel()
	s, _ := servePushes(t)
	img := storetest.NewIndex(t, "docker.io/library/app:v1", 21, "linux/amd64", "linux/arm64")
	manifests := map[digest.Digest]bool{}
	for d, b := range img.Blobs {
		if mediaTypeOf(b) != "" {
			manifests[d] = true
			continue
		}
		s.wants(s.request("HEAD", "/v2/app/blobs/"+d.String()), 404, "")
		s.push("app", d, b)
		s.wants(s.request("HEAD", "/v2/app/blobs/"+d.String()), 200, "")
		if _, got := s.wants(s.request("GET", "/v2/app/blobs/"+d.String()), 200, ""); !bytes.Equal(got, b) {
			t.Errorf("%s was pushed with other bytes", d)
		}
	}
	delete(manifests, img.Target.Digest)
	early := s.send("PUT", "/v2/app/manifests/v1", img.Target.MediaType, img.Blobs[img.Target.Digest])
	s.wants(early, 404, "MANIFEST_BLOB_UNKNOWN")
	for d := range manifests {
		s.wants(s.send("PUT", "/v2/app/manifests/"+d.String(), ocispec.MediaTypeImageManifest, img.Blobs[d]), 201, "")
		s.wants(s.request("GET", "/v2/app/manifests/"+d.String()), 200, "")
	}
	s.wants(s.request("GET", "/v2/app/manifests/v1"), 404, "MANIFEST_UNKNOWN")
	resp, _ := s.wants(s.send("PUT", "/v2/app/manifests/v1", img.Target.MediaType, img.Blobs[img.Target.Digest]), 201, "")
	if got := resp.Header.Get("Docker-Content-Digest"); got != img.Target.Digest.String() {
		t.Errorf("the digest is %s, want %s", got, img.Target.Digest)
	}
	if target, _, ok := s.catalog.Here(img.Ref); !ok || target.Digest != img.Target.Digest {
		t.Errorf("%s is announced %v as %s", img.Ref, ok, target.Digest)
	}
	if left := s.left(); len(left) != 0 {
		t.Errorf("the push left %q", left)
	}
	s.wants(s.request("GET", "/v2/library/app/manifests/v1?ns=docker.io"), 200, "")

	layer := img.Manifests[0].Layers[0].Digest.String()
	s.wants(s.request("HEAD", "/v2/other/blobs/"+layer), 200, "")
	s.wants(s.request("POST", "/v2/other/blobs/uploads/?mount="+layer+"&from=app"), 201, "")
	s.wants(s.request("POST", "/v2/other/blobs/uploads/?mount="+layer), 201, "")
	s.wants(s.request("POST", "/v2/other/blobs/uploads/?mount="+digest.FromString("absent").String()+"&from=app"), 202, "")
	one := img.Manifests[0].Descriptor // all of it is here
	s.wants(s.send("PUT", "/v2/other/manifests/v2", one.MediaType, img.Blobs[one.Digest]), 201, "")
	if target, _, ok := s.catalog.Here("docker.io/library/other:v2"); !ok || target.Digest != one.Digest {
		t.Errorf("other:v2 is announced %v as %s", ok, target.Digest)
	}
}

// TestPushRefused: what is wrong with a push is said by the API's codes, and nothing of it
// becomes visible or stays.
func TestPushRefused(t *testing.T) {
	t.Parallel()
	s, a := servePushes(t)
	img := storetest.NewImage(t, "docker.io/library/app:v1", 23)
	manifest := img.Blobs[img.Target.Digest]
	begin := func() string {
		t.Helper()
		resp, _ := s.wants(s.request("POST", "/v2/app/blobs/uploads/"), 202, "")
		return resp.Header.Get("Location")
	}
	s.wants(s.send("PUT", begin()+"?digest="+digest.FromString("a").String(), blobMediaType, []byte("b")), 400, "DIGEST_INVALID")
	if left := s.left(); len(left) != 0 {
		t.Errorf("a wrong digest left %q", left)
	}
	out := s.send("PATCH", begin(), blobMediaType, []byte("later"))
	out.Header.Set("Content-Range", "100-104")
	s.wants(out, 416, "RANGE_INVALID")
	at := begin()
	s.wants(s.send("PATCH", at, blobMediaType, []byte("first")), 202, "")
	again := s.send("PATCH", at, blobMediaType, []byte("first"))
	again.Header.Set("Content-Range", "0-4")
	s.wants(again, 416, "RANGE_INVALID")
	s.wants(s.send("PATCH", "/v2/app/blobs/uploads/bm9uZQ", blobMediaType, []byte("x")), 404, "BLOB_UPLOAD_UNKNOWN")
	s.wants(s.send("PUT", "/v2/app/manifests/v1", img.Target.MediaType, manifest), 404, "MANIFEST_BLOB_UNKNOWN")
	s.wants(s.send("PUT", "/v2/app/manifests/v1", img.Target.MediaType, []byte("{}")), 400, "MANIFEST_INVALID")
	large := s.send("PUT", "/v2/app/manifests/v1", img.Target.MediaType, bytes.Repeat([]byte(" "), 5<<20))
	s.wants(large, 413, "UNKNOWN")
	large = s.send("PUT", "/v2/app/manifests/v1", img.Target.MediaType, bytes.Repeat([]byte(" "), 5<<20))
	large.ContentLength = -1 // it does not say how long it is
	s.wants(large, 413, "UNKNOWN")
	s.wants(s.send("PUT", "/v2/app/manifests/-v1", img.Target.MediaType, manifest), 400, "NAME_INVALID")
	s.wants(s.send("PUT", "/v2/app/manifests/"+strings.Repeat("v", 200), img.Target.MediaType, manifest), 400, "NAME_INVALID")
	s.wants(s.send("PUT", "/v2/App/manifests/v1", img.Target.MediaType, manifest), 400, "NAME_INVALID")
	s.wants(s.request("POST", "/v2/App/blobs/uploads/"), 400, "NAME_INVALID")
	s.wants(s.request("DELETE", "/v2/app/manifests/v1"), 405, "UNKNOWN")
	anonymous := s.request("POST", "/v2/app/blobs/uploads/")
	anonymous.Header.Del("Authorization")
	s.wants(anonymous, 401, "UNAUTHORIZED")
	for range maxUploads - len(s.left()) {
		begin()
	}
	s.wants(s.request("POST", "/v2/app/blobs/uploads/"), 429, "TOOMANYREQUESTS")

	a.mu.Lock()
	a.refused, a.full = errors.New("announcers does not list this host"), errors.New("the disk is full")
	a.mu.Unlock()
	s.wants(s.request("POST", "/v2/app/blobs/uploads/"), 403, "DENIED")
	if _, _, ok := s.catalog.Here(img.Ref); ok {
		t.Errorf("%s is announced", img.Ref)
	}
}

// TestPushOfNoRoom: a disk that has no room ends an upload before it is full, also one that
// never ends, and what came of it goes at once.
func TestPushOfNoRoom(t *testing.T) {
	t.Parallel()
	s, a := servePushes(t)
	a.full, a.room = errors.New("the disk is full"), 3*roomStep
	for _, end := range []struct{ method, query string }{{"PATCH", ""}, {"PUT", "?digest=" + digest.FromString("x").String()}} {
		resp, _ := s.wants(s.request("POST", "/v2/app/blobs/uploads/"), 202, "")
		req := s.request(end.method, resp.Header.Get("Location")+end.query)
		req.Body, req.ContentLength = io.NopCloser(endless{}), -1
		_, body := s.wants(req, http.StatusInsufficientStorage, "UNKNOWN")
		if !strings.Contains(string(body), "the disk is full") {
			t.Errorf("%s says %q", end.method, body)
		}
		if left := s.left(); len(left) != 0 {
			t.Errorf("%s left %q", end.method, left)
		}
		s.wants(s.send("PATCH", resp.Header.Get("Location"), blobMediaType, []byte("x")), 404, "BLOB_UPLOAD_UNKNOWN")
	}
}

// endless is a body that does not end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestPushThatFails: a push whose import fails is answered by its cause: 5xx where this host
// cannot take it now, after which a client sends the manifest again, 400 where the image
// cannot be announced. Nothing of it is visible.
func TestPushThatFails(t *testing.T) {
	t.Parallel()
	s, a := servePushes(t)
	img := storetest.NewImage(t, "docker.io/library/app:v1", 25)
	for d, b := range img.Blobs {
		if d != img.Target.Digest {
			s.push("app", d, b)
		}
	}
	manifest := func() *http.Request {
		return s.send("PUT", "/v2/app/manifests/v1", img.Target.MediaType, img.Blobs[img.Target.Digest])
	}
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{fmt.Errorf("import: %w: containerd does not answer", ErrNotNow), 503, "UNKNOWN"},
		{fmt.Errorf("write: %w", errdefs.ErrUnavailable), 503, "UNKNOWN"},
		{fmt.Errorf("write: %w", context.DeadlineExceeded), 503, "UNKNOWN"},
		{fmt.Errorf("import: %w", &store.RoomError{Dir: "/var/lib", Lacking: 1 << 20}), 507, "UNKNOWN"},
		{errors.New("rpc error: write /var/lib/rancher: no space left on device"), 507, "UNKNOWN"},
		{&os.PathError{Op: "write", Path: "/x", Err: syscall.EIO}, 503, "UNKNOWN"},
		{errors.New("the image is for linux/s390x"), 400, "MANIFEST_INVALID"},
	} {
		a.mu.Lock()
		a.failing = c.err
		a.mu.Unlock()
		_, body := s.wants(manifest(), c.status, c.code)
		if !strings.Contains(string(body), strings.TrimPrefix(c.err.Error(), "import: ")) {
			t.Errorf("%v: it says %s", c.err, body)
		}
		if _, _, ok := s.catalog.Here(img.Ref); ok {
			t.Errorf("%v: %s is announced", c.err, img.Ref)
		}
		s.wants(s.request("GET", "/v2/app/manifests/v1"), 404, "MANIFEST_UNKNOWN")
	}
	a.mu.Lock()
	a.failing = nil
	a.mu.Unlock()
	s.wants(manifest(), 201, "")
	if target, _, ok := s.catalog.Here(img.Ref); !ok || target.Digest != img.Target.Digest {
		t.Errorf("%s is announced %v as %s", img.Ref, ok, target.Digest)
	}
	if left := s.left(); len(left) != 0 {
		t.Errorf("the push left %q", left)
	}
}

// TestStaleUploads: a push that nobody goes on with leaves nothing, neither does one that a
// restart cut off.
func TestStaleUploads(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "pushed")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "upload-before"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	room := func(context.Context, int64) error { return nil }
	s, err := openStaging(dir, room)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.put(t.Context(), []byte("kept")); err != nil {
		t.Fatal(err)
	}
	u, err := s.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write([]byte("some")); err != nil {
		t.Fatal(err)
	}
	if err := s.sweep(time.Now().Add(2 * staleAfter)); err != nil { // somebody writes
		t.Fatal(err)
	}
	u.Close()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("while somebody writes %v is left, %v; want the blob and the upload", left, err)
	}
	if err := s.sweep(time.Now().Add(2 * staleAfter)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	if _, err := s.resume(t.Context(), u.ID(), atEnd); err == nil {
		t.Error("a stale upload goes on")
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}

// TestSlowPush: a push that takes long keeps its first blobs while it sends the next one,
// though not those that nobody has wanted for a day. Once nothing comes any more all goes.
func TestSlowPush(t *testing.T) {
	t.Parallel()
	s, err := openStaging(filepath.Join(t.TempDir(), "pushed"), func(context.Context, int64) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	config, before := []byte("config"), []byte("of a push that broke off")
	if err := errors.Join(s.put(t.Context(), config), s.put(t.Context(), before)); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-24 * time.Hour)
	if err := os.Chtimes(s.path(digest.FromBytes(before)), old, old); err != nil {
		t.Fatal(err)
	}
	u, err := s.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write([]byte("layer")); err != nil {
		t.Fatal(err)
	}
	if err := s.sweep(time.Now().Add(staleAfter + time.Minute)); err != nil {
		t.Fatal(err)
	}
	b, err := s.open(digest.FromBytes(config))
	if err != nil {
		t.Fatalf("the first blob of a push that goes on: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := s.open(digest.FromBytes(before)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a blob of a day ago: %v, %v", b, err)
	}
	u.Close()
	if err := s.sweep(time.Now().Add(staleAfter - time.Minute)); err != nil { // the upload may go on
		t.Fatal(err)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) != 2 {
		t.Errorf("%v is left between two requests, %v; want the blob and the upload", left, err)
	}
	if err := s.sweep(time.Now().Add(staleAfter + time.Minute)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}
