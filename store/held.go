package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"seeder/store/arriving"
	"seeder/store/ctrd"
)

// Held is a blob that this host's containerd has, open for reading. ReadAt verifies
// nothing; Whole does.
type Held struct {
	ctrd.Reader
	store *Store
	dgst  digest.Digest
}

// OpenHeld opens a blob of containerd's namespace. The error wraps fs.ErrNotExist where it
// has none, or one that is known to be damaged.
func (s *Store) OpenHeld(ctx context.Context, d digest.Digest) (*Held, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("blob %q: %w", d, err)
	}
	// A blob's file may be that of another namespace.
	_, here, err := s.ctrd.Content.Has(ctx, d)
	if err != nil {
		return nil, err
	}
	if !here {
		return nil, fmt.Errorf("blob %s: %w", d, fs.ErrNotExist)
	}
	ra, err := s.ctrd.Content.ReaderAt(ctx, d)
	if err != nil {
		return nil, err
	}
	return &Held{Reader: ra, store: s, dgst: d}, nil
}

// Room is an error that says what lacks where data_dir's disk cannot take bytes more.
func (s *Store) Room(ctx context.Context, bytes int64) error {
	return s.disks.room(ctx, need{bytes: bytes}, need{})
}

// Whole reads the blob from its beginning. Of one that is not what its digest says, the
// last bytes never come, and the blob counts as damaged from then on.
func (h *Held) Whole() io.Reader {
	return arriving.Verified(io.NewSectionReader(h, 0, h.Size()), h.dgst, h.Size(), func() error {
		h.store.ctrd.Content.MarkDamaged(h.dgst, stampOf(h.Reader))
		return errDamaged
	})
}

var errDamaged = errors.New("the blob is damaged in containerd's content store")
