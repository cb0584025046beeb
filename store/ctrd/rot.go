package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"seeder/store/artifact"
	"seeder/store/blobfile"
)

// labelSnapshot begins the label by which a blob keeps snapshots from garbage collection;
// the snapshotter's name ends it.
const labelSnapshot = "containerd.io/gc.ref.snapshot."

// MarkDamaged notes that the blob in the file with that stamp, none where it was read
// through containerd, is not what its digest says: Has and Check pass over it until it
// is removed, or replaced by what its digest says.
func (c *Content) MarkDamaged(dgst digest.Digest, stamp Stamp) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.damaged[dgst] = stamp
}

// Damaged reports whether the blob that containerd has is known to be damaged.
func (c *Content) Damaged(ctx context.Context, dgst digest.Digest) bool {
	c.mu.Lock()
	stamp, marked := c.damaged[dgst]
	c.mu.Unlock()
	if !marked {
		return false
	}
	switch now := c.files.Stamp(ctx, dgst); {
	case stamp == (Stamp{}) || now == stamp:
		return true
	case now == (Stamp{}):
		c.unmark(dgst)
		return false
	}
	// The file may be another one, or containerd has just touched it: it sets the time of a
	// blob that somebody wants to write again. If ctx ends first, the mark stays.
	intact, err := c.Verify(ctx, dgst)
	if intact || errors.Is(err, fs.ErrNotExist) {
		c.unmark(dgst)
		return false
	}
	return true
}

func (c *Content) unmark(dgst digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.damaged, dgst)
}

// verifyBuffer is how much is read at once of a blob that is verified.
const verifyBuffer = 1 << 20

// Verify reads a blob that is here, and marks it as damaged where it is not what its
// digest says. The error wraps fs.ErrNotExist where it is not here.
func (c *Content) Verify(ctx context.Context, dgst digest.Digest) (intact bool, err error) {
	ra, err := c.ReaderAt(ctx, dgst)
	if err != nil {
		return false, err
	}
	verifier := dgst.Verifier()
	_, err = io.CopyBuffer(verifier, whileWanted{ctx, io.NewSectionReader(ra, 0, ra.Size())}, make([]byte, verifyBuffer))
	if err := errors.Join(err, ra.Close()); err != nil {
		return false, fmt.Errorf("read blob %s: %w", dgst, c.conn.fail(err))
	}
	if !verifier.Verified() {
		stamp := Stamp{}
		if f, ok := ra.(*File); ok {
			stamp = f.Stamp()
		}
		c.MarkDamaged(dgst, stamp)
	}
	return verifier.Verified(), nil
}

// whileWanted reads until ctx ends: a blob may have many gigabytes.
type whileWanted struct {
	ctx context.Context
	io.Reader
}

// Read implements io.Reader.
func (r whileWanted) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}

// MakeWay removes the copy that containerd has of a blob whose bytes are at hand, if it
// is damaged: containerd would keep it. The labels that it had are for the one that takes
// its place. ctx has a lease.
func (c *Content) MakeWay(ctx context.Context, dgst digest.Digest) (removed bool, labels map[string]string, err error) {
	intact, err := c.Verify(ctx, dgst)
	if intact || errors.Is(err, fs.ErrNotExist) {
		return false, nil, nil
	}
	if err != nil {
		return false, nil, err
	}
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return false, nil, err
	}
	info, err := cl.ContentStore().Info(ctx, dgst)
	if err != nil && !errdefs.IsNotFound(err) {
		return false, nil, fmt.Errorf("look for blob %s: %w", dgst, c.conn.fail(err))
	}
	if err := c.RemoveDamaged(ctx, dgst); err != nil {
		return false, nil, err
	}
	c.conn.log.Warn("removed a damaged blob from containerd; writing the one that is imported", "blob", dgst)
	return true, info.Labels, nil
}

// keepChildren puts what a blob keeps from garbage collection under the lease of ctx, if
// it has one: nothing else may keep it once the blob is gone.
func (c *Content) keepChildren(ctx context.Context, cl *client.Client, dgst digest.Digest) error {
	info, err := cl.ContentStore().Info(ctx, dgst)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return c.conn.fail(err)
	}
	for label, id := range info.Labels {
		kind := "content"
		if snapshotter, ok := strings.CutPrefix(label, labelSnapshot); ok {
			kind = "snapshots/" + snapshotter
		} else if !strings.HasPrefix(label, artifact.LabelContent) {
			continue
		}
		if err := keep(ctx, cl.LeasesService(), leases.Resource{ID: id, Type: kind}); err != nil && !errdefs.IsNotFound(err) {
			return c.conn.fail(err)
		}
	}
	return nil
}

// RemoveDamaged removes a damaged blob, so that it can be written anew. Containerd
// would take the file that it has for the blob as long as it is there: garbage is
// collected before it returns, and nothing is written meanwhile. What the blob keeps from
// that is put under the lease of ctx. Nothing is removed if somebody else has replaced it.
func (c *Content) RemoveDamaged(ctx context.Context, dgst digest.Digest) error {
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return err
	}
	if err := c.removing.Acquire(ctx, removingAll); err != nil {
		return fmt.Errorf("wait for what is being written, to remove the damaged blob %s: %w", dgst, context.Cause(ctx))
	}
	defer c.removing.Release(removingAll)
	if !c.Damaged(ctx, dgst) {
		return nil
	}
	if err := c.keepChildren(ctx, cl, dgst); err != nil {
		return fmt.Errorf("keep what the damaged blob %s refers to: %w", dgst, err)
	}
	if err := cl.ContentStore().Delete(ctx, dgst); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the damaged blob %s: %w", dgst, c.conn.fail(err))
	}
	if err := c.leases.collectNow(ctx); err != nil {
		return fmt.Errorf("remove the damaged blob %s: %w", dgst, err)
	}
	if dir := c.files.blobs(ctx); dir != "" {
		if _, err := os.Lstat(blobfile.Path(dir, dgst)); err == nil && c.Damaged(ctx, dgst) {
			return fmt.Errorf("the damaged blob %s is still in %s: another namespace of containerd uses it; remove its image there", dgst, dir)
		}
	}
	c.unmark(dgst)
	return nil
}
