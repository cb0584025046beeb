package p2p_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"seeder/p2p"
	"seeder/p2p/p2ptest"
)

// deltaRate is the link of each host of these tests, in bytes a second, and deltaLayer the
// layer, which takes half a minute.
const (
	deltaRate  = 256 << 10
	deltaLayer = 8 << 20
)

// deltaCluster are nodes on slow links, of which the first has announced a build that all
// others but the last have. layer makes the next build.
func deltaCluster(t *testing.T, nodes int) (c *simCluster, ref string, next func() []byte) {
	c = newSim(t, *seed, nodes)
	t.Cleanup(c.stop)
	for _, nd := range c.nodes {
		nd.cfg.UploadLimit, nd.cfg.DownloadLimit = deltaRate, deltaRate
		nd.cfg.Deltas = nd.store.Deltas()
	}
	build := make([]byte, deltaLayer)
	rand.NewChaCha8([32]byte{7}).Read(build)
	c.start(c.nodes[:nodes-1]...)
	c.within(2*time.Second, "all see all", c.allAlive)
	ref = refFor("app", "all")
	c.announceBlob(c.nodes[0], ref, build)
	c.within(5*time.Minute, "the first build is everywhere", c.converged)
	return c, ref, func() []byte {
		out := bytes.Clone(build)
		for i := range 20 {
			copy(out[i*300_000:], "a change")
		}
		return out
	}
}

// announceBlob announces an image of one layer.
func (c *simCluster) announceBlob(nd *simNode, ref string, layer []byte) {
	c.t.Helper()
	a := nd.store.Add(ref, layer, 256<<10)
	if _, err := nd.AnnouncePrepared(context.Background(), a); err != nil {
		c.t.Fatal(err)
	}
	c.published(nd, ref)
}

// announceWhole announces an image of one layer, of which no delta is offered.
func (c *simCluster) announceWhole(nd *simNode, ref string, layer []byte) {
	c.t.Helper()
	nd.store.Add(ref, layer, 256<<10)
	if _, err := nd.Announce(context.Background(), ref, p2p.Options{NoDelta: true}); err != nil {
		c.t.Fatal(err)
	}
	c.published(nd, ref)
}

// traffic is what has come to, and gone out of, a node.
func (nd *simNode) traffic() (in, out int64) {
	tr := nd.Traffic()
	for i := range tr.In {
		in, out = in+tr.In[i], out+tr.Out[i]
	}
	return in, out
}

// whole is how long a layer takes that travels whole, over one link.
const whole = deltaLayer / deltaRate * time.Second

// TestClusterDelta: the second build goes to those that have the first one as a delta, and
// to the one that has not as ordinary chunks, also from those that rebuilt it.
func TestClusterDelta(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, ref, next := deltaCluster(t, 5)
		time.Sleep(11 * time.Minute) // traffic is that of ten minutes
		c.nodes[0].store.Deltas().Takes = 200 * time.Millisecond
		c.announceBlob(c.nodes[0], ref, next())
		took := c.within(whole/4, "the second build is where the first one is", c.converged)
		_, sent := c.nodes[0].traffic()
		t.Logf("the second build of %d bytes took %s, its announcer sent %d bytes to 3 hosts", deltaLayer, took, sent)
		if sent > deltaLayer/10 {
			t.Errorf("the announcer sent %d bytes, at most a tenth of the layer is meant", sent)
		}
		for _, nd := range c.nodes[1:4] {
			if n := len(nd.store.Deltas().Expected); n != 1 {
				t.Errorf("%s fetched %d deltas", nd.cfg.Name, n)
			}
		}
		last := c.nodes[4]
		last.cfg.DownloadLimit = 0
		c.start(last)
		took = c.within(whole, "a host without the base has it", c.converged)
		if in, _ := last.traffic(); in < deltaLayer || len(last.store.Deltas().Expected) > 0 {
			t.Errorf("a host without the base got %d bytes, and %d deltas", in, len(last.store.Deltas().Expected))
		}
		if took > whole/2 {
			t.Errorf("a host without the base took %s: those that rebuilt the layer serve it, too", took)
		}
	})
}

