package gossip

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"seeder/internal/disk/disktest"
)

func keeper(t testing.TB, dir string) (*Gossip, *syncBuffer) {
	var log syncBuffer
	return New(Config{
		NodeName: "a", PeersFile: filepath.Join(dir, "members.json"), Log: slog.New(slog.NewTextHandler(&log, nil)),
	}), &log
}

// TestPeersCut: a node without join addresses finds its cluster by this file
// alone, so that no cut may take it: the old list is there or the new one.
func TestPeersCut(t *testing.T) {
	t.Parallel()
	const (
		one   = `{"name":"b","gossip":"10.0.0.1:7950","address":"10.0.0.1:7951","version":"1"}`
		first = "[" + one + "]"
		next  = "[" + one + `,{"name":"c","gossip":"10.0.0.2:7950","address":"10.0.0.2:7951","version":"1"}]`
	)
	disktest.Crashes(t, nil, func(dir string, ack func(string)) {
		g, _ := keeper(t, dir)
		for _, list := range []string{first, next} {
			if err := g.roster.writePeers([]byte(list)); err != nil {
				panic(err)
			}
			ack(list)
		}
	}, func(t *testing.T, s disktest.State) {
		g, log := keeper(t, s.Dir)
		peers := g.roster.loadPeers()
		if log.String() != "" {
			t.Error(log.String())
		}
		if n := len(peers); n > 2 || (n < 1 && s.Has(first)) || (n < 2 && s.Has(next)) {
			t.Errorf("%v", peers)
		}
		if err := g.roster.writePeers([]byte(next)); err != nil || len(g.roster.loadPeers()) != 2 {
			t.Errorf("not written after the cut: %v", err)
		}
	})
}

// TestDamagedPeers: a list that is damaged is told and not used, and written anew.
func TestDamagedPeers(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"empty": "", "zeros": "\x00\x00\x00", "half": `[{"name":"b","gossip":"10.0.0.1:79`, "another thing": `{"a":1}`,
		"too large": "[" + strings.Repeat(" ", maxPeersBytes) + "]",
	} {
		g, log := keeper(t, t.TempDir())
		if err := os.WriteFile(g.cfg.PeersFile, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if peers := g.roster.loadPeers(); len(peers) > 0 || strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), g.cfg.PeersFile) {
			t.Errorf("%s: %v, and it says %q", name, peers, log.String())
		}
		if err := g.roster.writePeers([]byte(`[{"name":"b","gossip":"10.0.0.1:7950","address":"10.0.0.1:7951"}]`)); err != nil {
			t.Error(err)
		}
		if peers := g.roster.loadPeers(); !slices.Equal(peers, []string{"10.0.0.1:7951"}) {
			t.Errorf("%s: written anew and read as %v", name, peers)
		}
	}
	g, log := keeper(t, t.TempDir())
	if err := os.WriteFile(g.cfg.PeersFile, []byte(`[{"name":"b","gossip":"10.0.0.1:7950","address":"b.lan:7951"},{"name":"c","gossip":"no address"},{"name":"","gossip":"10.0.0.3:7950"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if peers := g.roster.loadPeers(); !slices.Equal(peers, []string{"10.0.0.1:7951"}) || log.String() != "" {
		t.Errorf("%v %s", peers, log.String())
	}
}

// TestPeersAreWrittenOnce: a list that has not changed costs no sync.
func TestPeersAreWrittenOnce(t *testing.T) {
	t.Parallel()
	g, _ := keeper(t, t.TempDir())
	if err := g.roster.writePeers([]byte(`[]`)); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(g.cfg.PeersFile); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if err := os.Remove(g.cfg.PeersFile); err != nil {
		t.Fatal(err)
	}
	if err := g.roster.writePeers([]byte(`[]`)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(g.cfg.PeersFile); err == nil {
		t.Error("written again")
	}
}

// TestKnownMembersOutliveARestart: who was a member when the daemon stopped is one when it
// starts again, away since then, until it is forgotten or three days have passed.
func TestKnownMembersOutliveARestart(t *testing.T) {
	t.Parallel()
	now := time.Now()
	g, _ := keeper(t, t.TempDir())
	for _, m := range []Member{
		{Name: "alive", State: StateAlive, Since: now, gossip: "10.0.0.2:7950"},
		{Name: "dead", State: StateDead, Since: now.Add(-time.Hour), gossip: "10.0.0.3:7950"},
		{Name: "long", State: StateDead, Since: now.Add(-71 * time.Hour), gossip: "10.0.0.4:7950"},
		{Name: "left", State: StateLeft, Since: now.Add(-time.Hour), gossip: "10.0.0.5:7950"},
	} {
		g.members.byName[m.Name] = &m
	}
	g.roster.savePeers()
	again, _ := keeper(t, filepath.Dir(g.cfg.PeersFile))
	if addrs := again.roster.loadPeers(); len(addrs) != 4 {
		t.Errorf("addresses to join: %v", addrs)
	}
	states := func() map[string]string {
		out := map[string]string{}
		for _, m := range again.Members() {
			out[m.Name] = m.State
			if m.Name == "dead" && now.Sub(m.Since).Round(time.Minute) != time.Hour {
				t.Errorf("dead since %s", m.Since)
			}
		}
		return out
	}
	if got, want := states(), map[string]string{"alive": "dead", "dead": "dead", "long": "dead", "left": "left"}; !maps.Equal(got, want) {
		t.Errorf("after a restart: %v, want %v", got, want)
	}
	again.members.byName["long"].Since = now.Add(-73 * time.Hour)
	if got := states(); got["long"] != "" || got["dead"] != "dead" {
		t.Errorf("after three days: %v", got)
	}
}
