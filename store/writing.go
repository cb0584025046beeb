package store

import (
	"context"
	"errors"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
	"seeder/store/chunk"
	"seeder/store/ctrd"
)

// writing is a blob on its way from the stage into containerd's content store, which
// verifies the whole by its digest.
type writing struct {
	*blob
	labels map[string]string // to commit it with
}

// ingest commits the blob, or puts the one that is there, with its own labels, under the
// lease.
func (b *writing) ingest(ctx context.Context) (exists bool, err error) {
	unlock, err := b.store.locks.writes.lock(ctx, b.info.Digest)
	if err != nil {
		return false, err
	}
	defer unlock()
	exists, err = b.ingestOnce(ctx)
	if errors.Is(err, errBrought) { // what is there now is put under the lease
		if err := b.store.ctrd.Content.Abort(ctx, b.info.Digest); err != nil {
			return false, err
		}
		exists, err = b.ingestOnce(ctx)
	}
	return exists, err
}

// ingestOnce is ingest until an archive brings the blob (errBrought).
func (b *writing) ingestOnce(ctx context.Context) (exists bool, err error) {
	s := b.store
	if s.ctrd.Content.Damaged(ctx, b.info.Digest) {
		if err := b.replaceDamaged(ctx); err != nil {
			return false, err
		}
	}
	var begun int64
	names := artifact.Names(b.info.MediaType) && b.info.Bytes <= chunk.MaxBytes // and keeps what it names
	whole := (len(b.info.Sums) == 1 || names) && !b.isPresent()
	if whole && !b.staged().Have(0) {
		// Somebody may have imported it since: then it needs no peer.
		_, here, err := s.ctrd.Content.Has(ctx, b.info.Digest)
		if err != nil {
			return false, err
		}
		whole = !here
	}
	if whole {
		err = b.writeWhole(ctx)
	} else {
		begun, err = b.write(ctx)
	}
	if errors.Is(err, ctrd.ErrExists) {
		b.markPresent(ctx, false)
		return true, nil
	}
	if errors.Is(err, ctrd.ErrMismatch) {
		return false, errors.Join(b.explain(begun, err), s.ctrd.Content.Abort(ctx, b.info.Digest))
	}
	if err == nil {
		s.cfg.Log.Debug("blob committed", "blob", b.info.Digest, "bytes", b.info.Bytes)
		b.markPresent(ctx, begun == 0)
	}
	return false, err
}

// replaceDamaged removes what containerd has of a damaged blob, once all of it is here
// from others: nobody may have the rest of it.
func (b *writing) replaceDamaged(ctx context.Context) error {
	if b.isPresent() { // it was found while the image was open
		b.lost()
	}
	for at := range b.info.Sums {
		if err := b.await(ctx, at); err != nil {
			return err
		}
	}
	if err := b.store.ctrd.Content.RemoveDamaged(ctx, b.info.Digest); err != nil {
		return err
	}
	b.store.cfg.Log.Info("removed a damaged blob from containerd; writing it again", "blob", b.info.Digest)
	return nil
}

func (b *writing) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: b.info.MediaType, Digest: b.info.Digest, Size: b.info.Bytes}
}

// writeWhole commits a blob at once.
func (b *writing) writeWhole(ctx context.Context) error {
	defer b.near.end()
	buf := b.store.work.buffers.Get(int(b.info.Bytes))[:0]
	defer func() { b.store.work.buffers.Put(buf) }()
	for at := range b.info.Sums {
		b.near.wantFrom(at)
		if err := b.await(ctx, at); err != nil {
			return err
		}
		var err error
		if buf, err = b.appendChunk(buf, at, 0); err != nil {
			return err
		}
	}
	return b.store.ctrd.Content.WriteWhole(ctx, b.descriptor(), buf, b.labels)
}

// write commits a blob as its contiguous prefix grows. begun is how much of it an
// earlier try had written.
func (b *writing) write(ctx context.Context) (begun int64, err error) {
	w, err := b.store.ctrd.Content.Ingest(ctx, b.descriptor())
	if err != nil {
		return 0, err
	}
	if b.isPresent() { // when the fetch began: nobody fetches it
		b.lost()
		return 0, errors.Join(errors.New("it was in containerd's content store and is gone; it is fetched again"), w.Close())
	}
	begun = w.Offset()
	if err = b.stream(ctx, w); err == nil {
		err = w.Commit(ctx, b.labels)
	}
	return begun, errors.Join(err, w.Close())
}

// explain says what does not add up where all chunks were verified and the blob
// has another digest: the frames on disk, an earlier try, or the seed index.
func (b *writing) explain(begun int64, err error) error {
	lost, rerr := b.staged().Recheck()
	switch {
	case lost > 0 || rerr != nil:
		return fmt.Errorf("%d of its frames were damaged on disk and are fetched again: %w", lost, errors.Join(err, rerr))
	case begun > 0:
		return fmt.Errorf("what an earlier try wrote was damaged; it is written again: %w", err)
	}
	return fmt.Errorf("the chunks of its seed index make another blob; the image has to be announced again: %w", err)
}

// stream writes the blob from where the ingest stands on, waiting for chunks that
// are not here yet. What is here is gathered into writes of up to 4 MiB, which
// cost containerd a quarter of the time of small ones.
func (b *writing) stream(ctx context.Context, w *ctrd.Ingest) error {
	if w.Offset() > b.info.Bytes {
		return fmt.Errorf("%d bytes are written of %d: %w", w.Offset(), b.info.Bytes, ctrd.ErrMismatch)
	}
	batch := b.store.work.buffers.Get(chunk.MaxBytes)[:0]
	defer func() { b.store.work.buffers.Put(batch) }()
	defer b.near.end()
	for {
		next := w.Offset() + int64(len(batch))
		at := int(next / b.info.ChunkBytes)
		full := next == b.info.Bytes || len(batch)+b.info.ChunkLen(at) > cap(batch) || !b.staged().Have(at)
		if len(batch) > 0 && full {
			if _, err := w.Write(batch); err != nil {
				return err
			}
			batch = batch[:0]
			continue
		}
		if next == b.info.Bytes {
			return nil
		}
		b.near.wantFrom(at)
		if err := b.await(ctx, at); err != nil {
			return err
		}
		skip := next - int64(at)*b.info.ChunkBytes
		var err error
		if batch, err = b.appendChunk(batch, at, skip); err != nil {
			return err
		}
	}
}

// appendChunk appends the rest of chunk at, which is here, from its byte skip on, to
// dst.
func (b *writing) appendChunk(dst []byte, at int, skip int64) ([]byte, error) {
	if raw := b.near.take(at); raw != nil {
		dst = append(dst, raw[skip:]...)
		b.store.work.buffers.Put(raw)
		return dst, nil
	}
	return b.readStaged(dst, at, skip)
}
