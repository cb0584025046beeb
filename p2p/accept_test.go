package p2p_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"seeder/p2p/trust"
)

// What the check of the configuration takes as a pattern a node goes by.
func TestClusterAcceptsByPattern(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		picky := c.nodes[1]
		picky.cfg.Accept = patterns(t, "app[ab]:*", "app?:v1")
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		for _, ref := range []string{"appa:v2", "appc:v1", "appc:v2"} {
			c.announce(c.nodes[0], "docker.io/library/"+ref)
		}
		c.within(5*time.Second, "it holds what it accepts", func() error {
			have, err := picky.store.List(context.Background())
			if len(have) != 2 || have["docker.io/library/appc:v2"] != "" {
				return fmt.Errorf("%v %v", have, err)
			}
			return nil
		})
	})
}

// An announcer that is excluded on a host is gone there after its next start, with what
// it has announced before.
func TestClusterDropsAnAnnouncer(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		good, bad := refFor("good", "all"), refFor("bad", "all")
		c.announce(c.nodes[0], good)
		c.announce(c.nodes[2], bad)
		c.within(5*time.Second, "both are everywhere", c.converged)
		evil := c.nodes[2].ID()
		for _, nd := range c.nodes[:2] {
			c.leave(nd)
			nd.cfg.Excluded = []trust.NodeID{evil}
			c.start(nd)
		}
		c.within(30*time.Second, "all see all", c.allAlive)
		time.Sleep(time.Minute)
		for _, nd := range c.nodes[:2] {
			_, hasBad := nd.Record(bad)
			_, hasGood := nd.Record(good)
			if hasBad || !hasGood {
				t.Errorf("%s: the excluded announcer's record is there: %v, the other's: %v", nd.cfg.Name, hasBad, hasGood)
			}
		}
		c.announce(c.nodes[0], bad)
		if rec, _ := c.nodes[0].Record(bad); rec.AnnouncedBy() != c.nodes[0].ID() {
			t.Error("its reference cannot be announced again")
		}
	})
}
