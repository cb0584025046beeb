package archive

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
)

// ingester is the content store for one archive. Its writers have names of
// their own: containerd's importer names them after the entries of the archive, so
// that it would go on with what the import of another one left unfinished.
type ingester struct {
	content.Store
	blobs  Blobs
	prefix string

	mu      sync.Mutex
	digests map[string]digest.Digest // of what was committed, by the entry's name; "" of what was not
}

// replaceError says why a damaged blob could not be replaced: the archive is not at fault.
type replaceError struct{ error }

// Unwrap is the cause.
func (e *replaceError) Unwrap() error { return e.error }

// tarRef is what the importer puts before the name of an entry.
const tarRef = "tar-"

// Writer implements content.Ingester.
func (s *ingester) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	s.note(o.Ref, "")
	opts = append(opts, content.WithRef(s.prefix+o.Ref))
	w, err := s.Store.Writer(ctx, opts...)
	var labels map[string]string
	if errdefs.IsAlreadyExists(err) && o.Desc.Digest != "" {
		var rerr error
		if _, labels, rerr = s.blobs.MakeWay(ctx, o.Desc.Digest); rerr != nil {
			return nil, &replaceError{rerr}
		}
		w, err = s.Store.Writer(ctx, opts...) // it may be gone: somebody else replaces it, too
	}
	if err != nil {
		return nil, err
	}
	return &writer{Writer: w, store: s, ref: o.Ref, labels: labels, digester: digest.SHA256.Digester()}, nil
}

// ReaderAt implements content.Provider. The importer reads the config that a manifest.json
// names into memory, whatever entry that is; of layers it reads the beginning.
func (s *ingester) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := s.Store.ReaderAt(ctx, desc)
	if err != nil || !images.IsConfigType(desc.MediaType) && !images.IsManifestType(desc.MediaType) && !images.IsIndexType(desc.MediaType) {
		return ra, err
	}
	if err := artifact.CheckDocument(desc.Digest, ra.Size()); err != nil {
		return nil, errors.Join(&refusedError{err.Error()}, ra.Close())
	}
	return ra, nil
}

func (s *ingester) note(ref string, d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.digests[ref] = d
}

// Walk implements content.Manager. The importer looks for layers that are here already
// in a compressed form, to take them instead of those of the archive: damaged ones are
// passed over.
func (s *ingester) Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error {
	return s.Store.Walk(ctx, func(info content.Info) error {
		if intact, err := s.blobs.Verify(ctx, info.Digest); err != nil || !intact {
			return nil
		}
		return fn(info)
	}, filters...)
}

// writer writes from the beginning to the end.
type writer struct {
	content.Writer
	store    *ingester
	ref      string
	labels   map[string]string // of the damaged blob in whose place this one comes
	digester digest.Digester   // containerd says what the digest is after Commit, and only where that went well
}

// Write implements content.Writer.
func (w *writer) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.digester.Hash().Write(p[:n])
	return n, err
}

// Digest implements content.Writer.
func (w *writer) Digest() digest.Digest { return w.digester.Digest() }

// Commit implements content.Writer. What containerd has of the blob is replaced if it is
// damaged.
func (w *writer) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	removed, labels, err := w.store.blobs.MakeWay(ctx, w.Digest())
	if err != nil {
		return &replaceError{err}
	}
	if removed {
		w.labels = labels
	}
	if w.labels != nil {
		opts = append(opts, content.WithLabels(w.labels))
	}
	err = w.Writer.Commit(ctx, size, expected, opts...)
	if err == nil || errdefs.IsAlreadyExists(err) {
		w.store.note(w.ref, w.Digest())
	}
	return err
}

// misnamed is an error where an entry below blobs/ holds other bytes than its name
// says.
func (s *ingester) misnamed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, got := range s.digests {
		if want := digestInName(strings.TrimPrefix(ref, tarRef)); want != "" && got != "" && got != want {
			return refusef("what it has as %s has the digest %s", want, got)
		}
	}
	return nil
}

// digestInName is the SHA-256 digest that the name of an entry says, "" where it says
// none. It is plain hexadecimal in OCI layouts; rules_oci of Bazel writes HEX.tar.gz, others
// sha256:HEX.
func digestInName(entry string) digest.Digest {
	name, ok := strings.CutPrefix(entry, "blobs/"+string(digest.SHA256)+"/")
	if !ok {
		return ""
	}
	name = strings.TrimPrefix(name, string(digest.SHA256)+":")
	hex, _, _ := strings.Cut(name, ".")
	d := digest.NewDigestFromEncoded(digest.SHA256, hex)
	if d.Validate() != nil {
		return ""
	}
	return d
}

// abort throws away what was not committed.
func (s *ingester) abort(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, d := range s.digests {
		if d == "" {
			_ = s.Abort(ctx, s.prefix+ref) // garbage collection gets what is left
		}
	}
}
