package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// socket takes what is pushed over the control socket, whose clients need no credentials:
// only root opens it. What they push is kept with what the listener's clients push. They
// announce by the control API, so that it has no tags.
type socket struct {
	*pusher
	handler http.Handler
	// requests is held for reading by each request: an HTTP server does not wait for those of
	// connections that it closes.
	requests sync.RWMutex
}

func (s *Server) newSocket(b backend, to Publisher) *socket {
	b.pushed = s.staging.open
	k := &socket{pusher: &pusher{&b, s.staging, to, true}}
	funcs := b.funcs()
	k.add(funcs)
	funcs.PushBlob_ = k.pushBlob
	api := http.NewServeMux()
	api.Handle("/", k.mounts(ociserver.New(funcs, &ociserver.Options{DisableReferrersAPI: true, WriteError: s.refuse})))
	// A client asks before it reads an image, which may take minutes.
	api.HandleFunc("GET /v2/{$}", func(w http.ResponseWriter, r *http.Request) {
		if err := k.mayAnnounce(); err != nil {
			s.refuse(w, r, err)
		}
	})
	k.handler = s.decoded(api)
	return k
}

// ServeHTTP answers what comes over the control socket for /v2/. A body may be compressed
// with zstd (Content-Encoding, RFC 8878); digests are those of what it holds.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.socket.requests.TryRLock() {
		s.refuse(w, r, unavailable(errors.New("the daemon is stopping")))
		return
	}
	defer s.socket.requests.RUnlock()
	s.socket.handler.ServeHTTP(w, r)
}

// maxWindow bounds what a decoder of a body remembers, in bytes: what RFC 8878 wants of
// every decoder.
const maxWindow = 8 << 20

// decoded is the handler that gives api bodies as they were before they were compressed.
func (s *Server) decoded(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			if r.ContentLength > maxManifestBytes {
				s.refuse(w, r, ociregistry.NewHTTPError(errLarge, http.StatusRequestEntityTooLarge, nil, nil))
				return
			}
			r.Body = http.MaxBytesReader(w, r.Body, maxManifestBytes)
		}
		r.Body = &patientBody{r.Body, http.NewResponseController(w)}
		switch encoding := r.Header.Get("Content-Encoding"); encoding {
		case "":
		case "zstd":
			d, err := zstd.NewReader(r.Body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
			if err != nil {
				s.refuse(w, r, fmt.Errorf("decode the body: %w", err))
				return
			}
			defer d.Close()
			r.Body = d.IOReadCloser()
			r.Header.Del("Content-Encoding")
			r.ContentLength = -1
		default:
			s.refuse(w, r, ociregistry.NewHTTPError(fmt.Errorf("the encoding %.20q of the body is not supported; want zstd", encoding), http.StatusUnsupportedMediaType, nil, nil))
			return
		}
		api.ServeHTTP(w, r)
	})
}

// pushBlob takes a blob in one request (distribution-spec, "Single POST"). Of one that breaks
// off, or has another digest, nothing stays.
func (k *socket) pushBlob(ctx context.Context, repo string, desc ociregistry.Descriptor, r io.Reader) (ociregistry.Descriptor, error) {
	if err := k.may(ctx, repo); err != nil {
		return ociregistry.Descriptor{}, err
	}
	u, err := k.staging.begin(ctx)
	if err != nil {
		return ociregistry.Descriptor{}, err
	}
	defer u.Close()
	if _, err := io.Copy(u, r); err != nil {
		err = fmt.Errorf("take the blob %s: %w", desc.Digest, err)
		if k.staging.has(u.id) { // it was what reads that failed
			err = errors.Join(err, u.Cancel())
		}
		return ociregistry.Descriptor{}, err
	}
	return u.Commit(desc.Digest)
}

func (s *staging) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uploads[id] != nil
}

// Archive is an OCI archive of an image that was pushed without a tag, all of whose blobs
// are here; it is called ref in it.
func (s *Server) Archive(ctx context.Context, target digest.Digest, ref string) (io.ReadCloser, error) {
	blobs, err := s.socket.closure(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("find what was pushed as %s: %w", target, err)
	}
	top, err := s.socket.either(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("open the manifest that was pushed as %s: %w", target, err)
	}
	desc, err := describe(readManifest(top, target))
	if err != nil {
		return nil, fmt.Errorf("read the manifest that was pushed as %s: %w", target, err)
	}
	r, w := io.Pipe()
	a := &packing{r, make(chan struct{})}
	go func() { // ends with the reader, which Close waits for
		defer close(a.done)
		w.CloseWithError(s.socket.pack(ctx, w, ocispec.Descriptor{MediaType: desc.MediaType, Digest: target, Size: desc.Size}, ref, blobs))
	}()
	return a, nil
}

// packing reads an archive while it is made.
type packing struct {
	*io.PipeReader
	done chan struct{}
}

// Close implements io.Closer.
func (p *packing) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}

// Drop removes what was pushed of an image, once it is imported.
func (s *Server) Drop(ctx context.Context, target digest.Digest) error {
	blobs, err := s.socket.closure(ctx, target)
	if err != nil {
		return fmt.Errorf("find what was pushed as %s: %w", target, err)
	}
	return s.staging.remove(blobs)
}
