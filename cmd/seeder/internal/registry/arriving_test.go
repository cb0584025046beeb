package registry

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/report"
	"seeder/store"
	"seeder/store/chunk"
	"seeder/store/ctrd"
)

const comingRef = "docker.io/library/coming:v1"

// coming is an image that a host is fetching from another, chunk by chunk as a test wants it.
type coming struct {
	*served
	target   ocispec.Descriptor
	from, to *store.Image
	config   ocispec.Descriptor
	layer    ocispec.Descriptor
	bytes    []byte // of the layer, 3 MiB
	chunks   []int  // numbers of the layer's chunks; the others are of manifest and config
}

// comes opens an image of one layer on the host of s, with nothing of it there yet.
func comes(s *served) *coming {
	s.Helper()
	other, err := store.Open(s.Context(), store.Config{DataDir: s.TempDir(), Containerd: ctrd.Config{Address: ctrd.Embedded}})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { other.Close() })
	c := &coming{served: s}
	if _, err := other.ImportArchive(s.Context(), bytes.NewReader(c.archive()), ""); err != nil {
		s.Fatal(err)
	}
	p, err := other.Prepare(s.Context(), comingRef, chunk.PrepareOptions{})
	if err != nil {
		s.Fatal(err)
	}
	x, err := chunk.Decode(p.Index)
	if err != nil {
		s.Fatal(err)
	}
	for k, b := range x.Blobs {
		d := ocispec.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.Bytes}
		switch {
		case b.Digest == p.Target.Digest:
			c.target = d
		case strings.Contains(b.MediaType, "config") || strings.Contains(b.MediaType, "container.image"):
			c.config = d
		default:
			c.layer = d
			for at := range b.Sums {
				c.chunks = append(c.chunks, x.Start(k)+at)
			}
		}
	}
	if len(c.chunks) < 3 {
		s.Fatalf("the layer has %d chunks", len(c.chunks))
	}
	if c.from, err = other.Image(s.Context(), p.Index); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { c.from.Close() })
	if c.to, err = s.store.Image(s.Context(), p.Index); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { c.to.Close() })
	s.catalog.set(comingRef, c.target, report.Fetching)
	return c
}

// archive is what docker save writes of the image.
func (c *coming) archive() []byte {
	content := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	tarOf := func(files ...any) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i < len(files); i += 2 {
			data := files[i+1].([]byte)
			w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: files[i].(string), Size: int64(len(data)), Mode: 0o644})
			w.Write(data)
		}
		if err := w.Close(); err != nil {
			c.Fatal(err)
		}
		return b.Bytes()
	}
	document := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			c.Fatal(err)
		}
		return b
	}
	c.bytes = tarOf("file", content)
	config := document(ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(c.bytes)}}})
	list := document([]map[string]any{{"Config": "config.json", "RepoTags": []string{"coming:v1"}, "Layers": []string{"layer.tar"}}})
	return tarOf("config.json", config, "layer.tar", c.bytes, "manifest.json", list)
}

// arrive brings chunks of the image.
func (c *coming) arrive(numbers ...int) {
	c.Helper()
	for _, n := range numbers {
		f, err := c.from.Frame(c.Context(), n)
		if err != nil {
			c.Fatal(err)
		}
		p, err := io.ReadAll(f.Payload)
		if err := errors.Join(err, f.Payload.Close()); err != nil {
			c.Fatal(err)
		}
		if ok, err := c.to.Put(c.Context(), n, f.Encoding, p); !ok || err != nil {
			c.Fatalf("put chunk %d: %v, %v", n, ok, err)
		}
	}
}

// documents brings the manifest and the config.
func (c *coming) documents() {
	c.Helper()
	for n := range c.to.Len() {
		if n < c.chunks[0] || n > c.chunks[len(c.chunks)-1] {
			c.arrive(n)
		}
	}
}

// begin sends a request and returns its answer, of which the body may still be on its way.
func (c *coming) begin(req *http.Request) *http.Response {
	c.Helper()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { resp.Body.Close() })
	return resp
}

