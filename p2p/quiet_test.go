package p2p_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"seeder/p2p"
	"seeder/p2p/p2ptest"
	"seeder/p2p/trust"
)

// TestOneWarning: containerd that goes away under the work on several images is one
// cause, and one line of the log.
func TestOneWarning(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	nd := newTestNode(t, "n0", trust.GenerateSecret(), nil)
	nd.cfg.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	nd.open(t)
	nd.waitFor(t, "the store is there", func() bool { return nd.Status(t.Context()).Containerd.OK })
	var images []p2p.Prepared
	for i := range uint64(4) {
		images = append(images, nd.store.Add(fmt.Sprintf("docker.io/library/app%d:latest", i), blob(i, 1<<10), 256<<10))
	}
	nd.store.SetDown(p2ptest.ErrDown)
	for _, a := range images {
		announce(t, nd, a)
	}
	nd.waitFor(t, "all say that the store is away", func() bool {
		all, err := nd.Images(t.Context())
		if err != nil || len(all.Images) != 4 {
			return false
		}
		for _, row := range all.Images {
			if !strings.Contains(row.Nodes[0].Reason, p2ptest.ErrDown.Error()) {
				return false
			}
		}
		return true
	})
	if got := log.lines(""); len(got) != 1 || !strings.Contains(got[0], "waiting for containerd") {
		t.Errorf("%d warnings for one cause:\n%s", len(got), strings.Join(got, ""))
	}
}

// busyStore does not answer its second question in time.
type busyStore struct {
	*p2ptest.Store
	asked atomic.Int32
}

func (s *busyStore) Health(ctx context.Context) (address, version string, err error) {
	if s.asked.Add(1) == 2 {
		<-ctx.Done()
		return "memory", "1", ctx.Err()
	}
	return s.Store.Health(ctx)
}

// TestBusyStore: a containerd that is late once is busy, and not away.
func TestBusyStore(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	nd := newTestNode(t, "n0", trust.GenerateSecret(), nil)
	nd.cfg.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	store := &busyStore{Store: nd.store}
	nd.Node = p2p.New(nd.cfg, store)
	if err := nd.Node.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nd.Node.Close() })
	nd.waitFor(t, "it was asked again", func() bool { return store.asked.Load() >= 4 })
	if got := log.lines(""); len(got) != 0 || !nd.Status(t.Context()).Containerd.OK {
		t.Errorf("warnings for one late answer: %v", got)
	}
}
