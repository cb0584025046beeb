package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
	"seeder/store/delta"
)

// errOther says that what a delta made is not the layer.
var errOther = errors.New("it makes other bytes than the layer has")

// Layer are the chunks of a layer of the image: its first one, and how many; none where it
// has no such layer.
func (i *Image) Layer(d digest.Digest) (first, chunks int) {
	k := slices.IndexFunc(i.blobs, func(b *blob) bool { return b.info.Digest == d })
	if k < 0 {
		return 0, 0
	}
	return i.index.Start(k), len(i.blobs[k].info.Sums)
}

// Rebuild makes a layer of the image from its base, which is in the content store, and a
// delta, all of which is here. Each chunk of the layer is verified by its own sum before it
// is staged, as if a peer had sent it: have is told of it, Import takes it, and peers get
// it. Where the base is damaged that is noted, and the error says so.
func (i *Image) Rebuild(ctx context.Context, o chunk.Offer, have func(n int)) error {
	k := slices.IndexFunc(i.blobs, func(b *blob) bool { return b.info.Digest == o.Target })
	if k < 0 {
		return fmt.Errorf("rebuild layer %s: it is not of the image", o.Target)
	}
	if err := i.rebuild(ctx, o, &pieces{ctx: ctx, to: i.blobs[k], first: i.index.Start(k), have: have}); err != nil {
		return fmt.Errorf("rebuild layer %s from %s: %w", o.Target, o.Base, err)
	}
	return nil
}

func (i *Image) rebuild(ctx context.Context, o chunk.Offer, out *pieces) error {
	s := i.store
	index, err := s.seeds.read(o.Seed)
	if err != nil {
		return err
	}
	img, err := s.Image(ctx, index)
	if err != nil {
		return err
	}
	defer img.Close()
	if len(img.blobs) != 1 || img.index.Target.MediaType != chunk.DeltaMediaType {
		return fmt.Errorf("%s is not a delta", o.Seed)
	}
	base, err := s.OpenHeld(ctx, o.Base)
	if err != nil {
		return err
	}
	defer base.Close()
	out.buf = s.work.buffers.Get(int(min(out.to.info.ChunkBytes, out.to.info.Bytes)))[:0]
	defer func() { s.work.buffers.Put(out.buf) }()
	h, err := delta.Decode(ctx, out, &staged{blob: img.blobs[0]}, delta.Blob{ReaderAt: base, Digest: o.Base, Bytes: base.Size()})
	if err == nil && h.Target != o.Target {
		err = fmt.Errorf("it is a delta of %s: %w", h.Target, errOther)
	}
	if errors.Is(err, errOther) || errors.Is(err, delta.ErrMismatch) || errors.Is(err, delta.ErrInvalid) {
		if intact, verr := s.ctrd.Content.Verify(ctx, o.Base); verr == nil && !intact {
			return fmt.Errorf("the base is damaged in this host's containerd: %w", err)
		}
	}
	return err
}

// staged reads a blob of which all chunks are staged, from its beginning. One goroutine
// uses it.
type staged struct {
	blob *blob
	next int
	rest []byte
	buf  []byte
}

// Read implements io.Reader.
func (r *staged) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.next == len(r.blob.info.Sums) {
			return 0, io.EOF
		}
		var err error
		if r.buf, err = r.blob.readStaged(r.buf[:0], r.next, 0); err != nil {
			return 0, err
		}
		r.rest = r.buf
		r.next++
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// pieces cuts what is written to it into the chunks of a blob, verifies and stages them.
// One goroutine uses it.
type pieces struct {
	ctx   context.Context
	to    *blob
	first int // number of the blob's first chunk in the image
	have  func(n int)
	at    int
	buf   []byte
}

// Write implements io.Writer.
func (w *pieces) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		if w.at == len(w.to.info.Sums) {
			return written, fmt.Errorf("more bytes than the layer has: %w", errOther)
		}
		n := min(len(p), w.to.info.ChunkLen(w.at)-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		p, written = p[n:], written+n
		if len(w.buf) < w.to.info.ChunkLen(w.at) {
			continue
		}
		if err := w.put(); err != nil {
			return written, err
		}
	}
	return written, nil
}

// put stages a chunk.
func (w *pieces) put() error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	ok, err := w.to.put(w.at, chunk.Raw, w.buf)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("chunk %d: %w", w.at, errOther)
	}
	w.have(w.first + w.at)
	w.at++
	w.buf = w.buf[:0]
	return nil
}