// TestClusterDeltaMadeMeanwhile: a delta that takes longer to make than chunks may be held back
// is taken when it is ready. Ordinary chunks come until then, so the time is not lost.
func TestClusterDeltaMadeMeanwhile(t *testing.T) {
	t.Parallel()
	if raceDetector {
		t.Skip(withoutRace)
	}
	for _, takes := range []time.Duration{5 * time.Second, 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			c, ref, next := deltaCluster(t, 4)
			time.Sleep(11 * time.Minute) // traffic is that of ten minutes
			c.nodes[0].store.Deltas().Takes = takes
			c.announceBlob(c.nodes[0], ref, next())
			took := c.within(takes+whole/8, "the second build is where the first one is", c.converged)
			_, sent := c.nodes[0].traffic()
			t.Logf("the delta was made in %s, the second build of %d bytes took %s, its announcer sent %d bytes", takes, deltaLayer, took, sent)
			if most := int64(float64(deltaRate)*took.Seconds()) + deltaLayer/10; sent > most {
				t.Errorf("the announcer sent %d bytes, at most %d are meant: what its link carries meanwhile", sent, most)
			}
			for _, nd := range c.nodes[1:3] {
				if n := len(nd.store.Deltas().Expected); n != 1 {
					t.Errorf("%s fetched %d deltas", nd.cfg.Name, n)
				}
				if said := nd.Status(t.Context()).NoDeltas; len(said) > 0 {
					t.Errorf("%s took the delta, and says %v", nd.cfg.Name, said)
				}
			}
		})
	}
}

// TestClusterDeltaLayers: while one layer is fetched as a delta, the delta of another one is
// made, and comes next; nothing of what is under way is begun anew, or counted twice.
func TestClusterDeltaLayers(t *testing.T) {
	t.Parallel()
	if raceDetector {
		t.Skip(withoutRace)
	}
	synctest.Test(t, func(t *testing.T) {
		c := newSim(t, *seed, 2)
		t.Cleanup(c.stop)
		for _, nd := range c.nodes {
			nd.cfg.UploadLimit, nd.cfg.DownloadLimit = deltaRate, deltaRate
			nd.cfg.Deltas = nd.store.Deltas()
		}
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		from, to, ref := c.nodes[0], c.nodes[1], refFor("app", "all")
		random := rand.NewChaCha8([32]byte{7})
		one, two := make([]byte, deltaLayer), make([]byte, deltaLayer)
		random.Read(one)
		random.Read(two)
		announce := func() {
			if _, err := from.AnnouncePrepared(context.Background(), from.store.AddLayers(ref, 256<<10, one, two)); err != nil {
				t.Fatal(err)
			}
			c.published(from, ref)
		}
		announce()
		c.within(5*time.Minute, "the first build is there", c.converged)
		one, two = bytes.Clone(one), bytes.Clone(two)
		for at := 0; at < deltaLayer; at += 256 << 10 { // in each chunk
			random.Read(one[at : at+100<<10]) // this delta takes longer than the other layer is held back
			copy(two[at:], "a change")
		}
		from.store.Deltas().Takes = 2 * time.Second
		announce()
		took := c.within(2*whole, "the second build is there", c.converged)
		if n := len(to.store.Deltas().Expected); n != 2 {
			t.Errorf("%d layers came as deltas after %s, want 2", n, took)
		}
		states, err := to.Images(context.Background(), ref)
		if err != nil {
			t.Fatal(err)
		}
		for _, ns := range states.Images[0].Nodes {
			if ns.Name == to.cfg.Name && ns.RebuiltBytes > 2*deltaLayer {
				t.Errorf("%d bytes were rebuilt of two layers of %d", ns.RebuiltBytes, deltaLayer)
			}
		}
	})
}

