package p2p_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"seeder/p2p/report"
)

// TestClusterCountsKnownMembers: a node that went without a word stays one of those that
// are meant to hold an image, away since then, also after a restart of the one that is
// asked, until somebody forgets it. Nobody waits for it. What a containerd that is away
// holds is not ready.
func TestClusterCountsKnownMembers(t *testing.T) {
	simulate(t, []int{4}, func(c *simCluster) {
		ref := refFor("a", "all")
		c.nodes[1].cfg.Blocked = func() map[string]string { return map[string]string{ref: "its kubelet refuses it"} }
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		c.announce(c.nodes[0], ref)
		c.within(30*time.Second, "all hold it", c.converged)
		asked, lost, broken := c.nodes[0], c.nodes[2], c.nodes[3]
		row := func() report.ImageState {
			c.t.Helper()
			images, err := asked.Images(context.Background(), ref)
			if err != nil {
				c.t.Fatal(err)
			}
			return images.Images[0]
		}
		counts := func(ready, total, away int) func() error {
			return func() error {
				if r := row(); r.Ready != ready || r.Total != total || r.Away != away {
					return fmt.Errorf("%d of %d ready, %d away: %+v", r.Ready, r.Total, r.Away, r.Nodes)
				}
				return nil
			}
		}
		c.within(10*time.Second, "all are ready", counts(4, 4, 0))
		if r := row(); r.Nodes[1].Blocked != "its kubelet refuses it" || r.Nodes[0].Blocked != "" {
			c.t.Errorf("blocked: %+v", r.Nodes)
		}
		at := time.Now()
		c.kill(lost)
		c.within(time.Minute, "one is away", counts(3, 4, 1))
		if r := row(); !r.Settled() || r.Everywhere() || r.Nodes[2].State != report.Unreachable || r.Nodes[2].Since.Before(at) {
			c.t.Errorf("a node is away: settled %v, everywhere %v, %+v", r.Settled(), r.Everywhere(), r.Nodes[2])
		}
		c.leave(asked)
		c.start(asked)
		c.within(time.Minute, "one is still away after a restart", counts(3, 4, 1))

		broken.store.SetDown(fmt.Errorf("containerd is stopped"))
		c.within(30*time.Second, "its containerd is away, so it is not ready", counts(2, 4, 1))
		if r := row(); r.Settled() || r.Nodes[3].State != report.Waiting || r.Nodes[3].Reason != "waiting for containerd: containerd is stopped" {
			c.t.Errorf("containerd is away: settled %v, %+v", r.Settled(), r.Nodes[3])
		}
		if s := broken.Status(context.Background()); s.Converged || s.Images.Ready != 0 {
			c.t.Errorf("its own status: %+v", s)
		}
		broken.store.SetDown(nil)
		c.within(30*time.Second, "it is back", counts(3, 4, 1))

		if err := c.nodes[1].Forget(lost.cfg.Name); err != nil {
			c.t.Fatal(err)
		}
		c.within(10*time.Second, "it is forgotten everywhere", counts(3, 3, 0))
	})
}
