package ctrd

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrNotArchive says that what was to be imported is no image archive.
var ErrNotArchive = errors.New("not a docker-archive or OCI-layout tar file")

// archived is one image of an archive.
type archived struct {
	ref    string // "" where the archive has no full name for it
	said   string // the name that it has for it then, which is none; "" where it has nothing
	target ocispec.Descriptor
}

// unnamed is what can be said of an image without a reference.
func (a archived) unnamed() string {
	if a.said != "" {
		return fmt.Sprintf("%.80q, which is no image reference", a.said)
	}
	return a.target.Digest.String() + ", which has no name"
}

// ForArchive begins the names of the leases of ImportArchive.
const ForArchive = "archive-"

// ImportArchive reads a docker-archive or OCI layout, plain, gzip or zstd, and
// names what it brought: every image with a name in it, or with ref only the one
// of that name (an archive of one image is given that name). It returns the
// names, sorted, and without ref what is said of images that have none. Where
// anything fails nothing is named, and what was written is left to garbage
// collection.
func (c *Containerd) ImportArchive(ctx context.Context, r io.Reader, ref string) (names, unnamed []string, err error) {
	lctx, release, err := c.Lease(ctx, ForArchive+rand.Text())
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		err = errors.Join(err, release(ctx))
		if err != nil {
			err = errors.Join(err, c.collectIn(context.WithoutCancel(ctx))) // in process
		}
	}()
	found, err := c.readArchive(lctx, r)
	if err != nil {
		return nil, nil, err
	}
	chosen, unnamed, err := choose(found, ref)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range chosen {
		if _, err := c.Walk(lctx, a.target); err != nil {
			return nil, nil, inArchive(err)
		}
	}
	for _, a := range chosen {
		if err := c.Settle(lctx, a.ref, a.target); err != nil {
			return nil, nil, err
		}
		names = append(names, a.ref)
	}
	slices.Sort(names)
	return slices.Compact(names), unnamed, nil
}

// inArchive says of an archive what is said of containerd.
func inArchive(err error) error {
	var missing *MissingError
	if !errors.As(err, &missing) {
		return fmt.Errorf("archive: %w", err)
	}
	return absentf("the archive is incomplete: %s %s (%d bytes) of image %s is not in it",
		missing.What, missing.Missing.Digest, missing.Missing.Size, missing.Target)
}

// Settle unpacks and publishes an image whose blobs are all here. One that is for
// other platforms is named, so that it can be given to others, and not unpacked. It is
// idempotent; the caller holds a lease. The blobs here are not looked for again.
func (c *Containerd) Settle(ctx context.Context, ref string, target ocispec.Descriptor, here ...digest.Digest) error {
	nctx, cl, err := c.use(ctx)
	if err != nil {
		return err
	}
	if foreign, err := c.isForeign(nctx, c.once(cl), target); err != nil {
		return err
	} else if foreign {
		return c.Publish(ctx, ref, target, here...)
	}
	u, err := c.Unpacker(ctx, target)
	if err != nil {
		return err
	}
	if u != nil {
		if err := u.Finish(ctx); err != nil {
			return err
		}
	}
	return c.Publish(ctx, ref, target, here...)
}

// collectIn is collect in the namespace.
func (c *Containerd) collectIn(ctx context.Context) error {
	ctx, _, err := c.use(ctx)
	if err != nil {
		return err
	}
	return c.collect(ctx)
}

// readArchive writes an archive's blobs to the content store.
func (c *Containerd) readArchive(ctx context.Context, r io.Reader) ([]archived, error) {
	ctx, cl, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	src := &sourceReader{r: r}
	plain, err := compression.DecompressStream(src)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotArchive, src.or(err))
	}
	defer plain.Close()
	checked := checkedTar(&roomReader{r: plain, room: func() error { return c.cfg.Room(ctx) }})
	defer checked.Close()
	cs := &archiveStore{Store: cl.ContentStore(), prefix: leasePrefix + rand.Text() + "-", digests: map[string]digest.Digest{}}
	top, err := archive.ImportIndex(ctx, cs, checked)
	if err == nil { // it may be refused for its end
		_, err = io.Copy(io.Discard, checked)
	}
	if err == nil {
		err = cs.misnamed()
	}
	if err != nil {
		cs.abort(context.WithoutCancel(ctx))
		return nil, c.notArchive(err, src)
	}
	p, err := content.ReadBlob(ctx, cs, top)
	if err != nil {
		return nil, fmt.Errorf("import the archive: %w", c.fail(err))
	}
	var idx ocispec.Index
	if err := json.Unmarshal(p, &idx); err != nil {
		return nil, fmt.Errorf("%w: its index: %w", ErrNotArchive, err)
	}
	var out []archived
	for _, m := range idx.Manifests {
		if !images.IsManifestType(m.MediaType) && !images.IsIndexType(m.MediaType) {
			continue
		}
		target := ocispec.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}
		ref, said := archiveName(m.Annotations)
		out = append(out, archived{ref: ref, said: said, target: target})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: there is no image in it", ErrNotArchive)
	}
	return out, nil
}

