package p2p_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/p2p"
	"seeder/p2p/p2ptest"
	"seeder/p2p/report"
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

// unpacking is a store whose imports take long, and say how many layers they have unpacked.
type unpacking struct {
	*p2ptest.Store
	layers atomic.Int64
	end    chan struct{}
}

func (s *unpacking) Image(ctx context.Context, index []byte) (p2p.Image, error) {
	img, err := s.Store.Image(ctx, index)
	return slowImport{img, s}, err
}

type slowImport struct {
	p2p.Image
	s *unpacking
}

func (i slowImport) Unpacked() (layers, of int) { return int(i.s.layers.Load()), 4 }

func (i slowImport) Import(ctx context.Context, ref string) error {
	select {
	case <-i.s.end:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return i.Image.Import(ctx, ref)
}

// TestUnpackingIsShown: once every chunk is here, others see which layer is being unpacked.
func TestUnpackingIsShown(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 2)
	nd := nodes[1]
	nd.close(t)
	s := &unpacking{Store: nd.store, end: make(chan struct{})}
	nd.Node = p2p.New(nd.cfg, s)
	if err := nd.Node.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nd.Node.Close() })
	a := nodes[0].store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, nodes[0], a)
	for layers, want := range []string{"layer 1 of 4", "layer 2 of 4", "layer 3 of 4", "layer 4 of 4", "layer 4 of 4"} {
		s.layers.Store(int64(layers))
		nodes[0].waitFor(t, "unpacking "+want, func() bool {
			imgs, err := nodes[0].Images(t.Context(), testRef)
			return err == nil && slices.ContainsFunc(imgs.Images[0].Nodes, func(n report.NodeState) bool {
				return n.State == report.Importing && n.Reason == "all data received, unpacking "+want && n.DoneBytes == n.TotalBytes
			})
		})
	}
	close(s.end)
	nd.holds(t, a)
}
