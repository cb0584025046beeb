package announce_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/announce"
	"seeder/p2p/catalog"
	"seeder/p2p/report"
	"seeder/p2p/trust"
	"seeder/store/chunk"
)

// slow prepares the one build that it has; what happens meanwhile is up to the test.
type slow struct {
	build     digest.Digest
	meanwhile func()
}

// Prepare implements announce.Store.
func (s *slow) Prepare(_ context.Context, ref string, _ chunk.PrepareOptions) (chunk.Prepared, error) {
	s.meanwhile()
	return chunk.Prepared{Reference: ref, Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: s.build, Size: 1}, Index: []byte("an index"), Bytes: 1}, nil
}

// Has implements announce.Store.
func (s *slow) Has(_ context.Context, d digest.Digest) bool { return d == s.build }

// SeedIndex implements announce.Store.
func (*slow) SeedIndex(context.Context, digest.Digest) ([]byte, error) {
	return nil, errors.New("not needed")
}

// TestAgainIsSuperseded: a host that announces a build by itself, since its catalog did not
// know the reference or had another record of it, does not replace what it learns while it
// prepares the build: its own may be the older one.
func TestAgainIsSuperseded(t *testing.T) {
	t.Parallel()
	const ref = "docker.io/library/app:latest"
	dir := t.TempDir()
	identity := func(name string) *trust.Identity {
		id, err := trust.LoadOrCreateIdentity(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	here, other := identity("here"), identity("other")
	for name, known := range map[string]uint64{"unknown here": 0, "known as version 3": 3} {
		c, err := catalog.Open(catalog.Config{Path: filepath.Join(dir, name+".db")})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		learn := func(version uint64, build string) catalog.Record {
			rec, err := catalog.Sign(other, catalog.Announcement{Reference: ref, Version: version, AnnouncedAt: c.Now(), NodeName: "other", ImageBytes: 1,
				Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(build), Size: 1},
				Seed:   catalog.Seed{Digest: digest.FromString("seed of " + build), Size: 1}})
			if err != nil {
				t.Fatal(err)
			}
			if changed, err := c.Merge(rec); err != nil || len(changed) != 1 {
				t.Fatal(changed, err)
			}
			return rec
		}
		var since catalog.Record
		if known > 0 {
			since = learn(known, "known")
		}
		s := &slow{build: digest.FromString("here"), meanwhile: func() { learn(5, "newer") }}
		an := announce.New(announce.Config{Identity: here, Name: "here", Catalog: c, Store: s, Log: slog.New(slog.DiscardHandler), Confirmed: func() {}, Conflicts: func() []report.Conflict { return nil }, Published: func(catalog.Record) {}})
		if err := an.Again(t.Context(), ref, since); !errors.Is(err, catalog.ErrSuperseded) {
			t.Errorf("%s: %v", name, err)
		}
		now, _ := c.Get(ref)
		if a := now.Announcement(); a.Version != 5 || a.Target.Digest != digest.FromString("newer") {
			t.Errorf("%s: announced is version %d, %s", name, a.Version, a.Target.Digest)
		}
		s.meanwhile = func() {}
		if err := an.Again(t.Context(), ref, now); err != nil {
			t.Errorf("%s: with nothing new: %v", name, err)
		}
		if now, _ := c.Get(ref); now.Announcement().Target.Digest != s.build || now.Announcement().Version != 6 {
			t.Errorf("%s: %+v", name, now.Announcement())
		}
	}
}
