package ctrd

import (
	"bytes"
	"context"
	"fmt"
	"maps"

	"seeder/store/artifact"
	"seeder/store/ctrd/ingest"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// MaxWholeBytes is how large a blob WriteWhole takes: a message of containerd's API
// has at most 16 MiB.
const MaxWholeBytes = 8 << 20

// WriteWhole writes a blob that is at hand, with labels, and commits it: in one message
// where an Ingest needs four, each with an answer to wait for. A manifest or index keeps
// what it names from garbage collection from then on: it may have a name already, whose
// damaged blob it replaces. What an earlier try wrote is written anew. Under a lease a blob that exists already is protected by it; the
// error is ErrExists then, and its labels are left as they are. What does not have the
// blob's size and digest stays (ErrMismatch), until Abort.
func (c *Content) WriteWhole(ctx context.Context, desc ocispec.Descriptor, p []byte, labels map[string]string) error {
	if len(p) > MaxWholeBytes {
		return fmt.Errorf("write blob %s: %d bytes at once, at most %d", desc.Digest, len(p), MaxWholeBytes)
	}
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return err
	}
	labels = withChildren(ctx, desc, p, labels)
	err = c.whereGone(ctx, cl, desc.Digest, func() error {
		return ingest.WithRef(ctx, desc.Digest, func(ref string) error {
			if conn, ok := cl.Conn().(grpc.ClientConnInterface); ok && c.conn.embedded == nil {
				return c.shared(ctx, func() error { return ingest.CommitWhole(ctx, conn, ref, desc, p, labels) })
			}
			return ingest.WriteWhole(ctx, guarded{cl.ContentStore(), c}, ref, desc, p, labels)
		})
	})
	switch {
	case errdefs.IsAlreadyExists(err):
		return ErrExists
	case errdefs.IsFailedPrecondition(err):
		return fmt.Errorf("write blob %s: %w: %w", desc.Digest, ErrMismatch, err)
	case err != nil:
		return fmt.Errorf("write blob %s: %w", desc.Digest, c.conn.fail(err))
	}
	return nil
}

// whereGone calls write. Where containerd says that it has the blob, whose file is gone,
// it is told to forget the blob, and write is called again.
func (c *Content) whereGone(ctx context.Context, cl *client.Client, dgst digest.Digest, write func() error) error {
	err := write()
	if !errdefs.IsAlreadyExists(err) || !c.files.fileless(ctx, dgst) {
		return err
	}
	c.conn.log.Warn("found a blob without its file in containerd; writing it again", "blob", dgst)
	if err := c.keepChildren(ctx, cl, dgst); err != nil {
		return fmt.Errorf("keep what blob %s refers to: %w", dgst, err)
	}
	if err := cl.ContentStore().Delete(ctx, dgst); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return write()
}

// withChildren adds the labels by which a manifest or index keeps what it names. Whoever
// reads one that is invalid says so.
func withChildren(ctx context.Context, desc ocispec.Descriptor, p []byte, labels map[string]string) map[string]string {
	var values artifact.Values
	values.Write(p)
	if !artifact.Names(desc.MediaType) || values.Check(desc.Digest.String()) != nil {
		return labels
	}
	children, err := images.Children(ctx, atHand(p), desc)
	if err != nil {
		return labels
	}
	all := &noted{labels: map[string]string{}}
	maps.Copy(all.labels, labels)
	is := func(context.Context, ocispec.Descriptor) ([]ocispec.Descriptor, error) { return children, nil }
	if _, err := images.SetChildrenMappedLabels(all, is, images.ChildGCLabels)(ctx, desc); err != nil {
		return labels
	}
	return all.labels
}

// noted notes what containerd would be told to label.
type noted struct {
	content.Manager
	labels map[string]string
}

// Update implements content.Manager.
func (n *noted) Update(_ context.Context, info content.Info, _ ...string) (content.Info, error) {
	maps.Copy(n.labels, info.Labels)
	return info, nil
}

// atHand provides the one blob that it is.
type atHand []byte

// ReaderAt implements content.Provider.
func (p atHand) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return openBytes{bytes.NewReader(p)}, nil
}

type openBytes struct{ *bytes.Reader }

// Close implements content.ReaderAt.
func (openBytes) Close() error { return nil }
