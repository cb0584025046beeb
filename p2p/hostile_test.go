package p2p_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p"
	"seeder/p2p/gossip"
	"seeder/p2p/p2ptest"
	"seeder/p2p/report"
	"seeder/p2p/swarm"
)

// lie makes nd a member whose chunks are not what they should be.
func (c *simCluster) lie(nd *simNode) {
	c.t.Helper()
	c.leave(nd)
	nd.host.SetUp(true)
	nd.Node = p2p.New(nd.cfg, brokenStore{nd.store, func(img p2p.Image) (p2p.Image, error) { return lyingImage{img}, nil }})
	if err := nd.Open(context.Background()); err != nil {
		c.t.Fatal(err)
	}
	nd.up = true
}

// holdsNewest says whether nd holds the newest build of ref.
func (c *simCluster) holdsNewest(nd *simNode, ref string) func() error {
	return func() error {
		have, err := nd.store.List(context.Background())
		if want := c.newest[ref].Announcement().Target.Digest; have[ref] != want {
			return fmt.Errorf("%s holds %q, want %q: %v", nd.cfg.Name, have[ref], want, err)
		}
		return nil
	}
}

// One member that tells everybody that honest members are at its own address, and that
// sends chunks which do not verify, keeps nobody from an image that an honest member
// holds, and nobody else is blamed for it.
func TestClusterOneLiarStopsNobody(t *testing.T) {
	simulate(t, []int{4}, func(c *simCluster) {
		announcer, honest, late, liar := c.nodes[0], c.nodes[1], c.nodes[2], c.nodes[3]
		c.start(announcer, honest, liar)
		c.within(2*time.Second, "all see all", c.allAlive)
		ref := refFor("a", "all")
		c.announce(announcer, ref)
		c.within(5*time.Second, "all hold it", c.converged)
		c.lie(liar)
		c.within(30*time.Second, "all see all", c.allAlive)
		seed := c.newest[ref].Announcement().Seed.Digest
		book := func() {
			for _, at := range []*simNode{announcer, honest, liar} {
				for _, name := range []*simNode{announcer, honest, late} {
					p := swarm.Peer{Name: name.cfg.Name, Address: liar.cfg.TransferBind, Complete: true}
					_ = liar.Book(context.Background(), at.cfg.TransferBind, seed, p) // who is away does not hear it
				}
			}
		}
		book()
		c.kill(announcer)
		c.start(late)
		c.within(10*time.Second, "the newcomer holds it", c.holdsNewest(late, ref))
		for _, e := range late.Events() {
			if e.Kind == report.EventBadChunk && e.Nodes[0] != liar.cfg.Name {
				t.Errorf("%v is blamed, it was %s", e.Nodes, liar.cfg.Name)
			}
		}

		// Nobody honest is there at first.
		c.announce(honest, ref)
		c.within(30*time.Second, "the liar has the next one, too", c.holdsNewest(liar, ref))
		c.leave(late)
		late.store.Forget(ref)
		c.announce(honest, ref)
		c.within(30*time.Second, "the liar has the third one", c.holdsNewest(liar, ref))
		seed = c.newest[ref].Announcement().Seed.Digest
		book()
		c.kill(honest)
		c.start(late)
		time.Sleep(45 * time.Second)
		if c.holdsNewest(late, ref)() == nil {
			t.Fatal("the image came from the liar")
		}
		c.start(honest)
		c.within(30*time.Second, "the newcomer has it from the honest member that is back", c.holdsNewest(late, ref))
	})
}

// Hints that one member makes up have the others ask whom they name now and then, not
// as often as hints come, and do not hold up what is true.
func TestClusterFalseHints(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		n0, n1 := c.nodes[0], c.nodes[1]
		c.announce(n0, refFor("a", "all"))
		c.within(5*time.Second, "all hold it", c.converged)
		before := n0.Pulled()
		const hints = 5000
		for i := range hints {
			n1.Hear(gossip.Hint{Reference: refFor(fmt.Sprint("made-up-", i), "all"), Digest: digest.FromString("x"), Version: 1, Holder: n0.cfg.Name})
			time.Sleep(2 * time.Millisecond)
		}
		if got := n0.Pulled() - before; got > 20 {
			t.Errorf("%d false hints in 10 s made a node ask %d times, at most 20 are meant", hints, got)
		}
		c.announce(n0, refFor("a", "all"))
		c.within(4*time.Second, "a true announcement is everywhere", c.converged)
	})
}

// Members that are made up with the address of one host are asked there once, and the
// answer is that of the host.
func TestClusterAsksAnAddressOnce(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		evil := c.nodes[2]
		twin := *evil
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		c.announce(c.nodes[0], refFor("a", "all"))
		c.within(5*time.Second, "all hold it", c.converged)
		// A fourth member says that it is where the third one is.
		twin.cfg.Name, twin.cfg.DataDir = "a-twin", t.TempDir()
		twin.host = c.net.Host(simIP(9))
		twin.cfg.Network, twin.store = twin.host, p2ptest.NewStore()
		twin.cfg.GossipBind, twin.cfg.TransferBind = simIP(9)+":7950", simIP(9)+":7951"
		twin.cfg.TransferAdvertise = evil.cfg.TransferBind
		c.nodes = append(c.nodes, &twin)
		c.start(&twin)
		c.within(5*time.Second, "all see all", c.allAlive)
		img, err := c.nodes[0].Images(context.Background(), refFor("a", "all"))
		if err != nil {
			t.Fatal(err)
		}
		states := map[string]report.NodeState{}
		for _, ns := range img.Images[0].Nodes {
			states[ns.Name] = ns
		}
		if got := states[evil.cfg.Name]; got.State != report.Ready {
			t.Errorf("the host itself: %+v", got)
		}
		if got := states["a-twin"]; got.State != report.Unreachable || !strings.Contains(got.Reason, evil.cfg.Name+" answers on its address") {
			t.Errorf("the one that is made up: %+v", got)
		}
	})
}
