// Package embedded is containerd's own metadata and content store in this process, for a
// host without containerd.
//
// It owns the files below its root, and their garbage collection, which a daemon of
// containerd does by itself. It unpacks and runs nothing. What asks it uses the same client
// as for a daemon.
//
// Invariant: what has neither a name nor a lease does not outlive the next Open.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"seeder/internal/disk"
)

// Store is the store below one root. It is safe for concurrent use.
type Store struct {
	root   string
	bolt   *bolt.DB
	db     *metadata.DB
	client *client.Client
}

// Open opens or makes the store below root.
func Open(root string) (*Store, error) {
	if root == "" {
		return nil, errors.New("the embedded store needs a directory")
	}
	dir := filepath.Join(root, "content")
	if err := os.MkdirAll(dir, 0o700); err != nil { // containerd would let others read it
		return nil, err
	}
	cs, err := local.NewStore(dir)
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
	return &Store{root: root, bolt: bdb, db: db, client: cl}, nil
}

// Client is what talks to the store, as to a daemon.
func (s *Store) Client() *client.Client { return s.client }

// DB is what the services of the store work on.
func (s *Store) DB() *metadata.DB { return s.db }

// Blobs is the directory of the content store's blobs.
func (s *Store) Blobs() string { return filepath.Join(s.root, "content", "blobs") }

// Close ends the store. Calls that run fail.
func (s *Store) Close() error { return s.bolt.Close() }

// Collect collects garbage.
func (s *Store) Collect(ctx context.Context) error {
	if _, err := s.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}

// dropNameless removes the directories of ingests that do not say of which reference they
// are: the disk was full when that was written. containerd cannot remove them, and its
// collection ends at the first one. It makes a directory and writes the reference in one
// transaction, so none of these is being made while another transaction runs.
func (s *Store) dropNameless(found []fs.DirEntry) error {
	if !slices.ContainsFunc(found, s.isNameless) {
		return nil
	}
	err := s.bolt.Update(func(*bolt.Tx) (err error) {
		for _, e := range found {
			if s.isNameless(e) {
				err = errors.Join(err, os.RemoveAll(s.ingest(e)))
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove ingests without a reference: %w", err)
	}
	return nil
}

// isNameless reports whether containerd would look for the ingest in another directory:
// its name is the digest of the reference.
func (s *Store) isNameless(e fs.DirEntry) bool {
	ref, err := os.ReadFile(filepath.Join(s.ingest(e), "ref"))
	return errors.Is(err, fs.ErrNotExist) || err == nil && digest.FromBytes(ref).Encoded() != e.Name()
}

func (s *Store) ingest(e fs.DirEntry) string {
	return filepath.Join(s.root, "content", "ingest", e.Name())
}

// collecting is the reference of an ingest of CollectIngests itself. No lease holds it.
const collecting = "seeder-collect"

// CollectIngests removes the ingests that nobody goes on with: no lease holds them any more,
// or the database does not know them, since it could not be written as they began. ctx has
// the namespace.
func (s *Store) CollectIngests(ctx context.Context) error {
	dir := filepath.Join(s.root, "content", "ingest")
	found, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || len(found) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for ingests that are left: %w", err)
	}
	if err := s.dropNameless(found); err != nil {
		return err
	}
	cs := s.client.ContentStore()
	if err := cs.Abort(ctx, collecting); err != nil && !errdefs.IsNotFound(err) { // of a run that was cut off
		return fmt.Errorf("collect ingests that are left: %w", err)
	}
	if err := s.Collect(ctx); err != nil {
		return err
	}
	if found, err = os.ReadDir(dir); err != nil {
		return fmt.Errorf("look for ingests that are left: %w", err)
	}
	known, err := cs.ListStatuses(ctx)
	if err != nil || len(found) <= len(known) {
		return err
	}
	// The database looks through the directory only after it has dropped something itself.
	const bait = "seeder makes the embedded store look for what is left"
	desc := ocispec.Descriptor{Digest: digest.FromString(bait), Size: int64(len(bait))}
	err = content.WriteBlob(ctx, cs, collecting, strings.NewReader(bait), desc)
	if err == nil {
		err = cs.Delete(ctx, desc.Digest)
	}
	if err != nil {
		return fmt.Errorf("collect ingests that are left: %w", err)
	}
	return s.Collect(ctx)
}
