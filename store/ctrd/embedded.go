package ctrd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	bolt "go.etcd.io/bbolt"

	"seeder/internal/disk"
)

// embedded is containerd's own metadata and content store in this process.
type embedded struct {
	root   string
	bolt   *bolt.DB
	db     *metadata.DB
	client *client.Client
}

// openEmbedded opens or makes the store below root. Its services answer the same
// client that talks to a daemon.
func openEmbedded(root string) (*embedded, error) {
	if root == "" {
		return nil, errors.New("the embedded store needs a directory")
	}
	content := filepath.Join(root, "content")
	if err := os.MkdirAll(content, 0o700); err != nil { // containerd would let others read it
		return nil, err
	}
	cs, err := local.NewStore(content)
	if err != nil {
		return nil, fmt.Errorf("open the content store: %w", err)
	}
	bdb, err := disk.OpenBolt(filepath.Join(root, "meta.db"), func(*bolt.Tx) error { return nil })
	if errors.Is(err, disk.ErrDamaged) {
		return nil, fmt.Errorf("%w; stop this node and remove %s: the images that are announced are fetched again, others have to be imported again", err, root)
	}
	if err != nil {
		return nil, err
	}
	ex := exchange.NewExchange()
	db := metadata.NewDB(bdb, cs, map[string]snapshots.Snapshotter{}, metadata.WithEventsPublisher(ex))
	if err := db.Init(context.Background()); err != nil {
		return nil, errors.Join(fmt.Errorf("open the metadata: %w", err), bdb.Close())
	}
	// What an earlier process left without a name or a lease. A daemon collects by
	// itself; here nobody else does.
	if _, err := db.GarbageCollect(context.Background()); err != nil {
		return nil, errors.Join(fmt.Errorf("collect garbage: %w", err), bdb.Close())
	}
	cl, err := client.New("", client.WithServices(
		client.WithContentStore(db.ContentStore()),
		client.WithImageStore(metadata.NewImageStore(db)),
		client.WithLeasesService(metadata.NewLeaseManager(db)),
		client.WithEventService(ex),
	))
	if err != nil {
		return nil, errors.Join(err, bdb.Close())
	}
	return &embedded{root: root, bolt: bdb, db: db, client: cl}, nil
}

func (e *embedded) close() error { return e.bolt.Close() }
