package p2p_test

import (
	"context"
	"flag"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// raceDetector is set where it is on.
var raceDetector bool

// withoutRace is why a test is skipped then.
const withoutRace = "the race detector takes five times the CPU; make cluster runs this without"

var (
	full = flag.Bool("cluster", false, "simulate clusters of 1,000 nodes, too")
	seed = flag.Uint64("seed", 1, "of what the simulated clusters go through")
)

// simulate runs a scenario in clusters of several sizes, each in a bubble of its own.
func simulate(t *testing.T, sizes []int, scenario func(c *simCluster)) {
	t.Parallel()
	for _, n := range sizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			switch {
			case n > 8 && raceDetector:
				t.Skip(withoutRace)
			case n > 200 && !*full:
				t.Skip("takes minutes; make sim runs it")
			}
			synctest.Test(t, func(t *testing.T) {
				c := newSim(t, *seed, n)
				t.Cleanup(c.stop)
				scenario(c)
			})
		})
	}
}

// An announcement reaches a cluster that has just come up, and the next one right
// after it: what the first one set off must not stand in its way.
func TestClusterSpreads(t *testing.T) {
	simulate(t, []int{3, 8, 50, 200, 1000}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		c.announce(c.nodes[0], refFor("a", "all"))
		c.within(30*time.Second, "an announcement in the join storm is everywhere", c.converged)
		time.Sleep(20 * time.Second)
		idle := c.packetBytes(10 * time.Second)
		late := 0
		for range 3 {
			c.announce(c.any(), refFor("a", "few"))
			if c.within(30*time.Second, "an announcement is known everywhere", c.same) > 3*time.Second {
				late++ // gossip is chance: a node in some thousand hears of it a little later
			}
			c.within(5*time.Second, "and held", c.converged)
		}
		if late > 1 {
			c.t.Errorf("%d announcements of 3 took more than 3 s", late)
		}
		c.announce(c.any(), refFor("a", "few"))
		extra := (c.packetBytes(10*time.Second) - idle) / int64(len(c.nodes))
		c.t.Logf("an announcement costs %d bytes of gossip on each node", extra)
		if extra > 4<<10 {
			c.t.Errorf("an announcement costs %d bytes of gossip on each node, at most 4 KiB are meant", extra)
		}
	})
}

// Who joins or returns asks at once what there is.
func TestClusterNewcomerStartsAtOnce(t *testing.T) {
	simulate(t, []int{3, 8, 50}, func(c *simCluster) {
		last := len(c.nodes) - 1
		c.start(c.nodes[:last]...)
		c.within(2*time.Second, "all see all", c.allAlive)
		c.announce(c.nodes[0], refFor("a", "all"))
		c.within(30*time.Second, "the announcement is everywhere", c.converged)
		c.start(c.nodes[last])
		c.within(time.Second, "a new node has caught up", c.converged)
		c.kill(c.nodes[last])
		c.announce(c.nodes[0], refFor("a", "all"))
		c.within(30*time.Second, "the next one is everywhere else", c.converged)
		c.start(c.nodes[last])
		c.within(time.Second, "the returning node has caught up", c.converged)
	})
}

// A node that asks a member which does not answer goes on with the others: pulling
// from one that is deaf, and looking for peers while an owner has just died.
func TestClusterOneThatIsSilentHoldsNobodyUp(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		deaf := c.nodes[2]
		c.net.Cut(hosts(c.nodes[:2]), hosts(c.nodes[2:]))
		c.announce(deaf, refFor("unheard", "all"))
		delete(c.newest, refFor("unheard", "all"))
		time.Sleep(500 * time.Millisecond) // both others try to pull it now
		deaf.up = false                    // not asked
		c.announce(c.nodes[0], refFor("a", "all"))
		c.within(1500*time.Millisecond, "the other one holds it", func() error {
			have, err := c.nodes[1].store.List(context.Background())
			if d := c.newest[refFor("a", "all")].Announcement().Target.Digest; have[refFor("a", "all")] != d || err != nil {
				return fmt.Errorf("it holds %v %v", have, err)
			}
			return nil
		})
		deaf.up = true
	})
}

// Two halves go on by themselves: they announce the same references and others.
func TestClusterPartition(t *testing.T) {
	sizes := []int{3, 8, 50}
	if *full {
		sizes = append(sizes, 200) // two minutes of CPU
	}
	simulate(t, sizes, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		c.announce(c.any(), refFor("tie", "all"))
		for _, name := range []string{"left-ahead", "withdrawn-left", "withdrawn-first"} {
			c.announce(c.any(), refFor(name, "few"))
		}
		c.within(30*time.Second, "all hold what was there before", c.converged)

		left, right := c.nodes[:(len(c.nodes)+1)/2], c.nodes[(len(c.nodes)+1)/2:]
		c.net.Part(hosts(left), hosts(right))
		l, r := left[len(left)-1], right[0]
		c.announce(l, refFor("tie", "all"))
		c.announce(r, refFor("tie", "all"))
		c.announce(l, refFor("only-left", "few"))
		c.announce(r, refFor("only-right", "few"))
		c.announce(r, refFor("left-ahead", "few"))
		c.announce(l, refFor("left-ahead", "few"))
		c.announce(l, refFor("left-ahead", "few"))
		c.announce(r, refFor("withdrawn-left", "few"))
		c.withdraw(r, refFor("withdrawn-first", "few"))
		time.Sleep(time.Second) // a tie of versions goes to the later one
		c.withdraw(l, refFor("withdrawn-left", "few"))
		c.announce(l, refFor("withdrawn-first", "few"))
		c.within(3*time.Minute, "the other half is dead to each", func() error {
			for _, nd := range c.nodes {
				if got := nd.Status(context.Background()).Members; got > len(left) {
					return fmt.Errorf("%s sees %d members", nd.cfg.Name, got)
				}
			}
			return nil
		})
		if len(c.nodes) <= 50 {
			time.Sleep(time.Minute) // memberlist itself comes back to whom it lost within half a minute
		}
		c.net.Heal()
		c.within(2*time.Minute, "all see all again", c.allAlive)
		c.within(time.Minute, "one winner everywhere", c.converged)
	})
}

