package p2p_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"seeder/p2p/report"
)

// countsAt says whether nd counts that many nodes for ref, and of them so many away.
func countsAt(c *simCluster, nd *simNode, ref string, total, away int) func() error {
	return func() error {
		images, err := nd.Images(context.Background(), ref)
		if err != nil {
			c.t.Fatal(err)
		}
		if r := images.Images[0]; r.Total != total || r.Away != away {
			return fmt.Errorf("%s counts %d, %d away: %+v", nd.cfg.Name, r.Total, r.Away, r.Nodes)
		}
		return nil
	}
}

// TestClusterCountsThoseThatDiedBefore: a node counts a member that it never reached, since
// that died before the node was started or just then, as long as others know it: since when
// it is away, also after a restart, until somebody forgets it, and then for good.
func TestClusterCountsThoseThatDiedBefore(t *testing.T) {
	for _, before := range []time.Duration{0, time.Hour} {
		t.Run(before.String(), func(t *testing.T) {
			simulate(t, []int{4}, func(c *simCluster) {
				ref, lost, late := refFor("a", "all"), c.nodes[2], c.nodes[3]
				c.start(c.nodes[:3]...)
				c.within(5*time.Second, "all see all", c.allAlive)
				c.announce(c.nodes[0], ref)
				c.within(30*time.Second, "all hold it", c.converged)
				died := time.Now()
				c.kill(lost)
				time.Sleep(before)
				c.start(late)
				c.within(30*time.Second, "the new node holds it", c.converged)
				c.within(time.Minute, "the new node counts the one that died", countsAt(c, late, ref, 4, 1))
				for _, m := range late.Members().Members {
					if m.Name == lost.cfg.Name && (m.State != "dead" || m.ID != string(lost.ID()) || m.Since.Before(died.Add(-time.Minute)) || m.Since.After(died.Add(2*time.Minute))) {
						t.Errorf("it died %s: %+v", died, m)
					}
				}
				c.leave(late)
				c.start(late)
				c.within(10*time.Second, "also after a restart", countsAt(c, late, ref, 4, 1))
				if err := late.Forget(lost.cfg.Name); err != nil {
					t.Fatal(err)
				}
				for _, nd := range c.running() {
					c.within(10*time.Second, "it is forgotten everywhere", countsAt(c, nd, ref, 3, 0))
				}
				time.Sleep(5 * time.Minute)
				for _, nd := range c.running() {
					c.within(0, "and stays forgotten", countsAt(c, nd, ref, 3, 0))
				}
				c.start(lost)
				c.within(10*time.Second, "it is back", c.allAlive)
				c.within(10*time.Second, "and counted", countsAt(c, late, ref, 4, 0))
			})
		})
	}
}

// vouch is an exchange of states, framed as on a stream, that says of n members that do not
// exist that they died.
func vouch(from string, first, n int) []byte {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf(`{"n":"ghost%d","g":"10.7.%d.%d:7950","t":"10.7.%d.%d:7951","v":"x","s":60}`, first+i, (first+i)>>8, i&255, (first+i)>>8, i&255))
	}
	return exchangeOf(fmt.Sprintf(`{"n":%q,"h":0,"a":[%s]}`, from, strings.Join(list, ",")))
}

// TestClusterInventedDead: a member that invents members that died has others count 128 of
// them at most, and is believed nothing of those that are there; each can be forgotten.
func TestClusterInventedDead(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		ref, evil, victim := refFor("a", "all"), c.nodes[2], c.nodes[0]
		c.start(c.nodes...)
		c.within(5*time.Second, "all see all", c.allAlive)
		c.announce(victim, ref)
		c.within(5*time.Second, "all hold it", c.converged)
		for i := range 20 {
			if err := evil.SendGossip(context.Background(), victim.cfg.TransferBind, vouch(evil.cfg.Name, 100*i, 100)); err != nil {
				t.Fatal(err)
			}
		}
		c.within(0, "so many are counted", countsAt(c, victim, ref, 3+128, 128))
		c.within(0, "and by no other node", countsAt(c, c.nodes[1], ref, 3, 0))
		if err := victim.Forget("ghost7"); err != nil {
			t.Fatal(err)
		}
		c.within(5*time.Second, "one is forgotten", countsAt(c, victim, ref, 3+127, 127))
		time.Sleep(2 * time.Minute)
		c.within(0, "nobody else counts any", countsAt(c, c.nodes[1], ref, 3, 0))
		c.announce(victim, ref)
		c.within(5*time.Second, "an announcement is everywhere", c.converged)
		images, err := victim.Images(context.Background(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if r := images.Images[0]; !r.Settled() || r.Ready != 3 {
			t.Errorf("settled %t, %d ready", r.Settled(), r.Ready)
		}
		for _, n := range images.Images[0].Nodes {
			if n.Away != (n.State == report.Unreachable) {
				t.Errorf("%+v", n)
			}
		}
	})
}
