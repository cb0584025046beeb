package dst

import (
	"time"

	"seeder/p2p/p2ptest"
)

var networkKinds = []kind{
	{name: "loss", group: network, weight: 3, begin: link(func(e Event) p2ptest.Link {
		return p2ptest.Link{Loss: 0.05 + float64(e.Arg%60)/100}
	})},
	{name: "delay", group: network, weight: 3, begin: link(func(e Event) p2ptest.Link {
		return p2ptest.Link{Delay: time.Duration(50+e.Arg%1500) * time.Millisecond}
	})},
	{name: "reorder", group: network, weight: 3, begin: link(func(e Event) p2ptest.Link {
		return p2ptest.Link{Jitter: time.Duration(20+e.Arg%800) * time.Millisecond}
	})},
	{name: "duplicate", group: network, weight: 3, begin: link(func(e Event) p2ptest.Link {
		return p2ptest.Link{Twice: 0.2 + float64(e.Arg%80)/100, Jitter: time.Duration(e.Arg%300) * time.Millisecond}
	})},
	{name: "narrow", group: network, weight: 4, begin: link(func(e Event) p2ptest.Link {
		return p2ptest.Link{BytesPerSec: int64(30_000 + e.Arg%1_000_000)}
	})},
	{name: "loss everywhere", group: network, weight: 2, begin: func(c *cluster, _ *machine, e Event) (func(), bool) {
		c.net.SetLoss(0.02 + float64(e.Arg%20)/100)
		return func() { c.net.SetLoss(0) }, true
	}},
	{name: "one-way", group: network, weight: 4, begin: func(c *cluster, m *machine, e Event) (func(), bool) {
		from, to := hostsOf(m), hostsOf(c.machines[e.Peer])
		c.net.Cut(from, to)
		return func() { c.net.Uncut(from, to) }, true
	}},
	{name: "deaf host", group: network, weight: 2, begin: func(c *cluster, m *machine, _ Event) (func(), bool) {
		to := hostsOf(m)
		from := hostsOf(others(c, m)...)
		c.net.Cut(from, to)
		return func() { c.net.Uncut(from, to) }, true
	}},
	{name: "partition", group: network, weight: 4, begin: func(c *cluster, _ *machine, e Event) (func(), bool) {
		var a, b []*machine
		for i, m := range c.machines {
			if e.Arg>>i&1 == 1 {
				a = append(a, m)
			} else {
				b = append(b, m)
			}
		}
		if len(a) == 0 || len(b) == 0 {
			return nil, false
		}
		left, right := hostsOf(a...), hostsOf(b...)
		c.net.Part(left, right)
		return func() { c.net.Uncut(left, right); c.net.Uncut(right, left) }, true
	}},
	{name: "cable pulled", group: network, weight: 3, begin: func(c *cluster, m *machine, _ Event) (func(), bool) {
		mine, rest := hostsOf(m), hostsOf(others(c, m)...)
		c.net.Part(mine, rest)
		return func() { c.net.Uncut(mine, rest); c.net.Uncut(rest, mine) }, true
	}},
	{name: "address changes", group: network, weight: 3, begin: func(c *cluster, m *machine, _ Event) (func(), bool) {
		if !m.up || m.index < 2 {
			return nil, false
		}
		m.host.SetIP(c.newAddress())
		return nil, true
	}},
	{name: "half-open connection", group: network, weight: 6, begin: func(_ *cluster, m *machine, e Event) (func(), bool) {
		return nil, m.up && m.host.Lose(e.Arg)
	}},
}

// link makes both directions between two hosts bad, or one of them.
func link(of func(Event) p2ptest.Link) func(c *cluster, m *machine, e Event) (func(), bool) {
	return func(c *cluster, m *machine, e Event) (func(), bool) {
		a, b := hostsOf(m), hostsOf(c.machines[e.Peer])
		c.net.SetLink(a, b, of(e))
		if e.Arg&1 == 0 {
			c.net.SetLink(b, a, of(e))
		}
		return func() {
			c.net.SetLink(a, b, p2ptest.Link{})
			c.net.SetLink(b, a, p2ptest.Link{})
		}, true
	}
}

func hostsOf(ms ...*machine) (out []*p2ptest.Host) {
	for _, m := range ms {
		out = append(out, m.host)
	}
	return out
}

func others(c *cluster, m *machine) (out []*machine) {
	for _, o := range c.machines {
		if o != m {
			out = append(out, o)
		}
	}
	return out
}
