package p2p_test

import (
	"context"
	"strings"
	"testing"
	"time"
)

// TestClusterMembersSayWhatTheyAre: of each member is known how its containerd and its disk
// are and how long an image took; a member that is silent holds the list of members up for
// half a second only, and is shown as silent soon.
func TestClusterMembersSayWhatTheyAre(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		c.announce(c.nodes[0], refFor("a", "all"))
		c.within(30*time.Second, "all hold it", c.converged)
		images, err := c.nodes[1].Images(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for i, n := range images.Images[0].Nodes {
			if fetched := i > 0; fetched != (n.TookMS > 0) {
				t.Errorf("%s took %d ms", n.Name, n.TookMS)
			}
		}
		if r := c.nodes[1].Traffic(); sum(r.In) == 0 || sum(r.Out) == 0 {
			t.Errorf("traffic %+v", r)
		}
		hosts3 := hosts(c.nodes[2:])
		c.net.Cut(hosts(c.nodes[:2]), hosts3)
		c.nodes[2].up = false
		start := time.Now()
		members := c.nodes[1].AskMembers(context.Background()).Members
		if took := time.Since(start); took > 600*time.Millisecond {
			t.Errorf("the list of members took %s", took)
		}
		if len(members) != 3 {
			t.Fatalf("%+v", members)
		}
		for _, m := range members {
			if m.Host == nil || m.Host.Containerd == "" || m.Host.ContainerdAway != "" || m.Host.DiskBytes <= 0 || m.Host.FreeBytes > m.Host.DiskBytes {
				t.Errorf("%s: %+v", m.Name, m.Host)
			}
			if m.Reason != "" {
				t.Errorf("%s: %s", m.Name, m.Reason)
			}
		}
		time.Sleep(2500 * time.Millisecond) // its time to answer; gossip does not suspect it yet
		for _, m := range c.nodes[1].AskMembers(context.Background()).Members {
			if silent := strings.Contains(m.Reason, "is alive, but does not answer on "); silent != (m.Name == c.nodes[2].cfg.Name) {
				t.Errorf("%s: %q", m.Name, m.Reason)
			}
		}
		c.net.Heal()
		c.nodes[2].up = true
		c.within(30*time.Second, "all see all", c.allAlive)
		for _, m := range c.nodes[1].AskMembers(context.Background()).Members {
			if m.Reason != "" {
				t.Errorf("%s: %s", m.Name, m.Reason)
			}
		}
	})
}

// TestClusterSlowIsNotSilent: members that answer, but later than the list of members waits,
// are not said to be silent.
func TestClusterSlowIsNotSilent(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		c.net.SetLatency(200 * time.Millisecond)
		for range 10 {
			for _, m := range c.nodes[1].AskMembers(context.Background()).Members {
				if m.Reason != "" {
					t.Errorf("%s: %q", m.Name, m.Reason)
				}
			}
			time.Sleep(10 * time.Second)
		}
	})
}

func sum(list []int64) (s int64) {
	for _, n := range list {
		s += n
	}
	return s
}
