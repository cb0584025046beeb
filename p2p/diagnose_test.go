package p2p_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"seeder/p2p/report"
	"seeder/p2p/swarm"
	"seeder/p2p/wire"
)

// ways writes the ways of a report that are in a state, as "transfer out".
func ways(r report.MemberReport, state string) []string {
	var out []string
	for _, w := range r.Ways {
		if w.State == state {
			out = append(out, w.What+map[bool]string{true: " out", false: " in"}[w.Out])
		}
	}
	slices.Sort(out)
	return out
}

func sorted(list ...string) []string { slices.Sort(list); return list }

var allWays = sorted("transfer out", "transfer in", "gossip-udp out", "gossip-udp in",
	"large-transfer out", "large-transfer in", "large-gossip out", "large-gossip in")

func TestDiagnose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newSim(t, *seed, 3)
		t.Cleanup(c.stop)
		c.start(c.nodes...)
		c.within(10*time.Second, "all see all", c.allAlive)
		began := time.Now()
		d := c.nodes[0].Diagnose(t.Context())
		if took := time.Since(began); took > time.Second {
			t.Errorf("with nothing in the way it took %s", took)
		}
		if d.Node != "n000" || d.Gossip != simIP(0)+":7950" || d.Transfer != simIP(0)+":7951" || len(d.Members) != 2 || len(d.Strangers) != 0 || d.Alone != "" {
			t.Fatalf("%+v", d)
		}
		for _, m := range d.Members {
			if got := ways(m, report.WayOpen); !slices.Equal(got, allWays) || m.Clock == nil || m.Clock.AheadMS != 0 || m.Differs {
				t.Errorf("%+v", m)
			}
		}

		// Nothing comes back from the second: the third sees what it always has.
		c.net.Cut(hosts(c.nodes[1:2]), hosts(c.nodes[:1]))
		began = time.Now()
		d = c.nodes[0].Diagnose(t.Context())
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("with a member that hangs it took %s", took)
		}
		one, two := d.Members[0], d.Members[1]
		if got := ways(one, report.WayClosed); !slices.Equal(got, sorted("transfer out", "gossip-udp out")) || one.Clock != nil {
			t.Errorf("closed: %v", one)
		}
		if got := ways(one, report.WayUnknown); !slices.Equal(got, sorted("transfer in", "gossip-udp in")) {
			t.Errorf("unknown: %v", got)
		}
		if got := ways(two, report.WayOpen); !slices.Equal(got, allWays) {
			t.Errorf("the other one: %+v", two)
		}
		c.net.Heal()
		c.within(time.Minute, "all see all again", c.allAlive)

		c.kill(c.nodes[2])
		c.within(time.Minute, "the third is dead", func() error {
			if d = c.nodes[0].Diagnose(t.Context()); d.Members[1].State != "dead" {
				return fmt.Errorf("%+v", d.Members[1])
			}
			return nil
		})
		if got := ways(d.Members[1], report.WayClosed); len(got) != 2 {
			t.Errorf("closed to a dead member: %v", got)
		}
		c.leave(c.nodes[1])
		c.within(time.Minute, "who has left is not asked", func() error {
			if d = c.nodes[0].Diagnose(t.Context()); len(d.Members) != 1 {
				return fmt.Errorf("%+v", d.Members)
			}
			return nil
		})
	})
}

// TestDiagnoseIsBounded: forty members that hang take no longer than one.
func TestDiagnoseIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newSim(t, *seed, 40)
		t.Cleanup(c.stop)
		c.start(c.nodes...)
		c.within(30*time.Second, "all see all", c.allAlive)
		c.net.Part(hosts(c.nodes[:1]), hosts(c.nodes[1:]))
		began := time.Now()
		d := c.nodes[0].Diagnose(t.Context())
		if took := time.Since(began); took > 10*time.Second+600*time.Millisecond || len(d.Members) != 39 {
			t.Errorf("%d members took %s", len(d.Members), took)
		}
		for _, m := range d.Members {
			if len(ways(m, report.WayOpen)) > 0 || len(m.Ways) < 4 {
				t.Errorf("%+v", m)
			}
		}
	})
}

// TestProbe: a node connects back to members only, and to each one at a time.
func TestProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newSim(t, *seed, 2)
		t.Cleanup(c.stop)
		c.start(c.nodes...)
		c.within(10*time.Second, "all see all", c.allAlive)
		a, err := c.nodes[0].Probe(t.Context(), "nobody", wire.Nonce{1})
		if err != nil || !strings.Contains(a.Transfer, "does not know") {
			t.Errorf("a stranger: %+v %v", a, err)
		}
		if a, err = c.nodes[0].Probe(t.Context(), string(c.nodes[0].ID()), wire.Nonce{1}); err != nil || !strings.Contains(a.Transfer, "does not know") {
			t.Errorf("itself: %+v %v", a, err)
		}
		id := string(c.nodes[1].ID())
		c.net.Cut(hosts(c.nodes[:1]), hosts(c.nodes[1:]))
		var wg sync.WaitGroup
		wg.Go(func() {
			began := time.Now()
			a, err := c.nodes[0].Probe(t.Context(), id, wire.Nonce{2})
			if err != nil || a.Transfer == "" || a.GossipUDP || time.Since(began) > 4*time.Second {
				t.Errorf("one that cannot be reached: %+v %v after %s", a, err, time.Since(began))
			}
		})
		synctest.Wait()
		var busy *swarm.BusyError
		if _, err := c.nodes[0].Probe(t.Context(), id, wire.Nonce{3}); !errors.As(err, &busy) {
			t.Errorf("a second question at the same time: %v", err)
		}
		wg.Wait()
		c.net.Heal()
		if a, err := c.nodes[0].Probe(t.Context(), id, wire.Nonce{4}); err != nil || a.Transfer != "" {
			t.Errorf("after the first: %+v %v", a, err)
		}
	})
}

func TestHolders(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	refs := []string{"docker.io/library/a:1", "docker.io/library/b:1", "docker.io/library/none:1"}
	nodes[1].store.Add(refs[0], []byte("a"), 4)
	nodes[2].store.Add(refs[0], []byte("a"), 4)
	nodes[2].store.Add(refs[1], []byte("b"), 4)
	got := nodes[0].Holders(context.Background(), refs)
	if len(got) != 2 || !slices.Equal(got[refs[0]], []string{"n1", "n2"}) || !slices.Equal(got[refs[1]], []string{"n2"}) {
		t.Errorf("%v", got)
	}
}
