package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
)

// Lost implements converge.Seeds.
func (f *Fetcher) Lost(seed digest.Digest) bool { return f.cfg.Images.Lost(seed) }

// Restore implements converge.Seeds: from another member, else, on the host that
// announced the image, by cutting it again, which gives the same index.
func (f *Fetcher) Restore(ctx context.Context, rec catalog.Record) {
	a := rec.Announcement()
	if !f.cfg.Images.TakeLost(a.Seed.Digest) {
		return
	}
	if err := f.restoreLost(ctx, rec); err != nil && ctx.Err() == nil {
		f.cfg.Log.Warn("failed to restore a lost seed index; will retry when a peer asks for it", "ref", a.Reference, "seed", a.Seed.Digest, "err", err)
	}
}

func (f *Fetcher) restoreLost(ctx context.Context, rec catalog.Record) error {
	a := rec.Announcement()
	if _, err := f.cfg.Store.SeedIndex(ctx, a.Seed.Digest); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	index, err := f.seedIndex(ctx, a)
	if err == nil {
		img, err := f.cfg.Store.Image(ctx, index) // keeps the index
		if err != nil {
			return fmt.Errorf("keep seed index %s: %w", a.Seed.Digest, err)
		}
		f.cfg.Log.Info("restored a lost seed index from another member", "ref", a.Reference, "seed", a.Seed.Digest)
		return img.Close()
	}
	if rec.AnnouncedBy() != f.cfg.ID {
		return err
	}
	err = f.cfg.Announce(ctx, a.Reference, rec)
	if errors.Is(err, catalog.ErrSuperseded) {
		return nil // nobody asks for this seed index any more
	}
	if err != nil {
		return fmt.Errorf("cut %s again: %w", a.Reference, err)
	}
	f.cfg.Log.Info("restored a lost seed index from the image", "ref", a.Reference, "seed", a.Seed.Digest)
	return nil
}
