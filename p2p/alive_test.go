package p2p_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p"
	"seeder/p2p/p2ptest"
)

// deafStore hangs when it is asked what there is: until the caller gives up, or
// where deaf is set until stop, which no real store does.
type deafStore struct {
	*p2ptest.Store
	mu   sync.Mutex
	deaf bool
	stop chan struct{}
}

func (s *deafStore) List(ctx context.Context) (map[string]digest.Digest, error) {
	s.mu.Lock()
	deaf := s.deaf
	s.mu.Unlock()
	if deaf {
		<-s.stop
		return nil, errors.New("stopped")
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (s *deafStore) Health(ctx context.Context) (string, string, error) {
	<-ctx.Done()
	return "", "", ctx.Err()
}

// TestStuck: a containerd that hangs for an hour makes no loop stuck, a call that
// does not end does.
func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSim(t, 1, 1)
		t.Cleanup(c.stop)
		nd := c.nodes[0]
		a := nd.store.Add(testRef, []byte("an image"), 16)
		s := &deafStore{Store: nd.store, stop: make(chan struct{})}
		nd.host.SetUp(true)
		nd.Node, nd.up = p2p.New(nd.cfg, s), true
		if err := nd.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := nd.AnnouncePrepared(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		for range 360 {
			time.Sleep(10 * time.Second)
			if err := nd.Stuck(); err != nil {
				t.Fatalf("while containerd hangs: %v", err)
			}
		}
		s.mu.Lock()
		s.deaf = true
		s.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if err := nd.Stuck(); err == nil || !strings.Contains(err.Error(), "converge loop") {
			t.Errorf("with a call that does not end: %v, want an error that names the converge loop", err)
		}
		s.mu.Lock()
		s.deaf = false
		s.mu.Unlock()
		close(s.stop)
		time.Sleep(time.Minute)
		if err := nd.Stuck(); err != nil {
			t.Errorf("after it has ended: %v", err)
		}
	})
}
