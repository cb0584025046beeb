package p2p_test

import (
	"context"
	"strings"
	"testing"

	"seeder/p2p"
	"seeder/p2p/report"
	"seeder/store/chunk"
)

// halfImage gives away the first half of its chunks; of the others nothing comes.
type halfImage struct{ p2p.Image }

func (i halfImage) Frame(ctx context.Context, n int) (chunk.Frame, error) {
	if n < i.Len()/2 {
		return i.Image.Frame(ctx, n)
	}
	<-ctx.Done()
	return chunk.Frame{}, context.Cause(ctx)
}

// TestAnnouncerVanishes: what only the announcer had is waited for, and every node
// says for whom, to anybody who asks, until it is back or a newer build makes the wait
// pointless: that cancels the fetch of the older one.
func TestAnnouncerVanishes(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	gone, others := nodes[0], nodes[1:]
	gone.close(t)
	gone.Node = p2p.New(gone.cfg, brokenStore{gone.store, func(img p2p.Image) (p2p.Image, error) { return halfImage{img}, nil }})
	if err := gone.Node.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gone.Node.Close() })
	gone.waitFor(t, "3 alive members", func() bool { return alive(gone) == 3 })
	announce(t, gone, gone.store.Add(testRef, blob(1, 4<<20), 256<<10))
	for _, nd := range others {
		nd.waitFor(t, "half of it", func() bool { return cellOf(t, nd, nd.cfg.Name).DoneBytes >= 2<<20 })
	}
	gone.close(t)
	for _, nd := range others {
		for _, of := range others {
			nd.waitFor(t, "whose return "+of.cfg.Name+" waits for", func() bool {
				c := cellOf(t, nd, of.cfg.Name)
				return c.State == report.Fetching && strings.HasSuffix(c.Reason, "8 of the 8 missing chunks are on no peer that answers; they were on n0")
			})
		}
	}
	a := others[0].store.Add(testRef, blob(2, 1<<20), 256<<10)
	announce(t, others[0], a)
	others[1].holds(t, a)
}
