package ctrd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	bolt "go.etcd.io/bbolt"
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
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	cs, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return nil, fmt.Errorf("open the content store: %w", err)
	}
	bdb, err := bolt.Open(filepath.Join(root, "meta.db"), 0o600, &bolt.Options{Timeout: 2 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("open the metadata: %w; is another process using it?", err)
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
