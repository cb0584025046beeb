package archive

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// Remove removes a blob.
func (d *Dir) Remove(ctx context.Context, dgst digest.Digest) error { return d.store.Delete(ctx, dgst) }
