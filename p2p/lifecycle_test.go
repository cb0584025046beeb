package p2p_test

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/p2p"
	"seeder/p2p/report"
)

// reopen starts a node again with a changed configuration.
func (nd *testNode) reopen(t *testing.T, change func(*p2p.Config)) {
	t.Helper()
	nd.close(t)
	change(&nd.cfg)
	nd.open(t)
}

func (nd *testNode) row(t *testing.T, ref string) report.ImageState {
	t.Helper()
	imgs, err := nd.Images(t.Context(), ref)
	if err != nil || len(imgs.Images) != 1 {
		return report.ImageState{}
	}
	return imgs.Images[0]
}

// readyOn waits for version of ref on all nodes that are meant to hold it.
func (nd *testNode) readyOn(t *testing.T, ref string, version uint64, nodes int) {
	t.Helper()
	nd.waitFor(t, ref+" ready", func() bool {
		row := nd.row(t, ref)
		return row.Version == version && row.Ready == nodes && row.Total == nodes
	})
}

func TestLabelsSelectNodes(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	nodes[1].reopen(t, func(c *p2p.Config) { c.Labels = map[string]string{"zone": "a", "role": "gpu"} })
	nodes[2].reopen(t, func(c *p2p.Config) { c.Labels = map[string]string{"zone": "a"} })
	nodes[0].waitFor(t, "both nodes back", func() bool { return alive(nodes[0]) == 3 })

	var none *report.NoNodeError
	if err := nodes[0].CheckOn(t.Context(), []string{"zone=b"}); !errors.As(err, &none) || !strings.Contains(err.Error(), "zone=a") {
		t.Errorf("a selector that matches nothing: %v, want an error with the labels that there are", err)
	}
	if err := nodes[0].CheckOn(t.Context(), []string{"zone=a", "role!=gpu"}); err != nil {
		t.Errorf("a selector that matches n2: %v", err)
	}
	for _, bad := range []string{"zone", "=a", "zone==a", "zo ne=a", "!=a"} {
		if err := nodes[0].CheckOn(t.Context(), []string{bad}); err == nil || errors.As(err, &none) {
			t.Errorf("selector %q: %v, want an error about its form", bad, err)
		}
	}

	a := nodes[0].store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, nodes[0], a, "zone=a", "role!=gpu")
	nodes[2].holds(t, a)
	nodes[0].readyOn(t, testRef, 1, 1)
	for name, why := range map[string]string{"n0": "no label zone", "n1": "role=gpu"} {
		if c := cellOf(t, nodes[0], name); c.State != report.Excluded || !strings.Contains(c.Reason, why) {
			t.Errorf("%s is %s (%s), want excluded with %q", name, c.State, c.Reason, why)
		}
	}
	if have, _ := nodes[1].store.List(t.Context()); have[testRef] != "" {
		t.Error("n1 has fetched what is not for it")
	}
	again, err := nodes[0].Announce(t.Context(), testRef, p2p.Options{On: []string{"role!=gpu", "zone=a"}})
	if err != nil || again.Version != 1 || again.Before.Version != 1 {
		t.Errorf("announced again for the same nodes: %v, %+v; want nothing new", err, again)
	}
	if again, err = nodes[0].Announce(t.Context(), testRef, p2p.Options{At: a.Target.Digest}); err != nil || again.Version != 1 {
		t.Errorf("gone back to what is announced: %v, %+v; want that it stays for those nodes", err, again)
	}
	if _, err := nodes[0].Announce(t.Context(), testRef, p2p.Options{At: "sha256:no"}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "no earlier version") {
		t.Errorf("gone back to what is not here: %v, want what is", err)
	}
	if v := announce(t, nodes[0], a); v != 2 {
		t.Fatalf("announced for all: version %d, want 2", v)
	}
	nodes[0].readyOn(t, testRef, 2, 3)
}

func TestAutoAnnounces(t *testing.T) {
	t.Parallel()
	const pulled, byPattern = "docker.io/library/pulled:1", "registry.example.com/me/app:1"
	nodes := cluster(t, 3)
	for _, nd := range nodes {
		nd.reopen(t, func(c *p2p.Config) {
			c.Follow, c.AutoLocal, c.Auto = true, true, patterns(t, "registry.example.com/me/*")
		})
	}
	nodes[1].store.SetPulled(pulled)
	nodes[1].store.SetPulled(byPattern)
	nodes[1].store.Add(pulled, blob(9, 1<<10), 256<<10)
	named := nodes[1].store.Add(byPattern, blob(8, 1<<10), 256<<10)
	first := nodes[1].store.Add(testRef, blob(1, 1<<20), 256<<10)
	for _, nd := range nodes {
		nd.holds(t, first)
		nd.holds(t, named)
	}
	// Each follows the others' references: a build that comes up anywhere goes
	// everywhere, once.
	second := nodes[2].store.Add(testRef, blob(2, 1<<20), 256<<10)
	for _, nd := range nodes {
		nd.holds(t, second)
	}
	nodes[0].readyOn(t, testRef, 2, 3)
	if row := nodes[0].row(t, testRef); row.AnnouncedBy != "n2" {
		t.Errorf("version 2 is from %s, want n2", row.AnnouncedBy)
	}
	// An earlier build that comes back on one host is left to people.
	nodes[0].store.Add(testRef, blob(1, 1<<20), 256<<10)
	nodes[0].waitFor(t, "the earlier build is seen", func() bool { return cellOf(t, nodes[0], "n0").State == report.Excluded })
	if v := nodes[0].row(t, testRef).Version; v != 2 {
		t.Errorf("an earlier build was announced by itself as version %d", v)
	}
	// A withdrawn image stays where it is, and stays withdrawn.
	if err := nodes[1].Withdraw(t.Context(), byPattern, report.Withdrawal{}); err != nil {
		t.Fatal(err)
	}
	third := nodes[1].store.Add("docker.io/library/third:1", blob(3, 1<<10), 256<<10)
	for _, nd := range nodes {
		nd.holds(t, third)
		if row := nd.row(t, byPattern); row.State != "withdrawn" {
			t.Errorf("%s is %s again", byPattern, row.State)
		}
	}
	if _, err := nodes[0].Images(t.Context(), pulled); err == nil {
		t.Errorf("%s came from a registry and was announced", pulled)
	}
}

