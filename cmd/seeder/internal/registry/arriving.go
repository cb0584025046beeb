package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/opencontainers/go-digest"

	"seeder/p2p/report"
)

// maxStreams bounds the blobs that are read while they arrive: each takes the memory of a
// chunk, at most a MiB. containerd reads three layers of an image at a time.
const maxStreams = 24

// stream is a blob that is read while it arrives, for as long as anything arrives.
type stream struct {
	Blob
	backend *backend
	cancel  context.CancelCauseFunc
	watched chan struct{} // closed when nobody watches any more
}

// stream opens a blob of an image that is being fetched; one of refs is that image. The error
// wraps fs.ErrNotExist where there is no such blob.
func (b *backend) stream(ctx context.Context, refs []string, d digest.Digest) (Blob, error) {
	select {
	case b.streams <- struct{}{}:
	default:
		return nil, fmt.Errorf("%w: %d blobs are read while they arrive", ociregistry.ErrTooManyRequests, cap(b.streams))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	blob, err := b.images.Arriving(ctx, d)
	if err != nil {
		cancel(nil)
		<-b.streams
		return nil, err
	}
	s := &stream{Blob: blob, backend: b, cancel: cancel, watched: make(chan struct{})}
	go s.watch(ctx, refs) // ends with Close
	return s, nil
}

// watch ends the reading when no image that may have the blob has been on its way for a while.
func (s *stream) watch(ctx context.Context, refs []string) {
	defer close(s.watched)
	p := s.backend.patience
	tick := time.NewTicker(p.look)
	defer tick.Stop()
	for moved := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if s.backend.comes(refs) {
				moved = now
			} else if now.Sub(moved) > p.stalled {
				s.cancel(fmt.Errorf("nothing of it has arrived for %s", p.stalled))
				return
			}
		}
	}
}

// comes says whether one of the references is on its way, or here.
func (b *backend) comes(refs []string) bool {
	for _, ref := range refs {
		if _, state, ok := b.catalog.Here(ref); ok && onItsWay(state) {
			return true
		}
	}
	return false
}

func onItsWay(s report.State) bool { return s == report.Fetching || s == report.Importing }

// Close implements io.Closer.
func (s *stream) Close() error {
	s.cancel(nil)
	<-s.watched
	<-s.backend.streams
	return s.Blob.Close()
}

// early is a manifest of an image that is being fetched, once all of it is here; until then
// the error wraps fs.ErrNotExist.
func (b *backend) early(ctx context.Context, d digest.Digest) (ociregistry.BlobReader, error) {
	blob, err := b.images.Arriving(ctx, d)
	if err != nil {
		return nil, err
	}
	if !blob.Here() {
		return nil, errors.Join(fmt.Errorf("manifest %s is on its way: %w", d, fs.ErrNotExist), blob.Close())
	}
	return readManifest(blob, d)
}
