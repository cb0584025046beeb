package p2p_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"seeder/p2p/report"
)

// What the converge loop's table uncovered, as a cluster shows it.

// An image that is fetched again only after a pause, since a kubelet has removed it
// before, and that somebody puts back, is ready then: nobody waits for the pause.
func TestPutBackWhileItWaits(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		ref, nd := refFor("a", "all"), c.nodes[1]
		c.announce(c.nodes[0], ref)
		c.within(10*time.Second, "everywhere", c.converged)
		nd.store.SetHeedsPins(false)
		nd.store.Forget(ref)
		time.Sleep(5 * time.Second)
		if got := c.cell(nd, ref); got.State != report.Waiting {
			c.t.Errorf("removed: %s (%s)", got.State, got.Reason)
		}
		nd.store.Add(ref, []byte(fmt.Sprintf("build 1 of %s, made on %s", ref, c.nodes[0].cfg.Name)), 16)
		c.within(15*time.Second, "ready again", func() error {
			if got := c.cell(nd, ref); got.State != report.Ready {
				return fmt.Errorf("%s (%s)", got.State, got.Reason)
			}
			return nil
		})
	})
}

// The host that announced an image for others alone is the one that they get it from: it
// makes a lost seed index again although a rule excludes it.
func TestLostSeedIndexOfAnImageForOthers(t *testing.T) {
	three(t, func(c *simCluster) {
		for i, nd := range c.nodes {
			nd.cfg.Labels = map[string]string{"zone": fmt.Sprint(i)}
		}
		c.start(c.nodes[0])
		ref := refFor("a", "all")
		a := c.nodes[0].store.Add(ref, []byte("an image for node 2 alone"), 16)
		if _, err := c.nodes[0].AnnouncePrepared(context.Background(), a, "zone=2"); err != nil {
			c.t.Fatal(err)
		}
		time.Sleep(time.Second)
		c.nodes[0].store.LoseIndex(ref)
		c.start(c.nodes[1:]...)
		c.within(30*time.Second, "the one that it is for gets it of the only one that had it", func() error {
			if have, _ := c.nodes[2].store.List(context.Background()); have[ref] != a.Target.Digest {
				return fmt.Errorf("it holds %q", have[ref])
			}
			return nil
		})
	})
}

// A host on which somebody has put another build under the name cannot do anything about
// a seed index that it is asked for; it does not try without a pause, either.
func TestLostSeedIndexOfAReplacedImage(t *testing.T) {
	three(t, func(c *simCluster) {
		c.start(c.nodes[:2]...)
		c.within(2*time.Second, "both see both", c.allAlive)
		ref := refFor("a", "all")
		c.announce(c.nodes[0], ref)
		c.within(30*time.Second, "both hold it", c.converged)
		c.nodes[0].store.LoseIndex(ref)
		c.nodes[1].store.Add(ref, []byte(fmt.Sprintf("build 1 of %s, made on %s", ref, c.nodes[0].cfg.Name)), 16)
		c.nodes[1].store.LoseIndex(ref)
		c.nodes[1].store.Add(ref, []byte("another build"), 16)
		c.within(15*time.Second, "excluded", func() error {
			if got := c.cell(c.nodes[1], ref); got.State != report.Excluded {
				return fmt.Errorf("%s (%s)", got.State, got.Reason)
			}
			return nil
		})
		c.start(c.nodes[2])
		c.within(30*time.Second, "the third one gets it", func() error {
			if got := c.cell(c.nodes[2], ref); got.State != report.Ready {
				return fmt.Errorf("%s (%s)", got.State, got.Reason)
			}
			return nil
		})
	})
}
