package matrix

import (
	"fmt"
	"maps"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/catalog"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

// TestRefusedByReason: each announcement that this node does not take is counted under the
// reason why, once.
func TestRefusedByReason(t *testing.T) {
	t.Parallel()
	identity := func(name string) *trust.Identity {
		id, err := trust.LoadOrCreateIdentity(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	stranger, member := identity("stranger"), identity("member")
	c, err := catalog.Open(catalog.Config{Path: filepath.Join(t.TempDir(), "catalog.db"), MaxBytes: 4 << 10, Allow: func(id trust.NodeID) bool { return id != stranger.ID() }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := New(Config{Catalog: c})
	merge := func(id *trust.Identity, name string, version uint64) {
		t.Helper()
		target := digest.FromString(name)
		r, err := catalog.Sign(id, catalog.Announcement{
			Reference: "docker.io/library/" + name + ":1", Version: version, NodeName: "h1", AnnouncedAt: time.Now(),
			Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: target, Size: 7},
			Seed:   catalog.Seed{Digest: target, Size: 7}, ImageBytes: 7,
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Merge(r); err != nil {
			t.Fatal(err)
		}
	}
	want := func(announcer, full, version int) {
		t.Helper()
		want := map[string]int{report.RefusedAnnouncer: announcer, report.RefusedFull: full, report.RefusedVersion: version}
		if got := m.refusedCounts(); !maps.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	}
	want(0, 0, 0)
	merge(stranger, "a", 1)
	want(1, 0, 0)
	merge(member, "b", 1<<53-1)
	want(1, 0, 1)
	for i := range 4 { // half of the room is for one announcer: two records
		merge(member, fmt.Sprint("c", i), 1)
	}
	want(1, 2, 1)
	merge(stranger, "a", 2)
	want(1, 2, 1)
}
