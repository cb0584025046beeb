package p2p_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"seeder/p2p"
	"seeder/p2p/report"
)

// cell is what nd shows of itself for ref.
func (c *simCluster) cell(nd *simNode, ref string) report.NodeState {
	c.t.Helper()
	imgs, err := nd.Images(context.Background(), ref)
	if err != nil {
		return report.NodeState{}
	}
	for _, n := range imgs.Images[0].Nodes {
		if n.Name == nd.cfg.Name {
			return n
		}
	}
	return report.NodeState{}
}

// followers makes nodes follow what they have announced.
func followers(nodes ...*simNode) {
	for _, nd := range nodes {
		nd.cfg.Follow = true
	}
}

// A host without the platform of an image says so for as long as that holds, and
// nobody waits for it; it holds the image once it can.
func TestExcludedStaysExcluded(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		ref, other := refFor("a", "all"), c.nodes[2]
		const why = "the image is for linux/arm64, this host runs linux/amd64"
		a := c.nodes[0].store.Add(ref, []byte("for arm64"), 16)
		other.store.SetExcluded(a.Target.Digest, why)
		if _, err := c.nodes[0].AnnouncePrepared(context.Background(), a); err != nil {
			c.t.Fatal(err)
		}
		excluded := func() error {
			if got := c.cell(other, ref); got.State != report.Excluded || got.Reason != why {
				return fmt.Errorf("%s (%s)", got.State, got.Reason)
			}
			return nil
		}
		c.within(10*time.Second, "excluded", excluded)
		for range 120 {
			time.Sleep(time.Second)
			if err := excluded(); err != nil {
				c.t.Fatal(err)
			}
		}
		// Somebody brings it anyway, and takes it away again.
		other.store.SetExcluded(a.Target.Digest, "")
		other.store.Add(ref, []byte("for arm64"), 16)
		c.within(time.Second, "held", func() error {
			if got := c.cell(other, ref); got.State != report.Ready {
				return fmt.Errorf("%s (%s)", got.State, got.Reason)
			}
			return nil
		})
	})
}

// A new build of an announced reference is announced within two seconds, also while
// other images come and go without a pause; k3s that imports an old file again at its
// start announces nothing, a person who goes back does.
func TestFollowsNewBuilds(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		ref, nd := refFor("a", "all"), c.nodes[0]
		followers(c.nodes...)
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		c.announce(nd, ref)
		c.within(10*time.Second, "everywhere", c.converged)
		at := func(version uint64, build string) func() error {
			want := nd.store.Add("docker.io/library/scratch:"+fmt.Sprint(version), []byte(build), 16).Target.Digest
			return func() error {
				for _, nd := range c.nodes {
					rec, _ := nd.Record(ref)
					have, _ := nd.store.List(context.Background())
					if a := rec.Announcement(); a.Version != version || a.Target.Digest != want || have[ref] != want {
						return fmt.Errorf("%s is at version %d with %s, want %d with %s", nd.cfg.Name, a.Version, have[ref], version, want)
					}
				}
				return nil
			}
		}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		defer func() { stop(); <-done }()
		go func() {
			defer close(done)
			for i := 0; ctx.Err() == nil; i++ {
				nd.store.Add(fmt.Sprintf("docker.io/library/busy:%d", i%10), []byte("x"), 16)
				time.Sleep(50 * time.Millisecond)
			}
		}()
		time.Sleep(time.Second)
		two := at(2, "two")
		nd.store.Add(ref, []byte("two"), 16)
		c.within(2*time.Second, "a new build in a storm of events is everywhere", two)
		stop()
		<-done
		three := at(3, "three")
		nd.store.Add(ref, []byte("three"), 16)
		c.within(2*time.Second, "a new build is everywhere", three)

		nd.store.SetPreloaded(ref, true)
		nd.store.Add(ref, []byte("two"), 16)
		c.within(20*time.Second, "what k3s did is told", func() error {
			got := c.cell(nd, ref)
			if got.State != report.Excluded || !strings.Contains(got.Reason, "k3s imported the earlier build") {
				return fmt.Errorf("%s (%s)", got.State, got.Reason)
			}
			return nil
		})
		if rec, _ := nd.Record(ref); rec.Announcement().Version != 3 {
			c.t.Errorf("the start of k3s has announced version %d", rec.Announcement().Version)
		}
		nd.store.Add(ref, []byte("three"), 16)
		c.within(10*time.Second, "the announced build is back", func() error {
			if got := c.cell(nd, ref); got.State != report.Ready {
				return fmt.Errorf("%s (%s)", got.State, got.Reason)
			}
			return three()
		})
		nd.store.SetPreloaded(ref, false)
		back := at(4, "two")
		nd.store.Add(ref, []byte("two"), 16)
		c.within(10*time.Second, "an earlier build that a person has imported is everywhere", back)
	})
}

