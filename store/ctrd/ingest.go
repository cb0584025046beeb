package ctrd

import (
	"context"
	"errors"
	"fmt"

	"seeder/store/ctrd/ingest"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Ingest is a blob being written. It is not safe for concurrent use.
type Ingest struct {
	content *Content
	desc    ocispec.Descriptor
	w       content.Writer
	off     int64
}

// Ingest begins to write a blob, or goes on where an earlier try stopped. Under
// a lease a blob that exists already is protected by it; the error is ErrExists
// then.
func (c *Content) Ingest(ctx context.Context, desc ocispec.Descriptor) (*Ingest, error) {
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	cs := guarded{cl.ContentStore(), c}
	var w content.Writer
	err = c.whereGone(ctx, cl, desc.Digest, func() error {
		return ingest.WithRef(ctx, desc.Digest, func(ref string) (err error) {
			w, err = cs.Writer(ctx, content.WithRef(ref), content.WithDescriptor(desc))
			return err
		})
	})
	if errdefs.IsAlreadyExists(err) {
		return nil, ErrExists
	}
	if err != nil {
		return nil, fmt.Errorf("begin to write blob %s: %w", desc.Digest, c.conn.fail(err))
	}
	st, err := w.Status()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write blob %s: %w", desc.Digest, c.conn.fail(err)), w.Close())
	}
	return &Ingest{content: c, desc: desc, w: w, off: st.Offset}, nil
}

// Offset is how much of the blob has been written.
func (i *Ingest) Offset() int64 { return i.off }

// Write appends to the blob. 4 to 8 MiB at once are fastest; a message of
// containerd's API takes at most 16 MiB.
func (i *Ingest) Write(p []byte) (int, error) {
	n, err := i.w.Write(p)
	i.off += int64(n)
	if err != nil {
		return n, fmt.Errorf("write blob %s: %w", i.desc.Digest, i.content.conn.fail(err))
	}
	return n, nil
}

// Commit makes the blob visible, with labels, once containerd has verified size and
// digest. What was written stays where they do not match (ErrMismatch), until Abort.
// ErrExists: another writer was sooner, and its labels stand.
func (i *Ingest) Commit(ctx context.Context, labels map[string]string) error {
	ctx, _, err := i.content.conn.use(ctx)
	if err != nil {
		return err
	}
	err = i.w.Commit(ctx, i.desc.Size, i.desc.Digest, content.WithLabels(labels))
	switch {
	case errdefs.IsAlreadyExists(err):
		return ErrExists
	case errdefs.IsFailedPrecondition(err):
		return fmt.Errorf("commit blob %s: %w: %w", i.desc.Digest, ErrMismatch, err)
	case err != nil:
		return fmt.Errorf("commit blob %s: %w", i.desc.Digest, i.content.conn.fail(err))
	}
	return nil
}

// Close ends the writing; what was written stays for the next try unless it was
// committed.
func (i *Ingest) Close() error { return i.w.Close() }

// Abort throws away an unfinished blob.
func (c *Content) Abort(ctx context.Context, dgst digest.Digest) error {
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return err
	}
	if err := ingest.Abort(ctx, cl.ContentStore(), dgst); err != nil {
		return fmt.Errorf("throw away the unfinished blob %s: %w", dgst, c.conn.fail(err))
	}
	return nil
}
