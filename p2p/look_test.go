package p2p_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/p2p"
	"seeder/p2p/p2ptest"
)

// lookedAt is a store that counts how often it is asked, and calls importing before
// it names an image.
type lookedAt struct {
	*p2ptest.Store
	lists, checks atomic.Int64
	importing     func()
}

func (s *lookedAt) List(ctx context.Context) (map[string]digest.Digest, error) {
	s.lists.Add(1)
	return s.Store.List(ctx)
}

func (s *lookedAt) Check(ctx context.Context, ref string, target digest.Digest) (bool, string, error) {
	if ref == testRef {
		s.checks.Add(1)
	}
	return s.Store.Check(ctx, ref, target)
}

func (s *lookedAt) Image(ctx context.Context, index []byte) (p2p.Image, error) {
	img, err := s.Store.Image(ctx, index)
	return importing{img, s}, err
}

type importing struct {
	p2p.Image
	s *lookedAt
}

func (i importing) Import(ctx context.Context, ref string) error {
	if ref == testRef {
		i.s.importing()
	}
	return i.Image.Import(ctx, ref)
}

// TestLooksOnceAfterAnImport: what happens in the store while an image is fetched is
// answered by the look at its end. Each look asks containerd for every blob.
func TestLooksOnceAfterAnImport(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 2)
	nd := nodes[1]
	nd.close(t)
	s := &lookedAt{Store: nd.store}
	happen := func(ref string) { // an event, for which the loop lists the images
		before := s.lists.Load()
		s.Add(ref, blob(7, 1<<10), 1<<10)
		nd.waitFor(t, "a look at the store", func() bool { return s.lists.Load() > before })
	}
	s.importing = func() { happen("docker.io/library/during:1"); happen("docker.io/library/during:2") }
	nd.Node = p2p.New(nd.cfg, s)
	if err := nd.Node.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nd.Node.Close() })
	a := nodes[0].store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, nodes[0], a)
	nd.holds(t, a)
	nodes[0].readyOn(t, testRef, 1, 2)
	happen("docker.io/library/after:1")
	happen("docker.io/library/after:2")
	if got := s.checks.Load(); got != 2 {
		t.Errorf("it was looked at %d times, want 2: before the fetch and after the import", got)
	}
	// What happens after that look is looked at.
	s.Forget(testRef)
	nd.holds(t, a)
}
