package gossip

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"seeder/disk/disktest"
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
	const first, next = `["10.0.0.1:7950"]`, `["10.0.0.1:7950","10.0.0.2:7950"]`
	disktest.Crashes(t, nil, func(dir string, ack func(string)) {
		g, _ := keeper(t, dir)
		for _, list := range []string{first, next} {
			if err := g.writePeers([]byte(list)); err != nil {
				panic(err)
			}
			ack(list)
		}
	}, func(t *testing.T, s disktest.State) {
		g, log := keeper(t, s.Dir)
		peers := g.loadPeers()
		if log.String() != "" {
			t.Error(log.String())
		}
		if n := len(peers); n > 2 || (n < 1 && s.Has(first)) || (n < 2 && s.Has(next)) {
			t.Errorf("%v", peers)
		}
		if err := g.writePeers([]byte(next)); err != nil || len(g.loadPeers()) != 2 {
			t.Errorf("not written after the cut: %v", err)
		}
	})
}

// TestDamagedPeers: a list that is damaged is told and not used, and written anew.
func TestDamagedPeers(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"empty": "", "zeros": "\x00\x00\x00", "half": `["10.0.0.1:7950","10.0.`, "another thing": `{"a":1}`,
		"too large": "[" + strings.Repeat(" ", maxPeersBytes) + "]",
	} {
		g, log := keeper(t, t.TempDir())
		if err := os.WriteFile(g.cfg.PeersFile, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if peers := g.loadPeers(); len(peers) > 0 || strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), g.cfg.PeersFile) {
			t.Errorf("%s: %v, and it says %q", name, peers, log.String())
		}
		if err := g.writePeers([]byte(`["10.0.0.1:7950"]`)); err != nil {
			t.Error(err)
		}
		if peers := g.loadPeers(); !slices.Equal(peers, []string{"10.0.0.1:7950"}) {
			t.Errorf("%s: written anew and read as %v", name, peers)
		}
	}
	g, log := keeper(t, t.TempDir())
	if err := os.WriteFile(g.cfg.PeersFile, []byte(`["10.0.0.1:7950","no address"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if peers := g.loadPeers(); !slices.Equal(peers, []string{"10.0.0.1:7950"}) || log.String() != "" {
		t.Errorf("%v %s", peers, log.String())
	}
}

// TestPeersAreWrittenOnce: a list that has not changed costs no sync.
func TestPeersAreWrittenOnce(t *testing.T) {
	t.Parallel()
	g, _ := keeper(t, t.TempDir())
	if err := g.writePeers([]byte(`[]`)); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(g.cfg.PeersFile); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if err := os.Remove(g.cfg.PeersFile); err != nil {
		t.Fatal(err)
	}
	if err := g.writePeers([]byte(`[]`)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(g.cfg.PeersFile); err == nil {
		t.Error("written again")
	}
}
