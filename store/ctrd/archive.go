package ctrd

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrNotArchive says that what was to be imported is no image archive.
var ErrNotArchive = errors.New("not a docker-archive or OCI-layout tar file")

// archived is one image of an archive.
type archived struct {
	ref    string // "" where the archive has no full name for it
	target ocispec.Descriptor
}

// ImportArchive reads a docker-archive or OCI layout, plain, gzip or zstd, and
// names what it brought: every image with a name in it, or with ref only the one
// of that name (an archive of one image is given that name). It returns the
// names, sorted. Where anything fails nothing is named, and what was written is
// left to garbage collection.
func (c *Containerd) ImportArchive(ctx context.Context, r io.Reader, ref string) (_ []string, err error) {
	lctx, release, err := c.Lease(ctx, "archive-"+rand.Text())
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, release(ctx))
		if err != nil {
			err = errors.Join(err, c.collectIn(context.WithoutCancel(ctx))) // in process
		}
	}()
	found, err := c.readArchive(lctx, r)
	if err != nil {
		return nil, err
	}
	chosen, err := choose(found, ref)
	if err != nil {
		return nil, err
	}
	for _, a := range chosen {
		if _, err := c.Walk(lctx, a.target); err != nil {
			return nil, fmt.Errorf("archive: %w", err)
		}
	}
	var names []string
	for _, a := range chosen {
		if err := c.Settle(lctx, a.ref, a.target); err != nil {
			return nil, err
		}
		names = append(names, a.ref)
	}
	slices.Sort(names)
	return names, nil
}

// Settle unpacks and publishes an image whose blobs are all here. It is
// idempotent; the caller holds a lease.
func (c *Containerd) Settle(ctx context.Context, ref string, target ocispec.Descriptor) error {
	u, err := c.Unpacker(ctx, target)
	if err != nil {
		return err
	}
	if u != nil {
		if err := u.Finish(ctx); err != nil {
			return err
		}
	}
	return c.Publish(ctx, ref, target)
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
	cs := cl.ContentStore()
	top, err := archive.ImportIndex(ctx, cs, plain)
	if err != nil {
		if werr := c.fail(err); errors.Is(werr, ErrUnavailable) || src.err != nil {
			return nil, fmt.Errorf("import the archive: %w", src.or(werr))
		}
		return nil, fmt.Errorf("%w: %w", ErrNotArchive, err)
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
		out = append(out, archived{ref: archiveName(m.Annotations), target: target})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: there is no image in it", ErrNotArchive)
	}
	return out, nil
}

// archiveName is the full name that an archive gives an image. An OCI layout may
// name only a tag; that is no name.
func archiveName(annotations map[string]string) string {
	for _, key := range []string{images.AnnotationImageName, ocispec.AnnotationRefName} {
		name := annotations[key]
		if key == ocispec.AnnotationRefName && !strings.ContainsAny(name, "/:") {
			continue
		}
		if named, err := reference.ParseDockerRef(name); name != "" && err == nil {
			return named.String()
		}
	}
	return ""
}

// choose picks the images to name.
func choose(found []archived, ref string) ([]archived, error) {
	if ref == "" {
		var named []archived
		for _, a := range found {
			if a.ref != "" {
				named = append(named, a)
			}
		}
		if len(named) == 0 {
			return nil, fmt.Errorf("the archive has no name for its image; say how it shall be called: seeder announce REF --from FILE")
		}
		return named, nil
	}
	var names []string
	for _, a := range found {
		if a.ref == ref {
			return []archived{a}, nil
		}
		names = append(names, a.ref)
	}
	if len(found) > 1 {
		return nil, fmt.Errorf("the archive has no image %s; it has %s", ref, strings.Join(names, ", "))
	}
	return []archived{{ref: ref, target: found[0].target}}, nil
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
