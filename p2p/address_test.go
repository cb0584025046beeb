package p2p_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"seeder/p2p/netaddr"
	"seeder/p2p/report"
)

// newMobile returns a cluster whose hosts may get other addresses.
func newMobile(t *testing.T, nodes int) *simCluster {
	c := newSim(t, *seed, nodes)
	t.Cleanup(c.stop)
	for _, nd := range c.nodes {
		nd.cfg.Advertise, nd.cfg.Changes = nd.host.Advertise, nd.host.Changes
		nd.cfg.GossipBind, nd.cfg.TransferBind = "0.0.0.0:7950", "0.0.0.0:7951"
	}
	return c
}

// knownAt says whether all nodes see nd alive at ip, and nd all of them.
func (c *simCluster) knownAt(nd *simNode, ip string) error {
	for _, o := range c.running() {
		alive := 0
		for _, m := range o.Members().Members {
			host, _, _ := net.SplitHostPort(m.Address)
			if m.State == "alive" && m.Reason == "" {
				alive++
			}
			if m.Name == nd.cfg.Name && (host != ip || m.State != "alive") {
				return fmt.Errorf("%s sees %s %s at %s", o.cfg.Name, m.Name, m.State, host)
			}
		}
		if alive != len(c.running()) {
			return fmt.Errorf("%s sees %d alive", o.cfg.Name, alive)
		}
	}
	return nil
}

// lost lists what nodes were told of members that went.
func (c *simCluster) lost() (out []string) {
	for _, nd := range c.running() {
		for _, e := range nd.Events() {
			if e.Kind == report.EventLost || e.Kind == report.EventLeft {
				out = append(out, fmt.Sprintf("%s: %+v", nd.cfg.Name, e))
			}
		}
	}
	return out
}

// TestClusterAddressChanges: a host that gets another address is known there by all within
// ten seconds, without a restart, and nobody takes it for gone meanwhile. What it announces
// reaches all, and what others announce reaches it.
func TestClusterAddressChanges(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 3, 8, 30} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			if n > 8 && raceDetector {
				t.Skip(withoutRace)
			}
			synctest.Test(t, func(t *testing.T) {
				c := newMobile(t, n)
				c.start(c.nodes...)
				c.within(5*time.Second, "all see all", c.allAlive)
				moved := c.nodes[1]
				for i := range 3 {
					ip := fmt.Sprintf("10.9.0.%d", i+1)
					moved.host.SetIP(ip)
					c.announce(moved, refFor(fmt.Sprint("a", i), "all"))
					took := c.within(10*time.Second, "all know the host at its new address", func() error { return c.knownAt(moved, ip) })
					t.Logf("known by all after %s", took)
					c.within(10*time.Second, "what it announced is everywhere", c.converged)
					c.announce(c.nodes[0], refFor(fmt.Sprint("b", i), "all"))
					c.within(10*time.Second, "what another one announced is there, too", c.converged)
				}
				time.Sleep(time.Minute)
				if err := c.knownAt(moved, "10.9.0.3"); err != nil {
					t.Error(err)
				}
				if lost := c.lost(); len(lost) > 0 {
					t.Errorf("members were taken for gone:\n%s", strings.Join(lost, "\n"))
				}
			})
		})
	}
}

// TestClusterWayComesLater: a host whose new address is there before any way to others tells
// them of it when there is one.
func TestClusterWayComesLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newMobile(t, 3)
		c.start(c.nodes...)
		c.within(5*time.Second, "all see all", c.allAlive)
		moved := c.nodes[1]
		moved.host.SetIP("")
		time.Sleep(15 * time.Second)
		moved.host.SetIP("10.9.0.1")
		others := hosts([]*simNode{c.nodes[0], c.nodes[2]})
		c.net.Part(hosts(c.nodes[1:2]), others)
		time.Sleep(7500 * time.Millisecond) // the first try takes five seconds
		c.net.Heal()
		c.within(5*time.Second, "all know the host at its new address", func() error { return c.knownAt(moved, "10.9.0.1") })
	})
}

// TestClusterAddressUnread: a host that cannot look at its network for a while, as without
// file descriptors, stays where it is and in the cluster.
func TestClusterAddressUnread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newMobile(t, 3)
		var blind atomic.Bool
		nd := c.nodes[1]
		nd.cfg.Advertise = func(ctx context.Context, known []netip.Addr) (netaddr.Choice, error) {
			if blind.Load() {
				return netaddr.Choice{}, fmt.Errorf("%w: too many open files", netaddr.ErrUnread)
			}
			return nd.host.Advertise(ctx, known)
		}
		c.start(c.nodes...)
		c.within(5*time.Second, "all see all", c.allAlive)
		blind.Store(true)
		time.Sleep(time.Minute)
		if s := nd.Status(context.Background()); !s.Join.OK || s.Members != 3 {
			t.Errorf("%+v", s)
		}
		if err := c.allAlive(); err != nil || len(c.lost()) > 0 {
			t.Errorf("%v, %q", err, c.lost())
		}
		blind.Store(false)
		nd.host.SetIP("10.9.0.1")
		c.within(10*time.Second, "all know the host at its new address", func() error { return c.knownAt(nd, "10.9.0.1") })
	})
}

// TestClusterAddressGone: a host without any address for a while says so, and is known by
// all within ten seconds once it has one again, the same or another one; so is a host that
// had none when it started.
func TestClusterAddressGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newMobile(t, 3)
		c.nodes[2].host.SetIP("")
		c.start(c.nodes...)
		without := c.nodes[2]
		time.Sleep(time.Minute)
		if s := without.Status(context.Background()); s.Join.OK || !strings.Contains(s.Join.Reason, "no address") || s.Members != 1 {
			t.Errorf("%+v", s)
		}
		for _, ip := range []string{"10.9.0.1", "10.9.0.1", "10.9.0.2"} {
			without.host.SetIP(ip)
			c.within(10*time.Second, "all know the host", func() error { return c.knownAt(without, ip) })
			c.announce(without, refFor("a"+ip, "all"))
			c.within(10*time.Second, "what it announced is everywhere", c.converged)
			without.host.SetIP("")
			time.Sleep(2 * time.Minute)
			if s := without.Status(context.Background()); s.Join.OK || !strings.Contains(s.Join.Reason, "no address") {
				t.Errorf("%+v", s)
			}
		}
		without.host.SetIP("10.9.0.3")
		c.within(10*time.Second, "all know the host", func() error { return c.knownAt(without, "10.9.0.3") })
	})
}
