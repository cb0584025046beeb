// Package archive reads image archives: docker-archives and OCI layouts, as tar files
// that are plain or compressed.
//
// It owns what an archive is taken for, what of it is refused and why, which of its images
// are meant and how they are called. It writes blobs to a content store that it is given,
// and never a name, a lease or a snapshot: who calls it does.
//
// Invariant: nothing of an archive is written as a path, and a blob is committed only
// under the digest that its bytes have.
package archive

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
)

// ErrNotArchive says that what was to be imported is not an image archive.
var ErrNotArchive = errors.New("not a docker-archive or OCI-layout tar file")

// Blobs is containerd's content store as an import needs it.
type Blobs interface {
	// ContentStore is containerd's own, to be used with the context that comes with it.
	ContentStore(ctx context.Context) (context.Context, content.Store, error)
	// Documents reads manifests, indexes and configs, which are verified.
	Documents(ctx context.Context) (content.Provider, error)
	// Verify reads a blob and reports whether its bytes match its digest. The error wraps
	// fs.ErrNotExist where it is missing.
	Verify(ctx context.Context, dgst digest.Digest) (intact bool, err error)
	// MakeWay removes a blob that is damaged, so that it can be written again, and returns
	// the labels that it had.
	MakeWay(ctx context.Context, dgst digest.Digest) (removed bool, labels map[string]string, err error)
	// Explain adds to an error of containerd what it means.
	Explain(err error) error
	// ReaderAt opens a blob; nothing of what is read is verified.
	ReaderAt(ctx context.Context, dgst digest.Digest) (content.ReaderAt, error)
}

// Image is one image of an archive.
type Image struct {
	Reference string // its full name
	Target    ocispec.Descriptor
}

// Read reads a docker-archive or OCI layout, plain, gzip, zstd, bzip2 or lz4, and writes its
// blobs. Of a delta archive (Contents) it writes the layers that the deltas make; where blobs
// that it builds on are not here that is a *BaseError, and nothing is written. It returns the images that have a name in it, or with ref only the one of that
// name (an archive of one image is given that name). Artifacts, as charts and signatures,
// are left out: leftOut says that of them, and of images without a name. room is asked while
// it reads; its error ends that. ctx has the lease that protects what is written.
func Read(ctx context.Context, blobs Blobs, room func(context.Context) error, r io.Reader, ref string) (imgs []Image, leftOut []string, err error) {
	found, tags, err := readBlobs(ctx, blobs, room, r)
	if err != nil {
		return nil, nil, err
	}
	chosen, leftOut, err := choose(found, ref)
	if err != nil {
		return nil, nil, err
	}
	if ref == "" {
		leftOut = append(tags, leftOut...)
	}
	for _, a := range chosen {
		imgs = append(imgs, Image{Reference: a.ref, Target: a.target})
	}
	return imgs, leftOut, nil
}

// refPrefix begins the names of the writers of an import.
const refPrefix = "seeder-"

// readBlobs writes an archive's blobs to the content store.
func readBlobs(ctx context.Context, blobs Blobs, room func(context.Context) error, r io.Reader) (found []archived, leftOut []string, _ error) {
	ctx, cs, err := blobs.ContentStore(ctx)
	if err != nil {
		return nil, nil, err
	}
	src := &sourceReader{r: r}
	plain, err := decompress(src)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNotArchive, src.or(err))
	}
	defer plain.Close()
	asked := func() error { return room(ctx) }
	sniffed := bufio.NewReaderSize(&roomReader{r: plain, room: asked}, sniffBytes)
	if head, _ := sniffed.Peek(sniffBytes); IsDelta(head) { // its error comes again
		found, err := readDelta(ctx, cs, blobs, asked, sniffed)
		if err != nil {
			return nil, nil, notArchive(blobs, err, src, &shape{image: true, entries: 1})
		}
		return found, nil, nil
	}
	checked := checkedTar(sniffed)
	defer checked.Close()
	into := &ingester{Store: cs, blobs: blobs, prefix: refPrefix + rand.Text() + "-", digests: map[string]digest.Digest{}}
	top, err := archive.ImportIndex(ctx, into, checked)
	if err == nil { // it may be refused for its end
		_, err = io.Copy(io.Discard, checked)
	}
	if err == nil {
		err = into.misnamed()
	}
	if err != nil {
		into.abort(context.WithoutCancel(ctx))
		checked.Close()
		return nil, nil, notArchive(blobs, err, src, &checked.shape)
	}
	return inIndex(ctx, blobs, top, &checked.shape)
}

// inIndex are the images and artifacts of an archive's index, and what is to be said of
// tags that none of them has.
func inIndex(ctx context.Context, blobs Blobs, top ocispec.Descriptor, s *shape) (out []archived, leftOut []string, _ error) {
	cs, err := blobs.Documents(ctx)
	if err != nil {
		return nil, nil, err
	}
	p, err := content.ReadBlob(ctx, cs, top)
	if err != nil {
		return nil, nil, fmt.Errorf("import the archive: %w", blobs.Explain(err))
	}
	var idx ocispec.Index
	if err := json.Unmarshal(p, &idx); err != nil {
		return nil, nil, fmt.Errorf("%w: its index.json is not an OCI index", ErrNotArchive)
	}
	for _, m := range idx.Manifests {
		a := archived{target: ocispec.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}}
		if a.kind, err = artifact.Classify(ctx, cs, m); err != nil {
			return nil, nil, fmt.Errorf("import the archive: %w", blobs.Explain(err))
		}
		a.nameBy(m.Annotations)
		out = append(out, a)
	}
	if len(out) == 0 {
		return nil, nil, fmt.Errorf("%w: there is no image in it", ErrNotArchive)
	}
	if !s.layout {
		leftOut = nameByTags(out, s.tags)
	}
	return out, leftOut, nil
}

// notArchive tells what is wrong with an archive from what else went wrong.
func notArchive(blobs Blobs, err error, src *sourceReader, s *shape) error {
	var refused *refusedError
	var full interface{ Waiting() string }
	var syntax *json.SyntaxError
	var types *json.UnmarshalTypeError
	var replace *replaceError
	var base *BaseError
	switch werr := blobs.Explain(err); {
	case errors.As(err, &base):
		return base
	case errors.As(err, &refused):
		return fmt.Errorf("%w: %w", ErrNotArchive, refused)
	case src.err != nil, errors.As(err, &full), errors.As(err, &replace), errdefs.IsUnavailable(err), errors.Is(err, context.Canceled):
		return fmt.Errorf("import the archive: %w", src.or(werr))
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("%w: %w", ErrNotArchive, tarError(s.entries, err))
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it is cut off; create it again", ErrNotArchive)
	case s.refusal() != nil:
		return fmt.Errorf("%w: %w", ErrNotArchive, s.refusal())
	case errors.As(err, &syntax), errors.As(err, &types):
		return fmt.Errorf("%w: its manifest.json or oci-layout is not what docker save or an OCI layout has there", ErrNotArchive)
	case strings.HasPrefix(err.Error(), "unrecognized image format"):
		return fmt.Errorf("%w: it has neither a manifest.json nor an oci-layout with index.json at its top", ErrNotArchive)
	}
	return fmt.Errorf("%w: %w", ErrNotArchive, err)
}
