package ctrd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ingestTries is how often a locked ref is tried: containerd frees the ref of a
// crashed writer as soon as it sees the connection end.
const ingestTries = 20

const (
	abortTries = 20
	abortPause = 25 * time.Millisecond
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
		return c.withRef(ctx, desc.Digest, func(ref string) (err error) {
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

// ingestRefs are the names under which a blob may be written. One does unless
// containerd has lost it: where its database cannot be written as an ingest begins
// (its disk is full), it keeps the name locked until it is started again.
func ingestRefs(dgst digest.Digest) []string {
	ref := "seeder-" + dgst.String()
	return []string{ref, ref + "-2", ref + "-3", ref + "-4"}
}

// withRef calls write with a name for the blob's ingest. It waits for a name that
// another writer has; one that is locked for longer than anybody takes to notice the
// end of a writer is left for the next.
func (c *Content) withRef(ctx context.Context, dgst digest.Digest, write func(ref string) error) (err error) {
	for i, ref := range ingestRefs(dgst) {
		// A writer is a stream that lives in ctx, so that the wait is bounded here and
		// not by ctx.
		for try := 0; ; try++ {
			err = write(ref)
			if !errdefs.IsUnavailable(err) || try == ingestTries || i > 0 && isLocked(err) {
				break
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(250 * time.Millisecond):
			}
		}
		if !isLocked(err) {
			break
		}
	}
	return err
}

// isLocked tells a ref that is in use from a containerd that is not there: both are
// Unavailable.
func isLocked(err error) bool {
	return errdefs.IsUnavailable(err) && strings.Contains(err.Error(), " locked for ")
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
	for _, ref := range ingestRefs(dgst) {
		if err := c.abort(ctx, cl.ContentStore(), ref); err != nil {
			return fmt.Errorf("throw away the unfinished blob %s: %w", dgst, c.conn.fail(err))
		}
	}
	return nil
}

// abort tries for a while: a daemon learns a moment later than Close that the writer
// is gone; until then what is to be removed may still be written to.
func (c *Content) abort(ctx context.Context, cs store, ref string) error {
	for try := 0; ; try++ {
		err := cs.Abort(ctx, ref)
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		if try == abortTries || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(abortPause):
		}
	}
}
