package p2p_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p"
	"seeder/p2p/p2ptest"
)

// What the simulation of test/dst has found, each at the lowest level that shows it.

// three runs a scenario in a cluster of three nodes.
func three(t *testing.T, scenario func(c *simCluster)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newSim(t, *seed, 3)
		t.Cleanup(c.stop)
		scenario(c)
	})
}

// A holder that has lost the seed index is not the last one to be asked.
func TestSeedIndexFromTheNextHolder(t *testing.T) {
	three(t, func(c *simCluster) {
		c.start(c.nodes[:2]...)
		c.within(2*time.Second, "both see both", c.allAlive)
		ref := refFor("a", "all")
		c.announce(c.nodes[0], ref)
		c.within(30*time.Second, "both hold it", c.converged)
		c.nodes[0].store.LoseIndex(ref)
		c.start(c.nodes[2])
		c.within(time.Second, "the third one gets it", c.converged)
	})
}

// A node that holds an image and has lost its seed index gets one: from others, or
// where it announced the image by cutting it again.
func TestLostSeedIndexIsMadeAgain(t *testing.T) {
	three(t, func(c *simCluster) {
		c.start(c.nodes[0])
		ref := refFor("a", "all")
		c.announce(c.nodes[0], ref)
		time.Sleep(time.Second)
		c.nodes[0].store.LoseIndex(ref)
		c.start(c.nodes[1:]...)
		c.within(30*time.Second, "the others get it of the only one that had it", c.converged)
	})
}

// A chunk that goes away while the image is being imported is fetched again.
func TestChunkThatWentAwayIsFetchedAgain(t *testing.T) {
	three(t, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		c.nodes[1].store.SetClaims(true)
		c.announce(c.nodes[0], refFor("a", "all"))
		time.Sleep(5 * time.Second)
		c.nodes[1].store.SetClaims(false)
		c.within(15*time.Second, "all hold it", c.converged)
	})
}

// hangingStore never answers what it is to keep, as a containerd that hangs.
type hangingStore struct{ *p2ptest.Store }

func (s hangingStore) KeepPrevious(ctx context.Context, _ []digest.Digest) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

// Jobs wait for what is kept of earlier versions no longer than they are meant to run.
func TestHangingKeepHoldsNoLock(t *testing.T) {
	three(t, func(c *simCluster) {
		nd := c.nodes[0]
		nd.host.SetUp(true)
		nd.Node = p2p.New(nd.cfg, hangingStore{nd.store})
		if err := nd.Open(context.Background()); err != nil {
			t.Fatal(err)
		}
		nd.up = true
		for _, name := range []string{"a", "b", "c"} {
			c.announce(nd, refFor(name, "all"))
		}
		time.Sleep(time.Minute)
	})
}

// A node ends in time although its farewell takes as long as it may, since members that
// somebody made up fill the queue of gossip, and another node takes slowly what it asked for.
func TestClosesInTime(t *testing.T) {
	three(t, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		nd := c.nodes[0]
		c.net.SetLink(hosts(c.nodes[:1]), hosts(c.nodes[1:2]), p2ptest.Link{BytesPerSec: 20_000})
		a := nd.store.Add(refFor("a", "all"), make([]byte, 4<<20), 1<<20)
		if _, err := nd.AnnouncePrepared(context.Background(), a); err != nil {
			c.t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if err := c.nodes[2].SendGossip(context.Background(), nd.cfg.TransferBind, ghosts(300)); err != nil {
			c.t.Fatal(err)
		}
		began := time.Now()
		c.leave(nd)
		if took := time.Since(began); took > 3500*time.Millisecond {
			c.t.Errorf("it took %s, want what answers may take from the beginning", took)
		} else {
			c.t.Logf("closed after %s", took)
		}
	})
}

// A member that does not answer when it is asked for what it has announced is asked again,
// and not only once it tells of itself the next time: its address may be another one since.
func TestPullIsTriedAgain(t *testing.T) {
	three(t, func(c *simCluster) {
		c.start(c.nodes[:2]...)
		c.within(2*time.Second, "both see both", c.allAlive)
		time.Sleep(5 * time.Minute) // no connection is left
		from, to := hosts(c.nodes[1:2]), hosts(c.nodes[:1])
		c.net.Cut(from, to)
		c.announce(c.nodes[0], refFor("a", "all"))
		time.Sleep(6 * time.Second) // the first try takes five
		c.net.Uncut(from, to)
		c.within(600*time.Millisecond, "the other one knows it", c.same)
	})
}
