package gossip

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// saved is what the file of known members says of each: that it was alive, dead or left.
func saved(t *testing.T, path string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		return nil // not written yet
	}
	peers, err := decodePeersFile(b)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, k := range peers {
		switch {
		case !k.Left.IsZero():
			out[k.Name] = StateLeft
		case !k.Dead.IsZero():
			out[k.Name] = StateDead
		default:
			out[k.Name] = StateAlive
		}
	}
	return out
}

// TestFarewellIsSaved: a member that leaves is gone also for a host that loses its power a
// moment later, and starts again when nobody knows of it any more.
func TestFarewellIsSaved(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "members.json")
	a := start(t, "a", 1, func(c *Config) { c.PeersFile = path })
	b := start(t, "b", 1, nil, a.addr)
	eventually(t, "a and b know each other", func() bool { return a.state("b") == StateAlive && b.state("a") == StateAlive })
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, "the farewell is in the file", func() bool { return saved(t, path)["b"] == StateLeft })
	if took := time.Since(began); took > healInterval/2 {
		t.Errorf("after %s", took)
	}
}

// TestRivalIsNotSaved: the second host of a name is shown as that, but is no member when
// the daemon starts again: it would be missing for days under a name that it never had.
func TestRivalIsNotSaved(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "members.json")
	a := start(t, "a", 1, func(c *Config) { c.PeersFile = path })
	first := start(t, "b", 1, nil, a.addr)
	eventually(t, "a and b know each other", func() bool { return len(a.Peers()) == 2 && len(first.Peers()) == 2 })
	start(t, "b", 1, nil, a.addr)
	eventually(t, "a sees both", func() bool { return len(a.Members()) == 3 })
	if err := a.Close(); err != nil { // writes the file
		t.Fatal(err)
	}
	if got, want := saved(t, path), map[string]string{"b": StateAlive}; !maps.Equal(got, want) {
		t.Errorf("the file has %v, want %v", got, want)
	}
}
