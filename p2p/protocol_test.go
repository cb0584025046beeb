package p2p_test

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"seeder/p2p/gossip"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

// record keeps what the node logs.
func (nd *testNode) record(t *testing.T) *syncBuffer {
	b := &syncBuffer{}
	w := io.MultiWriter(t.Output(), b)
	nd.cfg.Log = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", nd.cfg.Name)
	return b
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

// lines are those that hold a text.
func (s *syncBuffer) lines(text string) (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(s.b.String()) {
		if strings.Contains(line, text) {
			out = append(out, line)
		}
	}
	return out
}

// TestProtocols: nodes without a common protocol know of each other, say so once,
// and leave each other alone, whatever others tell them; a node that speaks both
// protocols carries images from the ones to the other and back.
func TestProtocols(t *testing.T) {
	t.Parallel()
	secret := trust.GenerateSecret()
	one, two := gossip.Protocols{Oldest: 1, Newest: 1}, gossip.Protocols{Oldest: 2, Newest: 2}
	logs := map[string]*syncBuffer{}
	start := func(name string, p gossip.Protocols, join ...string) *testNode {
		nd := newTestNode(t, name, secret, join)
		nd.cfg.Protocols = p
		logs[name] = nd.record(t)
		nd.open(t)
		return nd
	}
	both := start("both", gossip.Protocols{Oldest: 1, Newest: 2})
	old := start("old", one, both.addr)
	old2 := start("old2", one, both.addr)
	for _, nd := range []*testNode{old, old2, both} {
		nd.waitFor(t, "three members", func() bool { return alive(nd) == 3 })
	}
	a := old.store.Add(testRef, blob(1, 3<<20), 256<<10)
	announce(t, old, a)
	for _, nd := range []*testNode{old2, both} { // which say that they hold it to anyone who asks
		nd.waitFor(t, "ready", func() bool { return cellOf(t, nd, nd.cfg.Name).State == report.Ready })
	}

	next := start("next", two, both.addr)
	next.holds(t, a)
	b := next.store.Add("docker.io/library/back:1", blob(2, 3<<20), 256<<10)
	announce(t, next, b)
	for _, nd := range []*testNode{both, old, old2} {
		nd.holds(t, b)
	}
	for _, c := range []struct {
		nd, of *testNode
		reason string
	}{
		{old, next, "speaks protocol 2, this node 1: update seeder on the older of the two"},
		{next, old, "speaks protocol 1, this node 2: update seeder on the older of the two"},
	} {
		if got := cellOf(t, c.nd, c.of.cfg.Name); got.State != report.Unreachable || got.Reason != c.reason {
			t.Errorf("%s says of %s: %+v, want unreachable: %s", c.nd.cfg.Name, c.of.cfg.Name, got, c.reason)
		}
		for _, m := range c.nd.Members().Members {
			if want := map[bool]string{true: c.reason}[m.Name == c.of.cfg.Name || (c.nd == next && m.Name == "old2")]; m.State != "alive" || m.Reason != want {
				t.Errorf("%s has the member %+v, want it alive with the reason %q", c.nd.cfg.Name, m, want)
			}
		}
	}
	for name, want := range map[string]int{"old": 1, "old2": 1, "next": 2, "both": 0} {
		if got := logs[name].lines("excluded a member"); len(got) != want {
			t.Errorf("%s said it %d times, want %d: %q", name, len(got), want, got)
		}
		for _, line := range append(logs[name].lines("msg=fetched"), logs[name].lines("catalog updated")...) {
			if (name == "next" && strings.Contains(line, "old")) || (strings.HasPrefix(name, "old") && strings.Contains(line, "next")) {
				t.Errorf("%s asked who speaks another protocol: %s", name, line)
			}
		}
	}
}
