package p2p_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"seeder/p2p"
	"seeder/p2p/p2ptest"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

// notReady is what keeps a node from its work, by its status.
func notReady(nd *testNode) (out []string) {
	s := nd.Status(context.Background())
	if !s.Containerd.OK {
		out = append(out, "waiting for containerd: "+s.Containerd.Reason)
	}
	if s.Join.Refused {
		out = append(out, "cannot join the cluster: "+s.Join.Reason)
	}
	return out
}

// TestReadiness: a node is ready while its containerd answers, alone too, and whatever
// its images do; and not while it has another secret than all that it can reach.
func TestReadiness(t *testing.T) {
	t.Parallel()
	a := newTestNode(t, "a", trust.GenerateSecret(), nil)
	a.store.SetDown(errors.New("no such socket"))
	a.open(t)
	saysOnly := func(nd *testNode, what string) {
		t.Helper()
		nd.waitFor(t, "not ready, only since "+what, func() bool {
			got := notReady(nd)
			return len(got) == 1 && strings.Contains(got[0], what)
		})
	}
	ready := func(nd *testNode) {
		t.Helper()
		nd.waitFor(t, "ready", func() bool { return len(notReady(nd)) == 0 })
	}
	saysOnly(a, "waiting for containerd: no such socket")
	if a.Counts().ContainerdUp {
		t.Error("containerd is up while it is down")
	}
	a.store.SetDown(nil)
	ready(a)
	if c := a.Counts(); !c.ContainerdUp || c.Alone {
		t.Errorf("alone with nobody to join: %+v", c)
	}
	a.store.SetRoom("no room")
	b := newTestNode(t, "b", trust.GenerateSecret(), []string{a.addr})
	b.cfg.Secrets = a.cfg.Secrets
	b.open(t)
	announce(t, b, b.store.Add(testRef, blob(1, 1<<20), 256<<10))
	a.waitFor(t, "the image waits", func() bool { return a.Counts().Images[report.Waiting] == 1 })
	ready(a)

	stranger := newTestNode(t, "c", trust.GenerateSecret(), []string{a.addr})
	stranger.open(t)
	saysOnly(stranger, "secrets differ")
	if !stranger.Counts().Alone {
		t.Error("could join nobody, and does not count as alone")
	}
	stranger.reopen(t, func(cfg *p2p.Config) { cfg.Secrets = a.cfg.Secrets })
	ready(stranger)
	stranger.waitFor(t, "not alone", func() bool { return !stranger.Counts().Alone })
	a.close(t)
	b.close(t)
	stranger.waitFor(t, "alone", func() bool { return alive(stranger) == 1 })
	ready(stranger)
}

// TestCounts: what is not ready counts from when it was known, across newer
// announcements, with what the disk lacks; and nothing of that is left in the end.
func TestCounts(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 2)
	reg := prometheus.NewRegistry()
	nodes[1].reopen(t, func(c *p2p.Config) { c.Registerer = reg })
	a, b := nodes[0], nodes[1]
	b.store.SetRoom("no room")
	before := time.Now()
	announce(t, a, a.store.Add(testRef, blob(1, 1<<20), 256<<10))
	b.waitFor(t, "the image lacks room", func() bool { return b.Counts().LackingBytes == 1<<30 })
	first := b.Counts()
	if len(first.Behind) != 1 || first.Behind[0].Reference != testRef || first.Behind[0].State != report.Waiting || !first.Behind[0].Since.Equal(first.UnconvergedSince) {
		t.Errorf("behind: %+v", first.Behind)
	}
	if first.UnconvergedSince.Before(before) || first.UnconvergedSince.After(time.Now()) ||
		first.Images[report.Waiting] != 1 || first.Images[report.Ready] != 0 || first.Announced != 1 || first.LastAnnouncedAt.IsZero() {
		t.Errorf("while it waits: %+v", first)
	}
	announce(t, a, a.store.Add(testRef, blob(2, 1<<20), 256<<10))
	b.waitFor(t, "the next version waits, too", func() bool {
		row := b.row(t, testRef)
		return row.Version == 2 && strings.Contains(cellOf(t, b, "n1").Reason, "no room") && b.Counts().LackingBytes > 0
	})
	if c := b.Counts(); !c.UnconvergedSince.Equal(first.UnconvergedSince) {
		t.Errorf("a newer announcement begins anew: since %s, was %s", c.UnconvergedSince, first.UnconvergedSince)
	}
	b.store.SetRoom("")
	b.waitFor(t, "ready", func() bool { return b.Counts().Images[report.Ready] == 1 })
	if c := b.Counts(); !c.UnconvergedSince.IsZero() || c.LackingBytes != 0 || c.Images[report.Waiting] != 0 || len(c.Behind) != 0 {
		t.Errorf("when it is ready: %+v", c)
	}
	if got := value(t, reg, "seeder_chunks_verified_total"); got < 4 {
		t.Errorf("%v chunks verified, want the image's 4 at least", got)
	}
	if err := a.Withdraw(context.Background(), testRef, report.Withdrawal{}); err != nil {
		t.Fatal(err)
	}
	b.waitFor(t, "withdrawn", func() bool {
		c := b.Counts()
		return c.Withdrawn == 1 && c.Announced == 0 && c.Images[report.Ready] == 0
	})
}

// TestFailuresAreCounted: each try that comes to nothing is, by why.
func TestFailuresAreCounted(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	nodes := cluster(t, 2)
	nodes[1].reopen(t, func(c *p2p.Config) { c.Registerer = reg })
	a, b := nodes[0], nodes[1]
	b.store.SetDown(errors.New("no such socket"))
	b.waitFor(t, "down", func() bool { return !b.Counts().ContainerdUp })
	announce(t, a, a.store.Add(testRef, blob(1, 1<<20), 256<<10))
	b.waitFor(t, "a failure is counted", func() bool { return value(t, reg, "seeder_converge_failures_total", "containerd") > 0 })
	if got := value(t, reg, "seeder_converge_failures_total", "other"); got != 0 {
		t.Errorf("%v failures of another kind", got)
	}
}

// value is that of a series of reg with these label values.
func value(t *testing.T, reg *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetValue())
			}
			if f.GetName() == name && strings.Join(have, ",") == strings.Join(labels, ",") {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no series %s %q", name, labels)
	return 0
}

// BenchmarkCounts is what a scrape asks of a node with 1,000 images.
func BenchmarkCounts(b *testing.B) {
	secrets, err := trust.ParseSecrets([]byte(trust.GenerateSecret()))
	if err != nil {
		b.Fatal(err)
	}
	store := p2ptest.NewStore()
	nd := p2p.New(p2p.Config{Name: "a", DataDir: b.TempDir(), GossipBind: "127.0.0.1:0", TransferBind: "127.0.0.1:0", Secrets: secrets}, store)
	if err := nd.Open(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer nd.Close()
	for i := range 1000 {
		ref := fmt.Sprintf("docker.io/library/image-%d:latest", i)
		if _, err := nd.AnnouncePrepared(b.Context(), store.Add(ref, []byte(ref), 1<<10)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if c := nd.Counts(); c.Announced != 1000 {
			b.Fatalf("%+v", c)
		}
		nd.Members()
	}
}
