package p2p_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/p2p/trust"
)

// A host whose `announcers` leave out the one that announces says so to all others,
// and nobody waits for it; what it holds of that reference it goes on holding.
func TestClusterSaysWhatItRefuses(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		ref := refFor("a", "all")
		c.announce(c.nodes[0], ref)
		c.within(5*time.Second, "all hold it", c.converged)
		strict := c.nodes[1]
		c.leave(strict)
		strict.cfg.Announcers = []trust.NodeID{c.nodes[0].ID()}
		c.start(strict)
		c.within(5*time.Second, "all see all", c.allAlive)
		c.announce(c.nodes[2], ref)
		row := func(nd *simNode) (report.ImageState, map[string]report.NodeState) {
			out, err := nd.Images(context.Background(), ref)
			if err != nil {
				t.Fatal(err)
			}
			cells := map[string]report.NodeState{}
			for _, ns := range out.Images[0].Nodes {
				cells[ns.Name] = ns
			}
			return out.Images[0], cells
		}
		c.within(5*time.Second, "the host is excluded, and the others are ready", func() error {
			img, cells := row(c.nodes[0])
			got := cells[strict.cfg.Name]
			if got.State != report.Excluded || got.Reason != "its announcer is not in `announcers` on this host" || img.Ready != 2 || img.Total != 2 {
				return fmt.Errorf("%+v", img)
			}
			return nil
		})
		for _, m := range c.nodes[0].Diagnose(context.Background()).Members {
			if m.Protocols != "1" {
				t.Errorf("%s: protocols %q", m.Name, m.Protocols)
			}
			if strictOne := m.Name == strict.cfg.Name; m.Policy == nil || (len(m.Policy.Announcers) == 1) != strictOne {
				t.Errorf("%s: policy %+v", m.Name, m.Policy)
			}
		}
		if img, cells := row(strict); img.Version != 1 || cells[strict.cfg.Name].State != report.Ready {
			t.Errorf("on the host itself: %+v, want the version that it takes, ready", img)
		}
	})
}
