package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CollectIngests removes from the embedded store the ingests that nobody goes on with:
// no lease holds them any more, or the database does not know them, since it could not be
// written as they began. A dialled containerd does so by itself.
func (c *Content) CollectIngests(ctx context.Context) error {
	if c.conn.embedded == nil {
		return nil
	}
	found, err := os.ReadDir(filepath.Join(c.conn.embedded.root, "content", "ingest"))
	if errors.Is(err, fs.ErrNotExist) || len(found) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for ingests that are left: %w", err)
	}
	if err := c.conn.collect(ctx); err != nil {
		return err
	}
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return err
	}
	if found, err = os.ReadDir(filepath.Join(c.conn.embedded.root, "content", "ingest")); err != nil {
		return fmt.Errorf("look for ingests that are left: %w", err)
	}
	known, err := cl.ContentStore().ListStatuses(ctx)
	if err != nil || len(found) <= len(known) {
		return err
	}
	// The database looks through the directory only after it has dropped something itself.
	const bait = "seeder makes the embedded store look for what is left"
	desc := ocispec.Descriptor{Digest: digest.FromString(bait), Size: int64(len(bait))}
	err = content.WriteBlob(ctx, cl.ContentStore(), leasePrefix+"collect", strings.NewReader(bait), desc)
	if err == nil {
		err = cl.ContentStore().Delete(ctx, desc.Digest)
	}
	if err != nil {
		return fmt.Errorf("collect ingests that are left: %w", err)
	}
	return c.conn.collect(ctx)
}