// notArchive tells what is wrong with an archive from what else went wrong.
func (c *Containerd) notArchive(err error, src *sourceReader) error {
	var refused *refusedError
	var full interface{ Waiting() string }
	switch werr := c.fail(err); {
	case errors.As(err, &refused):
		return fmt.Errorf("%w: %w", ErrNotArchive, refused)
	case src.err != nil, errors.As(err, &full), errors.Is(werr, ErrUnavailable):
		return fmt.Errorf("import the archive: %w", src.or(werr))
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("%w: it has a damaged or oversized header: %w", ErrNotArchive, err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it is cut off, so make it once more: %w", ErrNotArchive, err)
	}
	return fmt.Errorf("%w: %w", ErrNotArchive, err)
}

// archiveStore is the content store for one archive. Its writers have names of
// their own: containerd's importer names them after the entries of the archive, so
// that it would go on with what the import of another one left unfinished.
type archiveStore struct {
	content.Store
	prefix string

	mu      sync.Mutex
	digests map[string]digest.Digest // of what was committed, by the entry's name; "" of what was not
}

// tarRef is what the importer puts before the name of an entry.
const tarRef = "tar-"

// Writer implements content.Ingester.
func (s *archiveStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	s.note(o.Ref, "")
	w, err := s.Store.Writer(ctx, append(opts, content.WithRef(s.prefix+o.Ref))...)
	if err != nil {
		return nil, err
	}
	return &archiveWriter{Writer: w, store: s, ref: o.Ref}, nil
}

func (s *archiveStore) note(ref string, d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.digests[ref] = d
}

type archiveWriter struct {
	content.Writer
	store *archiveStore
	ref   string
}

// Commit implements content.Writer.
func (w *archiveWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if err == nil || errdefs.IsAlreadyExists(err) {
		w.store.note(w.ref, w.Digest())
	}
	return err
}

// misnamed is an error where an entry of an OCI layout holds other bytes than its
// name says.
func (s *archiveStore) misnamed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, got := range s.digests {
		algorithm, hex, ok := strings.Cut(strings.TrimPrefix(ref, tarRef+"blobs/"), "/")
		if !ok || !strings.HasPrefix(ref, tarRef+"blobs/") || algorithm != got.Algorithm().String() {
			continue
		}
		if want := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex); got != want {
			return refusef("what it has as %s has the digest %s", want, got)
		}
	}
	return nil
}

// abort throws away what was not committed.
func (s *archiveStore) abort(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, d := range s.digests {
		if d == "" {
			_ = s.Abort(ctx, s.prefix+ref) // garbage collection gets what is left
		}
	}
}

// roomEvery is after how many bytes of an archive it is asked whether there is room
// for more.
const roomEvery = 64 << 20

// roomReader ends the reading of an archive before the disk is full.
type roomReader struct {
	r    io.Reader
	room func() error
	left int64 // bytes until it is asked again
}

func (r *roomReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		if err := r.room(); err != nil {
			return 0, err
		}
		r.left = roomEvery
	}
	n, err := r.r.Read(p)
	r.left -= int64(n)
	return n, err
}

// archiveName is the full name that an archive gives an image, or what it says
// instead. An OCI layout may name only a tag; that is no name.
func archiveName(annotations map[string]string) (ref, said string) {
	for _, key := range []string{images.AnnotationImageName, ocispec.AnnotationRefName} {
		name := annotations[key]
		if name == "" || key == ocispec.AnnotationRefName && !strings.ContainsAny(name, "/:") {
			continue
		}
		if named, err := reference.ParseDockerRef(name); err == nil {
			return named.String(), ""
		}
		said = name
	}
	return "", said
}

// choose picks the images to name.
func choose(found []archived, ref string) (chosen []archived, unnamed []string, err error) {
	var names []string
	for _, a := range found {
		switch {
		case a.ref == "":
			unnamed = append(unnamed, a.unnamed())
		case ref == "":
			chosen = append(chosen, a)
		case a.ref == ref:
			return []archived{a}, nil, nil
		default:
			names = append(names, a.ref)
		}
	}
	const mend = "say how it shall be called: seeder announce REF --from FILE"
	switch {
	case len(chosen) > 0:
		return chosen, unnamed, nil
	case ref != "" && len(found) == 1:
		return []archived{{ref: ref, target: found[0].target}}, nil, nil
	case ref != "":
		return nil, nil, fmt.Errorf("the archive has no image %s; it has %s", ref, strings.Join(append(names, unnamed...), ", "))
	case len(found) == 1 && found[0].said != "":
		return nil, nil, fmt.Errorf("the archive calls its image %s; %s", unnamed[0], mend)
	case len(found) == 1:
		return nil, nil, fmt.Errorf("the archive has no name for its image; %s", mend)
	}
	return nil, nil, fmt.Errorf("the archive has %d images and a name for none, so that they cannot be told apart; make an archive of one, and %s", len(found), mend)
}

// sourceReader remembers how the source failed, so that a broken connection is
// not taken for a broken archive.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// or returns how the source failed, else err.
func (s *sourceReader) or(err error) error {
	if s.err != nil {
		return s.err
	}
	return err
}
