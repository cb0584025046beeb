package p2p_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// Nothing but what is announced stays pinned on the host where the builds are imported:
// the one before is released with the next announcement, long before the janitor looks.
func TestReleasesEarlierBuilds(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		for _, nd := range c.nodes {
			nd.cfg.Follow = true
		}
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		nd, ref := c.nodes[0], refFor("a", "all")
		c.announce(nd, ref)
		c.within(5*time.Second, "all hold it", c.converged)
		for i := range 3 {
			next := nd.store.Add(ref, []byte(fmt.Sprint("the next build ", i)), 16).Target.Digest
			c.within(5*time.Second, "only what is announced is wanted", func() error {
				if rec, ok := nd.Record(ref); !ok || rec.Announcement().Target.Digest != next {
					return fmt.Errorf("version %d is announced", rec.Announcement().Version)
				}
				if got := nd.store.Wanted()[ref]; !slices.Equal(got, []digest.Digest{next}) {
					return fmt.Errorf("%v is wanted, %s is announced", got, next)
				}
				return nil
			})
			if rec, ok := nd.Record(ref); ok {
				c.newest[ref] = rec
			}
			c.within(5*time.Second, "all hold it", c.converged)
		}
		if _, err := nd.Images(context.Background(), ref); err != nil {
			t.Error(err)
		}
	})
}
