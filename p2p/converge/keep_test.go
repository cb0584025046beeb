package converge

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"seeder/p2p/catalog"
	"seeder/p2p/trust"
)

const ref = "docker.io/library/app:latest"

// host is a host that has one image under ref.
type host struct {
	Store
	Keeper
	Remover
	have digest.Digest
}

func (h *host) List(context.Context) (map[string]digest.Digest, error) {
	return map[string]digest.Digest{ref: h.have}, nil
}

func (h *host) Remove(context.Context, string) (int64, error) {
	h.have = ""
	return 1, nil
}

func (h *host) InUse(context.Context, string) ([]string, error)            { return nil, nil }
func (h *host) DropFrames(context.Context, []digest.Digest) (int64, error) { return 0, nil }

// column is the Column of a host.
type column struct{ Column }

func (column) Purged(string, int64)        {}
func (column) Freed(string, int64)         {}
func (column) Remove(catalog.Announcement) {}

// TestDamagedRecordPurgesNothingNewer: the newest record of a reference is damaged on this
// host's disk, and a withdrawal comes that is older. What the newest brought here stays,
// also where it is the very target that the withdrawal is of, and goes with a withdrawal that
// is newer. A host that had come to another target than the withdrawn one purges that, as
// after a partition.
func TestDamagedRecordPurgesNothingNewer(t *testing.T) {
	t.Parallel()
	old, build := digest.FromString("old"), digest.FromString("new")
	for _, c := range []struct {
		name      string
		damaged   bool
		withdrawn uint64 // the version of the withdrawal; this host was at version 5
		of        digest.Digest
		stays     bool
	}{
		{"older", true, 3, old, true},
		{"older, of the same target", true, 3, build, true},
		{"newer", true, 6, old, false},
		{"newer, and nothing damaged", false, 6, build, false},
		{"of another build that won", false, 6, old, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "catalog.db")
			id, err := trust.LoadOrCreateIdentity(filepath.Join(t.TempDir(), "identity"))
			if err != nil {
				t.Fatal(err)
			}
			sign := func(version uint64, target digest.Digest, withdrawn bool) catalog.Record {
				r, err := catalog.Sign(id, catalog.Announcement{
					Reference: ref, Version: version, AnnouncedAt: time.Now(), NodeName: "n", Withdrawn: withdrawn, Purge: withdrawn,
					Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: target, Size: 1},
					Seed:   catalog.Seed{Digest: digest.FromString("seed"), Size: 1}, ImageBytes: 1,
				})
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			open := func() *catalog.Catalog {
				cat, err := catalog.Open(catalog.Config{Path: path})
				if err != nil {
					t.Fatal(err)
				}
				return cat
			}
			cat := open()
			newest := sign(5, build, false)
			if _, err := cat.Merge(newest); err != nil {
				t.Fatal(err)
			}
			if err := cat.SetReached(newest); err != nil {
				t.Fatal(err)
			}
			if err := cat.Close(); err != nil {
				t.Fatal(err)
			}
			if c.damaged {
				damage(t, path)
			}
			cat = open()
			defer cat.Close()
			withdrawal := sign(c.withdrawn, c.of, true)
			if changed, err := cat.Merge(withdrawal); len(changed) != 1 || err != nil {
				t.Fatalf("the withdrawal is not taken: %v, %v", changed, err)
			}
			h := &host{have: build}
			l := New(Config{Catalog: cat, Store: h, Keeper: h, Remover: h, Column: column{}})
			for range 2 { // the second time it is done with
				if o := l.withdraw(t.Context(), withdrawal); o.state != gone {
					t.Fatalf("%+v", o)
				}
				if stays := h.have != ""; stays != c.stays {
					t.Errorf("the image stays: %v, want %v", stays, c.stays)
				}
				if err := cat.SetReached(withdrawal); err != nil {
					t.Fatal(err)
				}
			}
			if !cat.Reached(withdrawal) {
				t.Error("the withdrawal is not done with, so it is never forgotten")
			}
			if c.stays && (cat.ReachedTarget(ref) != build || !cat.Reached(sign(4, build, true))) {
				t.Errorf("at %s, and the next older withdrawal purges it", cat.ReachedTarget(ref))
			}
		})
	}
}

// damage garbles the record of ref on disk.
func damage(t *testing.T, path string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bolt.Tx) error {
		records := tx.Bucket([]byte("records"))
		b := append([]byte(nil), records.Get([]byte(ref))...)
		b[len(b)/2] ^= 1
		return records.Put([]byte(ref), b)
	})
	if err != nil {
		t.Fatal(err)
	}
}
