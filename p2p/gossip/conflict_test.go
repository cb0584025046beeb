package gossip

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"seeder/p2p/report"
	"seeder/p2p/trust"
)

// TestTwoHostsOfOneName: all nodes see both hosts, say what is wrong and what to do, and
// agree which is the second: the one that came into the cluster. It says so itself. When it
// is gone, all is well again.
func TestTwoHostsOfOneName(t *testing.T) {
	t.Parallel()
	a := start(t, "a", 1, nil)
	first := start(t, "b", 1, nil, a.addr)
	eventually(t, "a and b know each other", func() bool { return len(a.Peers()) == 2 && len(first.Peers()) == 2 })
	second := start(t, "b", 1, nil, a.addr)
	nodes := []*node{a, first, second}
	self := second.Members()
	at := self[slices.IndexFunc(self, func(m Member) bool { return m.Name == "b" })].gossip
	for _, n := range nodes {
		eventually(t, "a node sees the conflict", func() bool {
			c := n.Conflicts()
			return len(c) == 1 && c[0].Kind == report.ConflictName && c[0].OtherAddress == at && c[0].Self == (n != a) && c[0].Second == (n == second)
		})
		eventually(t, "its log has it", func() bool {
			return strings.Count(n.log.String(), "found two hosts with the same name or identity") == 1 && strings.Contains(n.log.String(), "node_name")
		})
	}
	for _, n := range []*node{a, first} {
		m := n.Members()
		i := slices.IndexFunc(m, func(m Member) bool { return m.Name == fmt.Sprintf("b (%s)", at) })
		if len(m) != 3 || i < 0 || !strings.Contains(m[i].Reason, "two hosts have the node name b") {
			t.Fatalf("the second is not told of: %+v", m)
		}
		if p := n.Peers(); len(p) != 2 || p[1].gossip == at {
			t.Fatalf("the second is asked: %+v", p)
		}
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{a, first} {
		eventually(t, "all is well without the second", func() bool {
			return len(n.Conflicts()) == 0 && len(n.Members()) == 2 && len(n.Peers()) == 2 && strings.Contains(n.log.String(), "resolved a conflict")
		})
		if strings.Contains(n.log.String(), "member left") || strings.Contains(n.log.String(), "member lost") {
			t.Errorf("the first is taken for gone: %s", n.log.String())
		}
	}
}

// TestTwoHostsOfOneIdentity: a copy of a data_dir under another name is seen by all.
func TestTwoHostsOfOneIdentity(t *testing.T) {
	t.Parallel()
	a := start(t, "a", 1, nil)
	first := start(t, "b", 1, nil, a.addr)
	eventually(t, "a and b know each other", func() bool { return len(a.Peers()) == 2 && len(first.Peers()) == 2 })
	second := start(t, "c", 1, func(c *Config) { c.Meta.ID, c.Identity = first.cfg.Meta.ID, first.cfg.Identity }, a.addr)
	for _, n := range []*node{a, first, second} {
		eventually(t, "a node sees the conflict", func() bool {
			c := n.Conflicts()
			return len(c) == 1 && c[0].Kind == report.ConflictIdentity && c[0].Name == "b" && c[0].Other == "c" && c[0].Second == (n == second) &&
				strings.Contains(c[0].Fix(), "rm /var/lib/seeder/identity")
		})
	}
	eventually(t, "the second has no peers but the first has", func() bool { return len(a.Peers()) == 2 && a.Peers()[1].Name == "b" })
}

// TestRestartIsNoConflict: a process that takes the place of one that was killed has its
// name and address; one with a new data_dir has another identity as well.
func TestRestartIsNoConflict(t *testing.T) {
	t.Parallel()
	for _, id := range []string{testID, strings.Repeat("b", 32)} {
		ms := newMembers(newInstance("a"))
		killed, now := newInstance("b"), newInstance("b")
		ms.seen(&Member{Name: "b", State: StateAlive, ID: testID, gossip: "10.0.0.2:7950", instance: killed})
		ms.seen(&Member{Name: "b", State: StateAlive, ID: trust.NodeID(id), gossip: "10.0.0.2:7950", instance: now})
		ms.answered(now, true)
		ms.confirmed[killed], ms.confirmed[now] = true, true
		if c := ms.conflictsLocked(); len(c) != 0 || len(ms.list()) != 1 || ms.list()[0].instance != now {
			t.Fatalf("%+v, %+v", c, ms.list())
		}
		if state := ms.gone(killed); state != "" || ms.list()[0].State != StateAlive {
			t.Fatalf("the end of the killed process is the node's: %s", state)
		}
		if state := ms.gone(now); state != StateDead {
			t.Fatalf("the end of the node is %q", state)
		}
	}
}

// TestMovedInstance: of one process the newest instance is the node, in whichever order
// the two are heard of, and the end of the other one is nobody's.
func TestMovedInstance(t *testing.T) {
	t.Parallel()
	old := newInstance("b")
	moved := old.next()
	for _, order := range [][]instance{{old, moved}, {moved, old}} {
		ms := newMembers(newInstance("a"))
		for _, i := range order {
			ms.seen(&Member{Name: "b", State: StateAlive, ID: testID, gossip: fmt.Sprintf("10.0.0.%d:7950", i.moved), instance: i})
		}
		if l := ms.list(); len(l) != 1 || l[0].gossip != "10.0.0.1:7950" || len(ms.conflictsLocked()) != 0 {
			t.Fatalf("%+v, %+v", l, ms.conflictsLocked())
		}
		if state := ms.gone(old); state != "" || ms.list()[0].State != StateAlive {
			t.Fatalf("the end of the old instance is %q", state)
		}
	}
}

func TestInstanceNames(t *testing.T) {
	t.Parallel()
	i := newInstance("some.node-1").next().next()
	if got, err := parseInstance(i.String()); err != nil || got != i || i.moved != 2 {
		t.Errorf("%+v %v, want %+v", got, err, i)
	}
	for _, bad := range []string{"", "a", "/0123456789abcdef.0", "a/0123456789abcde.0", "a/0123456789abcdef", "a/0123456789abcdef.x", "a/0123456789abcdef.123456789", "a\n/0123456789abcdef.0"} {
		if i, err := parseInstance(bad); err == nil {
			t.Errorf("%q is %+v", bad, i)
		}
	}
	if _, _, err := net.SplitHostPort(i.String()); err == nil {
		t.Errorf("%s looks like an address", i)
	}
}