// TestPullStreams: who pulls an image that is on its way gets its manifest as soon as that is
// here, and the bytes of a layer as they come, whole or in ranges; what he has is the image.
func TestPullStreams(t *testing.T) {
	t.Parallel()
	c := comes(serve(t))
	const repo = "/v2/library/coming/"
	answered := make(chan *http.Response, 1)
	go func() {
		resp, _, _ := c.do(c.request("GET", repo+"manifests/v1?ns=docker.io"))
		answered <- resp
	}()
	for c.catalog.asked() < 3 {
		select {
		case <-answered:
			t.Fatal("the manifest was answered before it is here")
		case <-time.After(time.Millisecond):
		}
	}
	c.documents()
	if resp := <-answered; resp.StatusCode != 200 || resp.Header.Get("Docker-Content-Digest") != c.target.Digest.String() {
		t.Fatalf("the manifest: %s %v", resp.Status, resp.Header)
	}
	c.wants(c.request("HEAD", repo+"manifests/v1?ns=docker.io"), 200, "")
	c.wants(c.request("GET", repo+"manifests/"+c.target.Digest.String()+"?ns=docker.io"), 200, "")
	c.wants(c.request("GET", repo+"blobs/"+c.config.Digest.String()), 200, "")
	path := repo + "blobs/" + c.layer.Digest.String()
	if resp, _ := c.wants(c.request("HEAD", path), 200, ""); resp.ContentLength != c.layer.Size {
		t.Errorf("HEAD of the layer: %d bytes, want %d", resp.ContentLength, c.layer.Size)
	}
	c.wants(c.request("GET", repo+"blobs/"+digest.FromString("absent").String()), 404, "BLOB_UNKNOWN")
	c.wants(c.request("GET", "/v2/library/other/blobs/"+c.layer.Digest.String()), 404, "NAME_UNKNOWN")

	last := len(c.chunks) - 1
	c.arrive(c.chunks[0], c.chunks[last])
	ranged := c.request("GET", path)
	ranged.Header.Set("Range", "bytes=-100")
	if _, got := c.wants(ranged, 206, ""); !bytes.Equal(got, c.bytes[len(c.bytes)-100:]) {
		t.Errorf("the end has %d other bytes", len(got))
	}
	resp := c.begin(c.request("GET", path))
	first := make([]byte, c.to.Bytes(c.chunks[0]))
	if _, err := io.ReadFull(resp.Body, first); err != nil || resp.StatusCode != 200 {
		t.Fatalf("the first chunk of the layer: %s, %v", resp.Status, err)
	}
	imported := make(chan error, 1)
	go func() { imported <- c.to.Import(t.Context(), comingRef) }()
	c.arrive(c.chunks[1:last]...)
	rest, err := io.ReadAll(resp.Body)
	if got := append(first, rest...); err != nil || !bytes.Equal(got, c.bytes) {
		t.Errorf("the layer: %d of %d bytes, %v", len(got), len(c.bytes), err)
	}
	if err := <-imported; err != nil {
		t.Fatal(err)
	}
	c.catalog.set(comingRef, c.target, report.Ready)
	if _, got := c.wants(c.request("GET", path), 200, ""); !bytes.Equal(got, c.bytes) {
		t.Errorf("after the import the layer has %d other bytes", len(got))
	}
}

// TestStreamEnds: what is read of an image that comes no nearer is cut off, and a blob that
// many read while it arrives is refused to those who are too many.
func TestStreamEnds(t *testing.T) {
	t.Parallel()
	c := comes(serve(t))
	c.documents()
	c.arrive(c.chunks[0])
	b := &backend{catalog: c.catalog, images: storeImages{c.store}, streams: make(chan struct{}, 2),
		patience: patience{stalled: 50 * time.Millisecond, total: time.Hour, look: time.Millisecond}}
	open := func() io.ReadCloser {
		t.Helper()
		r, err := b.getBlob(t.Context(), "coming", c.layer.Digest)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	one, two := open(), open()
	if _, err := b.getBlob(t.Context(), "coming", c.layer.Digest); err == nil || !strings.Contains(err.Error(), "2 blobs are read while they arrive") {
		t.Errorf("a third stream: %v", err)
	}
	c.catalog.set(comingRef, c.target, report.Waiting)
	if got, err := io.ReadAll(one); err == nil || !strings.Contains(err.Error(), "nothing of it has arrived for 50ms") {
		t.Errorf("a stream that stalls: %d bytes, %v", len(got), err)
	}
	if err := errors.Join(one.Close(), two.Close()); err != nil {
		t.Fatal(err)
	}
	if err := open().Close(); err != nil { // there is room again
		t.Fatal(err)
	}
}
