package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
	"seeder/store/ctrd"
	"seeder/store/stage"
)

// Recheck reads chunk n again as it would be sent, whatever was verified before, and
// reports whether it was damaged here: somebody got other bytes than it has. What is
// damaged is not sent any more: a frame is made anew from the content store, and a blob
// of the content store counts as missing.
func (i *Image) Recheck(ctx context.Context, n int) (damaged bool, err error) {
	if n < 0 || n >= i.Len() {
		return false, fmt.Errorf("chunk %d of %d: %w", n, i.Len(), fs.ErrNotExist)
	}
	k, at := i.index.Locate(n)
	b := i.blobs[k]
	bad, err := b.recheckFrame(at)
	if err != nil || !b.isPresent() {
		return bad, err
	}
	b.mu.Lock()
	b.content.checked[at] = false
	b.mu.Unlock()
	ra, err := b.reader(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return bad, err
	}
	defer ra.Close()
	raw, err := b.read(ra, at)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return bad, err
	}
	b.store.work.buffers.Put(raw)
	return bad, nil
}

// recheckStaged looks at staged frames of blobs that the content store has and that nobody
// has open. They came after the blob was found damaged, and a restart has forgotten that;
// or the blob was complete when the process was killed. So the blob is read again: a
// damaged one is replaced, of a whole one the frames go.
func (s *Store) recheckStaged(ctx context.Context) error {
	for _, name := range s.stage.Staged() {
		hex, _, _ := strings.Cut(name, "-")
		d := digest.NewDigestFromEncoded(digest.SHA256, hex)
		s.mu.Lock()
		_, open := s.open[name]
		s.mu.Unlock()
		if open || d.Validate() != nil {
			continue
		}
		_, ok, err := s.ctrd.Content.Has(ctx, d)
		if err != nil {
			return err
		}
		if !ok {
			continue // it is being fetched, or will be
		}
		if err := s.recheckBlob(ctx, name, d); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) recheckBlob(ctx context.Context, name string, d digest.Digest) error {
	ra, err := s.ctrd.Content.ReaderAt(ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ra.Close()
	got, err := digest.FromReader(io.NewSectionReader(ra, 0, ra.Size()))
	switch {
	case err != nil:
		return fmt.Errorf("read blob %s again: %w", d, err)
	case got == d:
		s.stage.Drop(name)
	default:
		s.cfg.Log.Error("found a damaged blob in containerd's content store; fetching it again if another node has it", "blob", d)
		s.work.sums.set(name, ctrd.Stamp{})
		s.ctrd.Content.MarkDamaged(d, stampOf(ra))
	}
	return nil
}

// recheckFrame verifies the frame of a chunk, if there is one, to its end.
func (b *blob) recheckFrame(at int) (damaged bool, err error) {
	frames := b.staged()
	scratch := b.store.work.buffers.Get(b.info.ChunkLen(at))
	defer func() { b.store.work.buffers.Put(scratch) }()
	var buf []byte
	defer func() { b.store.work.buffers.Put(buf) }()
	enc, payload, err := frames.Read(at, func(_ chunk.Encoding, bytes int) []byte {
		buf = b.store.work.buffers.Get(bytes)
		return buf
	})
	switch {
	case errors.Is(err, stage.ErrDamaged):
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	raw, err := b.store.work.codec.Decode(scratch, enc, payload, b.info.ChunkLen(at))
	if err != nil && !errors.Is(err, chunk.ErrFrame) {
		return false, err
	}
	if err != nil || sha256.Sum256(raw) != b.info.Sums[at] {
		if b.isPresent() {
			frames.Drop(at)
		}
		return true, nil
	}
	return false, nil
}