func TestPreviousVersionsAreKept(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 2)
	nodes[1].reopen(t, func(c *p2p.Config) { c.KeepPrevious = 2 })
	var targets []digest.Digest
	for i := range 4 {
		a := nodes[0].store.Add(testRef, blob(uint64(i), 1<<10), 256<<10)
		announce(t, nodes[0], a)
		nodes[1].holds(t, a)
		nodes[0].readyOn(t, testRef, uint64(i+1), 2)
		targets = append(targets, a.Target.Digest)
	}
	kept := func(want ...digest.Digest) func() bool {
		slices.Sort(want)
		return func() bool { return slices.Equal(nodes[1].store.Kept(), want) }
	}
	nodes[1].waitFor(t, "the last two are kept", kept(targets[1], targets[2]))
	nodes[1].reopen(t, func(*p2p.Config) {})
	if d, err := nodes[1].Previous(testRef); err != nil || d != targets[2] {
		t.Errorf("previous version after a restart: %s %v, want %s", d, err, targets[2])
	}
	back := nodes[1].store.Add(testRef, blob(2, 1<<10), 256<<10)
	announce(t, nodes[1], back)
	nodes[1].readyOn(t, testRef, 5, 2)
	nodes[1].waitFor(t, "what it was rolled back from is kept", kept(targets[1], targets[3]))
	if d, err := nodes[1].Previous(testRef); err != nil || d != targets[3] {
		t.Errorf("previous version after a rollback: %s %v, want %s", d, err, targets[3])
	}
	if err := nodes[0].Withdraw(t.Context(), testRef, report.Withdrawal{}); err != nil {
		t.Fatal(err)
	}
	nodes[1].waitFor(t, "nothing is kept of what is withdrawn", func() bool {
		for _, d := range []digest.Digest{targets[0], targets[1], targets[3]} {
			if !slices.Contains(nodes[1].store.Discarded(), d) {
				return false
			}
		}
		return len(nodes[1].store.Kept()) == 0
	})
	if _, err := nodes[0].Previous("docker.io/library/none:1"); err == nil {
		t.Error("an unknown reference has a previous version")
	}
}

func TestPurgeWaitsForContainers(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 2)
	a := nodes[0].store.Add(testRef, blob(1, 1<<10), 256<<10)
	announce(t, nodes[0], a)
	nodes[1].holds(t, a)
	nodes[0].readyOn(t, testRef, 1, 2)
	nodes[1].store.SetUsers(testRef, "web-1")
	if err := nodes[0].Withdraw(t.Context(), testRef, report.Withdrawal{Purge: true}); err != nil {
		t.Fatal(err)
	}
	nodes[0].waitFor(t, "n1 says what holds it up, n0 has removed it", func() bool {
		used := cellOf(t, nodes[0], "n1")
		return used.State == report.Waiting && strings.Contains(used.Reason, "web-1") && cellOf(t, nodes[0], "n0").State == report.Excluded
	})
	if have, _ := nodes[1].store.List(t.Context()); have[testRef] == "" {
		t.Fatal("n1 has removed an image that is in use")
	}
	if err := nodes[0].Withdraw(t.Context(), testRef, report.Withdrawal{Purge: true, Force: true}); err != nil {
		t.Fatal(err)
	}
	nodes[1].waitFor(t, "removed by force", func() bool {
		have, _ := nodes[1].store.List(t.Context())
		return have[testRef] == ""
	})
}

func TestFetchWaitsForRoom(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 2)
	nodes[1].store.SetRoom("1.5GiB is missing")
	a := nodes[0].store.Add(testRef, blob(1, 1<<10), 256<<10)
	announce(t, nodes[0], a)
	nodes[0].waitFor(t, "n1 says what lacks", func() bool {
		c := cellOf(t, nodes[0], "n1")
		return c.State == report.Waiting && c.Reason == "1.5GiB is missing"
	})
	nodes[1].store.SetRoom("")
	nodes[1].holds(t, a)
}