// Nothing reaches some nodes, which others hear; a tenth of all packets is lost.
func TestClusterOneWayLoss(t *testing.T) {
	simulate(t, []int{3, 8, 50}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		c.net.SetLoss(0.1)
		c.announce(c.any(), refFor("a", "all"))
		c.within(30*time.Second, "a tenth lost: all hold it", c.converged)

		deaf, well := c.nodes[:(len(c.nodes)+5)/6], c.nodes[(len(c.nodes)+5)/6:]
		c.net.Cut(hosts(well), hosts(deaf))
		c.announce(well[0], refFor("a", "all"))
		c.announce(deaf[0], refFor("unheard", "few"))
		for _, nd := range deaf {
			nd.up = false // not asked
		}
		heard := c.newest[refFor("unheard", "few")]
		delete(c.newest, refFor("unheard", "few"))
		c.within(30*time.Second, "all that hear anything hold it", c.converged)
		time.Sleep(30 * time.Second)
		for _, nd := range deaf {
			nd.up = true
		}
		c.newest[refFor("unheard", "few")] = heard
		c.net.Heal()
		c.within(2*time.Minute, "all hold everything", c.converged)
		c.net.SetLoss(0)
		c.within(2*time.Minute, "all see all", c.allAlive)
	})
}

// Nodes die without a word, come back with their disks, leave, return; meanwhile
// images are announced and withdrawn, by nodes that may be gone the next moment.
func TestClusterChurn(t *testing.T) {
	simulate(t, []int{3, 8, 50}, func(c *simCluster) {
		c.net.SetLoss(0.02)
		c.start(c.nodes...)
		for range 30 {
			c.stir()
			time.Sleep(time.Duration(c.rng.IntN(5000)) * time.Millisecond)
		}
		c.net.SetLoss(0)
		for _, nd := range c.nodes {
			if !nd.up {
				c.start(nd)
			}
		}
		c.within(2*time.Minute, "all see all", c.allAlive)
		c.within(time.Minute, "all hold everything", c.converged)
	})
}

// A node that was away for longer than a withdrawal is part of the catalog brings
// back neither what was withdrawn nor the build from before it was announced anew.
func TestClusterTombstones(t *testing.T) {
	simulate(t, []int{5}, func(c *simCluster) {
		withdrawn, again := refFor("withdrawn", "all"), refFor("again", "all")
		away, fresh := c.nodes[3], c.nodes[4]
		c.start(c.nodes[:4]...)
		c.within(2*time.Second, "all see all", c.allAlive)
		for range 3 {
			c.announce(c.any(), withdrawn)
			c.announce(c.any(), again)
			c.within(30*time.Second, "all hold both", c.converged)
		}
		c.kill(away)
		c.withdraw(c.nodes[0], withdrawn)
		c.withdraw(c.nodes[1], again)
		c.within(30*time.Second, "all others have let both go", c.converged)

		// Nobody runs meanwhile: a month of memberlist's ticks is long.
		c.leave(c.running()...)
		time.Sleep(31 * 24 * time.Hour)
		c.start(c.nodes[:3]...)
		c.within(time.Minute, "the withdrawals have lived their time", func() error {
			for _, nd := range c.running() {
				if got := nd.CatalogHash(); got != 0 {
					return fmt.Errorf("the catalog of %s is not empty", nd.cfg.Name)
				}
			}
			return nil
		})
		delete(c.newest, withdrawn)
		delete(c.newest, again)
		c.announce(c.nodes[0], again)
		c.start(away, fresh)
		c.within(time.Minute, "only what was announced anew is left", func() error {
			for _, nd := range c.running() {
				have, err := nd.store.List(context.Background())
				if _, ok := have[withdrawn]; ok || err != nil {
					return fmt.Errorf("%s holds what was withdrawn: %v, %v", nd.cfg.Name, have, err)
				}
				if rec, ok := nd.Record(withdrawn); ok {
					return fmt.Errorf("%s has %+v", nd.cfg.Name, rec.Announcement())
				}
			}
			return c.converged()
		})
	})
}

// stir lets something happen: a third of it to nodes, the rest to announcements.
func (c *simCluster) stir() {
	c.t.Helper()
	nd := c.nodes[c.rng.IntN(len(c.nodes))]
	ref := refFor(fmt.Sprintf("image-%d", c.rng.IntN(4)), "few")
	switch dice := c.rng.IntN(9); {
	case !nd.up:
		c.start(nd)
	case dice < 2 && len(c.running()) > 1:
		c.kill(nd)
	case dice < 3 && len(c.running()) > 1:
		c.leave(nd)
	case dice < 5:
		if rec, ok := nd.Record(ref); ok && !rec.Announcement().Withdrawn {
			c.withdraw(nd, ref)
			return
		}
		fallthrough
	default:
		c.announce(nd, ref)
		if dice == 8 && len(c.running()) > 1 {
			c.kill(nd)
		}
	}
}