// What k3s has imported from its agent/images is announced, though newer versions of
// k3s label it as if it had been pulled, and do so after the import.
func TestAutoAnnouncesWhatK3sImports(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		followers(c.nodes...)
		for _, nd := range c.nodes {
			nd.cfg.AutoLocal = true
		}
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		ref, nd := refFor("dropped", "all"), c.nodes[1]
		nd.store.SetPulled(ref)
		nd.store.Add(ref, []byte("dropped"), 16)
		nd.store.SetPulled(refFor("pulled", "all"))
		nd.store.Add(refFor("pulled", "all"), []byte("pulled"), 16)
		nd.store.Add("not-a-reference-of-a-pod", []byte("odd"), 16)
		time.Sleep(4 * time.Second) // it has been looked at, and k3s is slow
		nd.store.SetPreloaded(ref, true)
		c.within(15*time.Second, "announced", func() error {
			for _, nd := range c.nodes {
				if have, _ := nd.store.List(context.Background()); have[ref] == "" {
					return fmt.Errorf("%s lacks it", nd.cfg.Name)
				}
			}
			return nil
		})
		time.Sleep(3 * time.Minute)
		imgs, err := nd.Images(context.Background())
		if err != nil || len(imgs.Images) != 1 || imgs.Images[0].Version != 1 {
			c.t.Errorf("announced: %+v %v, want %s alone, once", imgs, err, ref)
		}
	})
}

// A host that a rule excludes from now on releases what it held, once: the pin, and
// the earlier versions. The host that announced keeps what it announced.
func TestRuleLetsGo(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		for _, nd := range c.nodes {
			nd.cfg.KeepPrevious = 1
		}
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		ref := refFor("a", "all")
		c.announce(c.nodes[0], ref)
		c.within(10*time.Second, "everywhere", c.converged)
		c.announce(c.nodes[0], ref)
		c.within(10*time.Second, "the next build is everywhere", c.converged)
		for _, nd := range c.nodes {
			c.within(10*time.Second, "the first one is kept", func() error {
				if len(nd.store.Kept()) != 1 {
					return fmt.Errorf("%v", nd.store.Kept())
				}
				return nil
			})
		}
		for _, nd := range c.nodes {
			c.leave(nd)
			nd.cfg.Accept = patterns(t, "nothing:at-all")
			if nd == c.nodes[1] {
				nd.cfg.Accept = nil
			}
			c.start(nd)
		}
		for i, nd := range c.nodes {
			freed, kept := 0, 1
			if i == 2 {
				freed, kept = 1, 0
			}
			c.within(60*time.Second, "released on "+nd.cfg.Name, func() error {
				if f, k := nd.store.Released(), nd.store.Kept(); len(f) != freed || len(k) != kept {
					return fmt.Errorf("released %v, kept %v; want %d and %d", f, k, freed, kept)
				}
				return nil
			})
		}
		time.Sleep(20 * time.Minute)
		if f := c.nodes[2].store.Released(); len(f) != 1 || c.cell(c.nodes[2], ref).State != report.Excluded {
			c.t.Errorf("released %v, the cell is %+v", f, c.cell(c.nodes[2], ref))
		}
		// What it held is purged there, too.
		c.withdraw(c.nodes[0], ref)
		c.within(10*time.Second, "purged", func() error {
			if have, _ := c.nodes[2].store.List(context.Background()); have[ref] != "" {
				return fmt.Errorf("%s has %s", c.nodes[2].cfg.Name, have[ref])
			}
			return nil
		})
		if !slices.Equal(c.nodes[2].store.Released(), []string{ref}) {
			c.t.Errorf("released %v", c.nodes[2].store.Released())
		}
	})
}

// Where containerd does not heed pins the kubelet removes what is pinned, too, and is
// not fought: the second try waits for twice as long as the first.
func TestPinsThatDoNotCount(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		ref, nd := refFor("a", "all"), c.nodes[1]
		c.announce(c.nodes[0], ref)
		c.within(10*time.Second, "everywhere", c.converged)
		nd.store.Forget(ref)
		if took := c.within(10*time.Second, "back at once", c.converged); took > 2*time.Second {
			c.t.Errorf("a pinned image was brought back after %s", took)
		}
		nd.store.SetHeedsPins(false)
		for _, least := range []time.Duration{90 * time.Second, 3 * time.Minute} {
			nd.store.Forget(ref)
			time.Sleep(time.Second)
			if got := c.cell(nd, ref); got.State != report.Waiting || !strings.Contains(got.Reason, "too old for pins") {
				c.t.Errorf("%s (%s)", got.State, got.Reason)
			}
			if took := c.within(10*time.Minute, "back", c.converged); took < least {
				c.t.Errorf("brought back after %s, want %s", took, least)
			}
		}
	})
}

// A host that holds less of an image announces it once more: what was announced
// stands. After a withdrawal it counts.
func TestLessOfTheSameImage(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		ref := refFor("a", "all")
		c.announce(c.nodes[0], ref)
		c.within(10*time.Second, "everywhere", c.converged)
		before, _ := c.nodes[1].Record(ref)
		a := before.Announcement()
		less := p2p.Prepared{Reference: ref, Target: a.Target, Index: []byte("{}"), Bytes: a.ImageBytes - 1}
		if v, err := c.nodes[1].AnnouncePrepared(context.Background(), less); err != nil || v != a.Version {
			c.t.Errorf("announced as version %d, %v; want %d again", v, err, a.Version)
		}
		if v, err := c.nodes[1].AnnouncePrepared(context.Background(), less, "zone=a"); err != nil || v != a.Version+1 {
			c.t.Errorf("for other nodes: version %d, %v", v, err)
		}
		if rec, _ := c.nodes[1].Record(ref); rec.Announcement().Seed != a.Seed || rec.Announcement().ImageBytes != a.ImageBytes {
			c.t.Errorf("the others lose %+v to %+v", a, rec.Announcement())
		}
	})
}