// TestClusterDeltaNeverLater: where a delta is of no use, or comes late or never, the second
// build is there at most 5 % later than without deltas, and nobody asks for that delta again.
func TestClusterDeltaNeverLater(t *testing.T) {
	t.Parallel()
	if raceDetector {
		t.Skip(withoutRace)
	}
	without := func(nodes []*simNode) {
		for _, nd := range nodes {
			nd.cfg.Deltas = nil
		}
	}
	deltas := func(set func(d *p2ptest.Deltas)) func(c *simCluster) {
		return func(c *simCluster) { set(c.nodes[0].store.Deltas()) }
	}
	damaged := func(p []byte) []byte {
		p = bytes.Clone(p)
		p[len(p)/2] ^= 1
		return p
	}
	times := map[string]time.Duration{}
	for _, test := range []struct {
		name  string
		alter func(c *simCluster)
		says  string // what the status of a host says
		fails bool   // it says that a delta failed
	}{
		{"off", func(*simCluster) {}, "", false},
		{"not known to the announcer", func(*simCluster) {}, "away, or offers none", false},
		{"of other bytes", deltas(func(d *p2ptest.Deltas) { d.Alter = damaged }), "invalid delta", true},
		{"not a delta", deltas(func(d *p2ptest.Deltas) { d.Alter = func([]byte) []byte { return []byte("not a delta") } }), "invalid delta", true},
		{"longer than half of the layer", deltas(func(d *p2ptest.Deltas) {
			d.Alter = func(p []byte) []byte { return append(p, make([]byte, deltaLayer/2)...) }
		}), "whole it is here in ", false},
		{"never made", deltas(func(d *p2ptest.Deltas) { d.Takes = time.Hour }), "as a delta in 3601", false},
		{"never made, said to be nearly ready", deltas(func(d *p2ptest.Deltas) { d.Takes, d.Says = time.Hour, time.Second }), "it was not made in time", false},
		{"another one each time", deltas(func(d *p2ptest.Deltas) { d.Flood = true }), "invalid delta", true},
		{"made too late", deltas(func(d *p2ptest.Deltas) { d.Takes, d.Says = 2*time.Minute, time.Second }), "it was not made in time", false},
		{"late, and of other bytes", deltas(func(d *p2ptest.Deltas) { d.Takes, d.Says, d.Alter = 5*time.Second, time.Second, damaged }), "invalid delta", true},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, ref, next := deltaCluster(t, 3)
			if test.name == "off" {
				c.leave(c.running()...)
				without(c.nodes)
				c.start(c.nodes[:2]...)
			}
			if test.name == "not known to the announcer" {
				c.leave(c.nodes[0])
				without(c.nodes[:1])
				c.start(c.nodes[0])
			}
			c.within(time.Minute, "all see all", c.allAlive)
			test.alter(c)
			c.announceBlob(c.nodes[0], ref, next())
			times[test.name] = c.within(3*whole, test.name+": the second build is there", c.converged)
			if ratio := times[test.name].Seconds() / times["off"].Seconds(); ratio > 1.05 {
				t.Errorf("%s: it took %s, %s without: %.2f × as long", test.name, times[test.name], times["off"], ratio)
			}
			said := c.nodes[1].Status(t.Context()).NoDeltas
			if test.says == "" && len(said) > 0 || test.says != "" && (len(said) != 1 || said[0].Reference != ref || said[0].Failed != test.fails || !strings.Contains(said[0].Reason, test.says)) {
				t.Errorf("%s: the status says %+v, want %q (failed: %v)", test.name, said, test.says, test.fails)
			}
			d := c.nodes[1].store.Deltas()
			if len(d.Expected) != len(d.Discarded) || len(d.Expected) > 1 {
				t.Errorf("%s: %d deltas were fetched, %d forgotten", test.name, len(d.Expected), len(d.Discarded))
			}
		})
	}
}

// TestClusterDeltaKilled: hosts that are killed while they fetch or rebuild, and one
// whose announcer is, get the build all the same.
func TestClusterDeltaKilled(t *testing.T) {
	t.Parallel()
	times := []time.Duration{2100 * time.Millisecond, 100 * time.Millisecond, time.Second, 2600 * time.Millisecond}
	if raceDetector {
		times = times[:1]
	}
	for _, after := range times {
		synctest.Test(t, func(t *testing.T) {
			c, ref, next := deltaCluster(t, 5)
			c.nodes[0].store.Deltas().Takes = 2 * time.Second
			c.announceBlob(c.nodes[0], ref, next())
			time.Sleep(after)
			killed := c.nodes[1]
			c.kill(killed, c.nodes[0])
			time.Sleep(10 * time.Second)
			c.start(killed, c.nodes[0])
			c.within(10*whole, "all have the second build, "+after.String(), c.converged)
		})
	}
}

// TestClusterNoDelta: an image that is announced without deltas travels whole, and the next
// one does not.
func TestClusterNoDelta(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, ref, next := deltaCluster(t, 3)
		build := next()
		c.announceWhole(c.nodes[0], ref, build)
		c.within(2*whole, "the second build is there", c.converged)
		d := c.nodes[1].store.Deltas()
		if len(d.Expected) > 0 {
			t.Errorf("%d deltas were fetched", len(d.Expected))
		}
		c.announceBlob(c.nodes[0], ref, append([]byte("more"), build...))
		c.within(whole/2, "the third build is there", c.converged)
		if len(d.Expected) != 1 {
			t.Errorf("%d deltas were fetched, want 1", len(d.Expected))
		}
	})
}

// TestClusterFastLinks: where ordinary chunks come at once nobody asks for deltas to be made.
func TestClusterFastLinks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, ref, next := deltaCluster(t, 4)
		for _, nd := range c.nodes {
			if nd.up {
				nd.SetLimits(0, 0)
			}
		}
		build := next()
		c.announceBlob(c.nodes[0], ref, append(build, "one"...)) // by which rates are measured
		c.within(2*whole, "the second build is there", c.converged)
		before := make([]int, len(c.nodes))
		for i, nd := range c.nodes {
			before[i] = len(nd.store.Deltas().Expected)
		}
		c.announceBlob(c.nodes[0], ref, append(build, "two"...))
		if took := c.within(whole, "the third build is there", c.converged); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
		for i, nd := range c.nodes {
			if got := len(nd.store.Deltas().Expected); got != before[i] {
				t.Errorf("%s fetched %d deltas", nd.cfg.Name, got-before[i])
			}
		}
	})
}
