package ctrd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
)

// store is the content store as this package reads and labels it.
type store = content.Store

// Content owns the blobs: how they are read, walked, written, verified and replaced.
type Content struct {
	conn   *Conn
	leases *Leases
	files  *Files

	mu      sync.Mutex
	damaged map[digest.Digest]Stamp
}

// Explain says what an error of containerd means: errors.Is finds fs.ErrNotExist and
// ErrUnavailable in it.
func (c *Content) Explain(err error) error { return c.conn.fail(err) }

// ContentStore is containerd's content store, to be used with the context that comes
// with it.
func (c *Content) ContentStore(ctx context.Context) (context.Context, content.Store, error) {
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return nil, nil, err
	}
	return ctx, cl.ContentStore(), nil
}

// Has asks the content store for a blob. One that has no file is not there: containerd
// writes the file before it books the blob, and need not be asked.
func (c *Content) Has(ctx context.Context, dgst digest.Digest) (bytes int64, ok bool, err error) {
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return 0, false, err
	}
	if c.files.fileless(ctx, dgst) || c.Damaged(ctx, dgst) {
		return 0, false, nil
	}
	info, err := cl.ContentStore().Info(ctx, dgst)
	if errdefs.IsNotFound(err) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for blob %s: %w", dgst, c.conn.fail(err))
	}
	return info.Size, true, nil
}

// Reader reads a committed blob.
type Reader interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// ReaderAt opens a blob; the error wraps fs.ErrNotExist where it is not there.
//
// The blob's file is read where this process can, since the content API costs
// forty times the CPU for the same bytes (measured: 2 CPU-s per GB against
// 0.05), and through the API everywhere else. Neither verifies what is read:
// whoever knows its digest does.
func (c *Content) ReaderAt(ctx context.Context, dgst digest.Digest) (Reader, error) {
	if f := c.files.openFile(ctx, dgst); f != nil {
		return f, nil
	}
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	ra, err := cl.ContentStore().ReaderAt(ctx, ocispec.Descriptor{Digest: dgst})
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", dgst, c.conn.fail(err))
	}
	return ra, nil
}

// mediaType reads what a manifest or index says that it is.
func (c *Content) mediaType(ctx context.Context, cl *client.Client, desc ocispec.Descriptor) (string, error) {
	if desc.Size > artifact.MaxDocBytes {
		return "", fmt.Errorf("%d bytes are too many for a manifest", desc.Size)
	}
	p, err := content.ReadBlob(ctx, c.once(cl), desc)
	if err != nil {
		return "", c.conn.fail(err)
	}
	var doc struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
		Config    json.RawMessage   `json:"config"`
	}
	if err := json.Unmarshal(p, &doc); err != nil {
		return "", err
	}
	switch {
	case images.IsIndexType(doc.MediaType) || images.IsManifestType(doc.MediaType):
		return doc.MediaType, nil
	case doc.MediaType == "" && doc.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case doc.MediaType == "" && doc.Config != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", fmt.Errorf("its media type is %q", doc.MediaType)
}

// label sets the labels by which garbage collection finds an image's blobs from
// its target, for those that are here.
func (c *Content) label(ctx context.Context, cs *once, target ocispec.Descriptor) error {
	present := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := images.Children(ctx, cs, desc)
		if err != nil {
			return nil, err
		}
		var here []ocispec.Descriptor
		for _, child := range children {
			ok, err := cs.has(ctx, child.Digest)
			if err != nil {
				return nil, err
			}
			if ok {
				here = append(here, child)
			}
		}
		return here, nil
	})
	err := images.Walk(ctx, images.SetChildrenMappedLabels(cs, present, images.ChildGCLabels), target)
	if err != nil {
		return fmt.Errorf("label the blobs of %s: %w", target.Digest, c.conn.fail(err))
	}
	return nil
}

// unlabelled is a blob that garbage collection does not find from its image's
// target by labels: somebody removed them (`ctr content prune references` does),
// and what is here now is gone soon.
func (c *Content) unlabelled(ctx context.Context, cs store, target digest.Digest, blobs []Blob) (digest.Digest, error) {
	kept := map[digest.Digest]bool{target: true}
	for _, b := range blobs { // parents come before their children
		if !kept[b.Digest] {
			return b.Digest, nil
		}
		info, err := cs.Info(ctx, b.Digest)
		if err != nil {
			return "", fmt.Errorf("look for blob %s: %w", b.Digest, c.conn.fail(err))
		}
		for label, child := range info.Labels {
			if strings.HasPrefix(label, labelContent) {
				kept[digest.Digest(child)] = true
			}
		}
	}
	return "", nil
}

// OnlyManifest is the one container image of an index, for which containerd chooses by
// platform, and a manifest itself. It is an error where there are several.
func (c *Content) OnlyManifest(ctx context.Context, target ocispec.Descriptor) (ocispec.Descriptor, error) {
	if !images.IsIndexType(target.MediaType) {
		return target, nil
	}
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	cs := c.once(cl)
	var found []ocispec.Descriptor
	var look func(d ocispec.Descriptor, depth int) error
	look = func(d ocispec.Descriptor, depth int) error {
		children, err := images.Children(ctx, cs, d)
		if err != nil {
			return err
		}
		for _, child := range children {
			if ok, err := cs.has(ctx, child.Digest); err != nil || !ok {
				if err != nil {
					return err
				}
				continue
			}
			if images.IsIndexType(child.MediaType) && depth < artifact.MaxIndexDepth {
				if err := look(child, depth+1); err != nil {
					return err
				}
				continue
			}
			k, err := artifact.Classify(ctx, cs, child)
			if err != nil {
				return err
			}
			if k.Artifact == "" {
				found = append(found, child)
			}
		}
		return nil
	}
	if err := look(target, 0); err != nil && !errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, fmt.Errorf("read index %s: %w", target.Digest, c.conn.fail(err))
	}
	if len(found) != 1 {
		return ocispec.Descriptor{}, fmt.Errorf("--any-platform is for an image of one platform; %s is an index of %d that are here, and containerd takes the one for its platform", target.Digest, len(found))
	}
	return ocispec.Descriptor{MediaType: found[0].MediaType, Digest: found[0].Digest, Size: found[0].Size}, nil
}
