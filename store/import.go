package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"seeder/store/ctrd"
)

// Import makes the image visible as ref. It runs beside the fetch: each wanted
// blob, in the order of the seed index, streams into the content store as its
// contiguous prefix grows, each layer is unpacked as soon as it is committed,
// and names come last. It returns when the image is ready, or when ctx ends;
// what was written then is gone on with by the next call. With everything here
// it repairs names, labels and unpacking.
func (i *Image) Import(ctx context.Context, ref string) (err error) {
	i.import1.Lock()
	defer i.import1.Unlock()
	ref, err = ctrd.NormalizeRef(ref)
	if err != nil {
		return err
	}
	s := i.store
	lctx, release, err := s.ctrd.Lease(ctx, "import-"+i.index.Target.Digest.Encoded())
	if err != nil {
		return err
	}
	// A lease that is not released by a failed import keeps what was written for
	// the next try, and expires by itself.
	committed := newBlobSet()
	group, gctx := errgroup.WithContext(lctx)
	group.Go(func() error { return i.ingestAll(gctx, committed) })
	group.Go(func() error { return i.unpack(gctx, committed) })
	if err := group.Wait(); err != nil {
		return err
	}
	if err := s.ctrd.Publish(lctx, ref, i.index.Target); err != nil {
		return err
	}
	return release(context.WithoutCancel(ctx))
}

// ingestAll commits every wanted blob in order.
func (i *Image) ingestAll(ctx context.Context, committed *blobSet) error {
	for k, b := range i.blobs {
		if !b.wanted {
			continue
		}
		if err := i.ingest(ctx, k, b); err != nil {
			return err
		}
		committed.add(b.info.Digest)
	}
	return nil
}

// ingest commits blob k, or puts the one that is there under the lease.
func (i *Image) ingest(ctx context.Context, k int, b *blob) error {
	unlock, err := i.store.blobs.lock(ctx, b.info.Digest)
	if err != nil {
		return err
	}
	defer unlock()
	w, err := i.store.ctrd.Ingest(ctx, ocispec.Descriptor{MediaType: b.info.MediaType, Digest: b.info.Digest, Size: b.info.Bytes})
	if errors.Is(err, ctrd.ErrExists) {
		i.finish(b)
		return nil
	}
	if err != nil {
		return err
	}
	if b.isPresent() { // when the image was opened: nobody fetches it
		b.setPresent(false)
		return errors.Join(fmt.Errorf("blob %s was in containerd's content store and is gone; it is fetched again", b.info.Digest), w.Close())
	}
	err = i.stream(ctx, b, w)
	if err == nil {
		if err = w.Commit(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, ctrd.ErrUnavailable) {
			// The chunks were verified, so what does not add up is the ingest.
			err = errors.Join(err, w.Reset())
		}
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("import blob %d: %w", k, err)
	}
	i.finish(b)
	return nil
}

// finish books a blob as being in the content store.
func (i *Image) finish(b *blob) {
	b.setPresent(true)
	b.frames.Finish()
	i.signal()
}

// stream writes the blob from where the ingest stands, chunk by chunk, waiting
// for those that are not here yet.
func (i *Image) stream(ctx context.Context, b *blob, w *ctrd.Ingest) error {
	for w.Offset() < b.info.Bytes {
		at := int(w.Offset() / b.info.ChunkBytes)
		if err := i.await(ctx, b, at); err != nil {
			return err
		}
		if err := i.writeChunk(b, at, w); err != nil {
			return err
		}
	}
	return nil
}

// await waits until the frame of a chunk is here.
func (i *Image) await(ctx context.Context, b *blob, at int) error {
	for {
		news := i.news()
		if b.frames.Have(at) {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// writeChunk decodes a staged frame and appends what the ingest lacks of it.
func (i *Image) writeChunk(b *blob, at int, w *ctrd.Ingest) error {
	enc, size, r, err := b.frames.Frame(at)
	if err != nil {
		return err
	}
	defer r.Close()
	in, out := i.store.buffer(), i.store.buffer()
	defer i.store.giveBack(in)
	defer i.store.giveBack(out)
	payload := (*in)[:size]
	if _, err := io.ReadFull(r, payload); err != nil {
		return fmt.Errorf("read the frame of chunk %d of %s: %w", at, b.info.Digest, err)
	}
	raw, err := i.store.codec.Decode(*out, enc, payload, b.info.ChunkLen(at))
	if err != nil {
		b.frames.Drop(at) // damaged since it was verified
		return fmt.Errorf("the staged frame of chunk %d of %s is damaged: %w", at, b.info.Digest, err)
	}
	_, err = w.Write(raw[w.Offset()-int64(at)*b.info.ChunkBytes:])
	return err
}

// unpack unpacks each layer once it and those below it are committed.
func (i *Image) unpack(ctx context.Context, committed *blobSet) error {
	if i.store.ctrd.StoreOnly() {
		return nil
	}
	for _, b := range i.blobs { // manifests and configs come before the layers
		if b.wanted && !isLayer(b.info.MediaType) {
			if err := committed.wait(ctx, b.info.Digest); err != nil {
				return err
			}
		}
	}
	u, err := i.store.ctrd.Unpacker(ctx, i.index.Target)
	if err != nil {
		return err
	}
	for k, layer := range u.Layers() {
		if err := committed.wait(ctx, layer); err != nil {
			return err
		}
		if err := u.Apply(ctx, k); err != nil {
			return err
		}
	}
	return u.Finish(ctx)
}

// isLayer tells layers from the small blobs by their media types (OCI and
// Docker).
func isLayer(mediaType string) bool {
	return strings.Contains(mediaType, ".layer.") || strings.Contains(mediaType, ".rootfs.")
}

// blobSet is a set that can be waited on.
type blobSet struct {
	blobs map[digest.Digest]bool
	cond  chan chan struct{} // holds the channel that the next add closes; also the lock
}

func newBlobSet() *blobSet {
	s := &blobSet{blobs: map[digest.Digest]bool{}, cond: make(chan chan struct{}, 1)}
	s.cond <- make(chan struct{})
	return s
}

func (s *blobSet) add(d digest.Digest) {
	next := <-s.cond
	s.blobs[d] = true
	close(next)
	s.cond <- make(chan struct{})
}

func (s *blobSet) wait(ctx context.Context, d digest.Digest) error {
	for {
		next := <-s.cond
		ok := s.blobs[d]
		s.cond <- next
		if ok {
			return nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
