package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// MaxWholeBytes is how large a blob WriteWhole takes: a message of containerd's API
// has at most 16 MiB.
const MaxWholeBytes = 8 << 20

// WriteWhole writes a blob that is at hand, with labels, and commits it: in one message
// where an Ingest needs four, each with an answer to wait for. What an earlier try wrote
// is written anew. Under a lease a blob that exists already is protected by it; the
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
	err = c.whereGone(ctx, cl, desc.Digest, func() error {
		return c.withRef(ctx, desc.Digest, func(ref string) error {
			if conn, ok := cl.Conn().(grpc.ClientConnInterface); ok && c.conn.embedded == nil {
				return c.shared(func() error { return commitWhole(ctx, conn, ref, desc, p, labels) })
			}
			return writeWhole(ctx, guarded{cl.ContentStore(), c}, ref, desc, p, labels)
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
	if err := cl.ContentStore().Delete(ctx, dgst); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return write()
}

// commitWhole asks for a commit in the first message of the stream, which containerd's
// client has no call for. Data at offset 0 replaces what is there under the ref.
func commitWhole(ctx context.Context, conn grpc.ClientConnInterface, ref string, desc ocispec.Descriptor, p []byte, labels map[string]string) error {
	stream, err := contentapi.NewContentClient(conn).Write(ctx)
	if err != nil {
		return errgrpc.ToNative(err)
	}
	err = stream.Send(&contentapi.WriteContentRequest{
		Action: contentapi.WriteAction_COMMIT, Ref: ref,
		Total: desc.Size, Expected: desc.Digest.String(), Data: p, Labels: labels,
	})
	if err != nil && !errors.Is(err, io.EOF) { // what ended the stream is what is received
		return errgrpc.ToNative(err)
	}
	if err := stream.CloseSend(); err != nil {
		return errgrpc.ToNative(err)
	}
	for { // a stream that is not read to its end is kept until ctx ends
		_, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errgrpc.ToNative(err)
		}
	}
}

// writeWhole is commitWhole for a content store in this process.
func writeWhole(ctx context.Context, cs store, ref string, desc ocispec.Descriptor, p []byte, labels map[string]string) error {
	w, err := cs.Writer(ctx, content.WithRef(ref), content.WithDescriptor(desc))
	if err != nil {
		return err
	}
	err = w.Truncate(0)
	if err == nil {
		_, err = w.Write(p)
	}
	if err == nil {
		err = w.Commit(ctx, desc.Size, desc.Digest, content.WithLabels(labels))
	}
	return errors.Join(err, w.Close())
}
