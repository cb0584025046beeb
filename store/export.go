package store

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/export"
	"seeder/store/imageref"
)

// Export prepares an archive of an image of this host, and calls write with it. Nothing of
// the images is collected until write returns.
func (s *Store) Export(ctx context.Context, o export.Order, write func(context.Context, *export.Archive) error) (err error) {
	s.locks.archives.RLock()
	defer s.locks.archives.RUnlock()
	ctx, release, err := s.ctrd.Leases.Take(ctx, forArchive+rand.Text())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release(ctx)) }()
	a, err := export.Prepare(ctx, export.Config{
		Find:   s.exported,
		Walk:   s.ctrd.Content.Walk,
		Open:   func(ctx context.Context, d digest.Digest) (export.Blob, error) { return s.OpenHeld(ctx, d) },
		Choose: s.Deltas.Choose,
		Room:   s.Room,
		TempFile: func() (*os.File, error) {
			return os.CreateTemp(filepath.Join(s.cfg.DataDir, deltasDir), "building-")
		},
	}, o)
	if err != nil {
		return err
	}
	return errors.Join(write(ctx, a), a.Close())
}

// exported is an image, which is under the lease of ctx from now on.
func (s *Store) exported(ctx context.Context, ref string, at digest.Digest) (full string, target ocispec.Descriptor, err error) {
	if full, err = imageref.Normalize(ref); err != nil {
		return "", target, err
	}
	if target, _, err = s.find(ctx, full, at, false); err == nil {
		err = s.ctrd.Leases.Protect(ctx, target)
	}
	return full, target, err
}
