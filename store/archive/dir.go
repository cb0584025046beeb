package archive

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
)

// Dir is a directory to which archives are read whose images are to be sent elsewhere. It
// implements Blobs without a containerd. Blobs in it were verified when they were written.
type Dir struct{ store content.Store }

// OpenDir returns the Dir at path, which is made if it is not there.
func OpenDir(path string) (*Dir, error) {
	s, err := local.NewStore(path)
	if err != nil {
		return nil, fmt.Errorf("make a directory for an archive's blobs: %w", err)
	}
	return &Dir{s}, nil
}

// Read is the function Read, for this directory.
func (d *Dir) Read(ctx context.Context, r io.Reader, ref string) (imgs []Image, leftOut []string, err error) {
	return Read(ctx, d, func(context.Context) error { return nil }, r, ref)
}

// maxImageBlobs bounds the blobs of an image, over all its platforms.
const maxImageBlobs = 10_000

// Blobs are those of an image that the archive has: layers and configs first, then manifests
// and indexes, each after what it names. Of an index only some manifests may be there; all
// of a manifest has to be.
func (d *Dir) Blobs(ctx context.Context, target ocispec.Descriptor) (blobs, manifests []ocispec.Descriptor, err error) {
	seen := map[digest.Digest]bool{}
	var walk func(ocispec.Descriptor) error
	walk = func(desc ocispec.Descriptor) error {
		if seen[desc.Digest] {
			return nil
		}
		if seen[desc.Digest] = true; len(seen) > maxImageBlobs {
			return fmt.Errorf("the image has more than %d blobs", maxImageBlobs)
		}
		info, err := d.store.Info(ctx, desc.Digest)
		if err != nil {
			return err
		}
		desc.Size = info.Size
		if !images.IsManifestType(desc.MediaType) && !images.IsIndexType(desc.MediaType) {
			blobs = append(blobs, desc)
			return nil
		}
		below, err := images.Children(ctx, documents{d.store}, desc)
		if err != nil {
			return fmt.Errorf("read the manifest %s: %w", desc.Digest, err)
		}
		for _, child := range below {
			_, err := d.store.Info(ctx, child.Digest)
			switch {
			case err == nil:
				err = walk(child)
			case errdefs.IsNotFound(err) && images.IsIndexType(desc.MediaType):
				err = nil // of another platform
			case errdefs.IsNotFound(err):
				err = fmt.Errorf("the archive is incomplete: %s of %s is not in it", child.Digest, desc.Digest)
			}
			if err != nil {
				return err
			}
		}
		manifests = append(manifests, desc)
		return nil
	}
	return blobs, manifests, walk(target)
}

// Open opens a blob.
func (d *Dir) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := d.store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("open the blob %s: %w", desc.Digest, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{content.NewReader(r), r}, nil
}

// ContentStore is part of Blobs.
func (d *Dir) ContentStore(ctx context.Context) (context.Context, content.Store, error) {
	return ctx, d.store, nil
}

// Documents is part of Blobs.
func (d *Dir) Documents(context.Context) (content.Provider, error) { return documents{d.store}, nil }

// documents refuses what is too large to be read into memory.
type documents struct{ content.Provider }

// ReaderAt implements content.Provider.
func (d documents) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := d.Provider.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	if err := artifact.CheckDocument(desc.Digest, ra.Size()); err != nil {
		return nil, errors.Join(err, ra.Close())
	}
	return ra, nil
}

// Verify is part of Blobs.
func (d *Dir) Verify(ctx context.Context, dgst digest.Digest) (intact bool, err error) {
	_, err = d.store.Info(ctx, dgst)
	return err == nil, err
}

// MakeWay is part of Blobs.
func (d *Dir) MakeWay(context.Context, digest.Digest) (bool, map[string]string, error) {
	return false, nil, nil
}

// Explain is part of Blobs.
func (d *Dir) Explain(err error) error { return err }

// ReaderAt is part of Blobs.
func (d *Dir) ReaderAt(ctx context.Context, dgst digest.Digest) (content.ReaderAt, error) {
	return d.store.ReaderAt(ctx, ocispec.Descriptor{Digest: dgst})
}
