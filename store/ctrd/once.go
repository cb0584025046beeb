package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
)

// once is the content store during one piece of work: each blob is asked for once,
// and manifests and configs are read as files where they can be. An image of
// twenty small layers took 150 questions without it. It is not safe for concurrent
// use, and is not kept: what it remembers may be gone by the next piece of work.
type once struct {
	content.Store
	content *Content
	infos   map[digest.Digest]content.Info
	here    map[digest.Digest]bool // need not be asked for
}

// once takes the blobs of which the caller knows that they are here.
func (c *Content) once(cl *client.Client, here ...digest.Digest) *once {
	o := &once{Store: cl.ContentStore(), content: c, infos: map[digest.Digest]content.Info{}, here: map[digest.Digest]bool{}}
	for _, d := range here {
		o.here[d] = true
	}
	return o
}

// Documents reads the manifests, indexes and configs of one piece of work: verified, and
// as files where it can.
func (c *Content) Documents(ctx context.Context) (content.Provider, error) {
	_, cl, err := c.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	return c.once(cl), nil
}

// has reports whether a blob is here.
func (o *once) has(ctx context.Context, dgst digest.Digest) (bool, error) {
	if o.here[dgst] && !o.content.Damaged(ctx, dgst) {
		return true, nil
	}
	if o.content.files.fileless(ctx, dgst) {
		return false, nil
	}
	_, err := o.Info(ctx, dgst)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// Fileless implements artifact.Blobs.
func (o *once) Fileless(ctx context.Context, dgst digest.Digest) bool {
	return o.content.files.fileless(ctx, dgst)
}

// Damaged implements artifact.Blobs.
func (o *once) Damaged(ctx context.Context, dgst digest.Digest) bool {
	return o.content.Damaged(ctx, dgst)
}

// Explain implements artifact.Blobs.
func (o *once) Explain(err error) error { return o.content.conn.fail(err) }

// Info implements content.InfoProvider. A blob that is known to be damaged is not found.
func (o *once) Info(ctx context.Context, dgst digest.Digest) (content.Info, error) {
	if o.content.Damaged(ctx, dgst) {
		return content.Info{}, damagedErr(dgst)
	}
	if info, ok := o.infos[dgst]; ok {
		return info, nil
	}
	info, err := o.Store.Info(ctx, dgst)
	if err == nil {
		o.infos[dgst] = info
	}
	return info, err
}

// ReaderAt implements content.Provider for manifests, indexes and configs, which are
// verified: one whose bytes do not match its digest is marked as damaged and not found,
// so that it is fetched again. A file alone says nothing: containerd has to know the
// blob. What is larger than a document may be is refused: who reads it takes all of it into
// memory.
func (o *once) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	if _, err := o.Info(ctx, desc.Digest); err != nil {
		return nil, err
	}
	ra, stamp, err := o.open(ctx, desc)
	if err != nil {
		return nil, err
	}
	if err := artifact.CheckDocument(desc.Digest, ra.Size()); err != nil {
		return nil, errors.Join(err, ra.Close())
	}
	verified := desc.Digest.Verifier()
	var values artifact.Values
	if _, err := io.Copy(io.MultiWriter(verified, &values), io.NewSectionReader(ra, 0, ra.Size())); err != nil {
		return nil, errors.Join(fmt.Errorf("read blob %s: %w", desc.Digest, err), ra.Close())
	}
	if err := values.Check(desc.Digest.String()); err != nil {
		return nil, errors.Join(err, ra.Close())
	}
	if verified.Verified() {
		return ra, nil
	}
	o.content.conn.log.Error("a document in containerd's content store is damaged; it counts as missing and is fetched again where another node has it", "blob", desc.Digest)
	o.content.MarkDamaged(desc.Digest, stamp)
	return nil, errors.Join(damagedErr(desc.Digest), ra.Close())
}

// open opens a blob as a file where it can be; stamp is that of the file.
func (o *once) open(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, Stamp, error) {
	if f := o.content.files.openFile(ctx, desc.Digest); f != nil {
		return f, f.Stamp(), nil
	}
	ra, err := o.Store.ReaderAt(ctx, desc)
	return ra, Stamp{}, err
}

func damagedErr(dgst digest.Digest) error {
	return fmt.Errorf("blob %s is damaged in containerd's content store: its bytes do not match its digest: %w", dgst, errdefs.ErrNotFound)
}

// Update implements content.Manager.
func (o *once) Update(ctx context.Context, info content.Info, fieldpaths ...string) (content.Info, error) {
	delete(o.infos, info.Digest)
	return o.Store.Update(ctx, info, fieldpaths...)
}
