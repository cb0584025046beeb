package swarm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func newTestTracker(max int) *Tracker {
	return NewTracker(TrackerConfig{MaxPeers: max, Rand: rand.NewPCG(1, 1)})
}

func testPeer(i int, complete bool) Peer {
	return Peer{Name: fmt.Sprintf("n%04d", i), Address: fmt.Sprintf("10.0.%d.%d:7951", i/256, i%256), Complete: complete}
}

func peerNames(peers []Peer) []string {
	out := []string{}
	for _, p := range peers {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return out
}

func TestTrackerAnswers(t *testing.T) {
	now := time.Unix(1000, 0)
	cases := []struct {
		name              string
		complete, partial int
		wantC, wantP      int
	}{
		{"nobody", 0, 0, 0, 0},
		{"few", 3, 5, 3, 5},
		{"complete ones only", 50, 0, 32, 0},
		{"partial ones only", 0, 50, 0, 32},
		{"a flash crowd", 1, 999, 1, 31},
		{"many of both: a few complete ones", 50, 50, 8, 24},
		{"topped up with complete ones", 50, 10, 22, 10},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			tr := newTestTracker(0)
			for i := range c.complete + c.partial {
				register(tr, simSeed, testPeer(i, i < c.complete), now)
			}
			for range 20 {
				got := register(tr, simSeed, Peer{Name: "requester", Complete: true}, now)
				names := map[string]bool{}
				complete := 0
				for _, p := range got {
					if names[p.Name] = true; p.Complete {
						complete++
					}
				}
				if complete != c.wantC || len(got)-complete != c.wantP || len(names) != len(got) || names["requester"] {
					t.Fatalf("%d complete and %d partial peers: %v", complete, len(got)-complete, peerNames(got))
				}
			}
		})
	}
}

// Everybody is found as often as others, and the same chance gives the same
// answers.
func TestTrackerIsRandom(t *testing.T) {
	now := time.Unix(1000, 0)
	const peers, asks = 200, 1000
	times := func() map[string]int {
		tr := newTestTracker(0)
		for i := range peers {
			register(tr, simSeed, testPeer(i, false), now)
		}
		found := map[string]int{}
		for range asks {
			for _, p := range register(tr, simSeed, testPeer(0, false), now) {
				found[p.Name]++
			}
		}
		return found
	}
	found := times()
	if len(found) != peers-1 {
		t.Errorf("%d of %d peers were ever found", len(found), peers-1)
	}
	const mean = asks * MaxPeersReturned / (peers - 1)
	for name, k := range found {
		if k < mean/2 || k > mean*2 {
			t.Errorf("%s was found %d times, on average %d", name, k, mean)
		}
	}
	for name, k := range times() {
		if found[name] != k {
			t.Fatal("the same seed gives another answer")
		}
	}
}

func TestTrackerRenewsAndForgets(t *testing.T) {
	tr := newTestTracker(0)
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * 1e9)) }
	other := digest.FromString("another image")
	register(tr, simSeed, testPeer(1, false), at(0))
	register(tr, simSeed, testPeer(2, false), at(0))
	register(tr, other, testPeer(3, false), at(0))
	moved := Peer{Name: "n0002", Address: "192.0.2.9:7951", Complete: true}
	register(tr, simSeed, moved, at(50))
	if got := register(tr, simSeed, testPeer(9, false), at(60)); !slices.Equal(peerNames(got), []string{"n0001", "n0002"}) {
		t.Errorf("after 60 s: %v", got)
	}
	got := register(tr, simSeed, testPeer(9, false), at(60.5))
	if len(got) != 1 || got[0] != moved {
		t.Errorf("after a little more: %v, want %v", got, moved)
	}
	if got := register(tr, other, testPeer(9, false), at(61)); len(got) != 0 {
		t.Errorf("of another image: %v", got)
	}
	register(tr, digest.FromString("later"), testPeer(9, false), at(1000))
	if len(tr.seeds) != 1 || tr.peers != 1 {
		t.Errorf("%d seeds and %d peers are remembered, want what was said last only", len(tr.seeds), tr.peers)
	}
	// A clock that was set back does not stop the tracker from forgetting.
	register(tr, simSeed, testPeer(1, false), at(500))
	register(tr, simSeed, testPeer(2, false), at(600))
	if got := register(tr, simSeed, testPeer(9, false), at(600)); !slices.Equal(peerNames(got), []string{"n0002"}) {
		t.Errorf("with a clock set back: %v", got)
	}
	if _, ok := tr.seeds[simSeed]["n0001"]; ok {
		t.Error("with a clock set back, expired peers fill the tracker")
	}
}

// However many names one makes up, or seeds: the tracker is bounded, answers, and
// goes on to renew those it knows.
func TestTrackerIsBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	tr := newTestTracker(100)
	for i := range 50 {
		register(tr, simSeed, testPeer(i, true), now)
	}
	for i := range 10000 {
		register(tr, simSeed, Peer{Name: fmt.Sprint("made-up-", i)}, now)
		register(tr, digest.FromString(fmt.Sprint(i)), testPeer(1, false), now)
	}
	remembered := 0
	for _, peers := range tr.seeds {
		remembered += len(peers)
	}
	if remembered != 100 || tr.peers != 100 {
		t.Errorf("%d peers are remembered (counted %d), want 100", remembered, tr.peers)
	}
	late := now.Add(50 * time.Second)
	if got := register(tr, simSeed, Peer{Name: "one too many"}, late); len(got) != MaxPeersReturned {
		t.Errorf("who is not remembered gets %d peers", len(got))
	}
	register(tr, simSeed, testPeer(7, true), late)
	if got := register(tr, simSeed, testPeer(8, true), now.Add(70*time.Second)); !slices.Equal(peerNames(got), []string{"n0007"}) {
		t.Errorf("who was renewed while the tracker was full: %v", peerNames(got))
	}
	if got := register(tr, simSeed, testPeer(9999, false), now.Add(71*time.Second)); !slices.Equal(peerNames(got), []string{"n0007", "n0008"}) {
		t.Errorf("after room was made: %v", peerNames(got))
	}
	if _, ok := tr.seeds[simSeed]["n9999"]; !ok {
		t.Error("there is room again, and it is not used")
	}
}

func TestOwners(t *testing.T) {
	members := []string{}
	for i := range 50 {
		members = append(members, testPeer(i, false).Name)
	}
	owned := map[string]int{}
	for i := range 500 {
		seed := digest.FromString(fmt.Sprint(i))
		owners := Owners(seed, members, 3)
		if len(owners) != 3 || owners[0] == owners[1] || owners[1] == owners[2] || owners[0] == owners[2] {
			t.Fatalf("owners %v", owners)
		}
		for _, o := range owners {
			owned[o]++
		}
		// In any order, told twice: the same owners.
		mixed := append(slices.Clone(members), members[:20]...)
		slices.Reverse(mixed)
		if got := Owners(seed, mixed, 3); !slices.Equal(got, owners) {
			t.Fatalf("%v, and in another order %v", owners, got)
		}
		// Without the second owner the other two stay; without another member all do.
		rest := slices.DeleteFunc(slices.Clone(members), func(m string) bool { return m == owners[1] })
		if got := Owners(seed, rest, 3); got[0] != owners[0] || got[1] != owners[2] {
			t.Fatalf("%v, and without the second %v", owners, got)
		}
		other := slices.IndexFunc(members, func(m string) bool { return !slices.Contains(owners, m) })
		if got := Owners(seed, slices.Delete(slices.Clone(members), other, other+1), 3); !slices.Equal(got, owners) {
			t.Fatalf("%v, and without %s %v", owners, members[other], got)
		}
	}
	for _, m := range members {
		if owned[m] < 10 || owned[m] > 60 { // 30 on average
			t.Errorf("%s owns %d of 500 seeds", m, owned[m])
		}
	}
	if got := Owners(simSeed, members[:2], 3); len(got) != 2 {
		t.Errorf("of two members: %v", got)
	}
	if got := Owners(simSeed, nil, 3); len(got) != 0 {
		t.Errorf("of nobody: %v", got)
	}
}

// register has p speak for itself.
func register(tr *Tracker, seed digest.Digest, p Peer, now time.Time) []Peer {
	return tr.Register(seed, "id of "+p.Name, p, now)
}

// TestTrackerShares: one node cannot fill the tracker with names that it made up,
// nor move another one's address.
func TestTrackerShares(t *testing.T) {
	now := time.Now()
	tr := NewTracker(TrackerConfig{MaxPeers: 100, MaxEach: 10})
	for i := range 200 {
		tr.Register(digest.FromString(fmt.Sprint("made up ", i)), "attacker", testPeer(i, true), now)
	}
	if tr.peers != 10 {
		t.Errorf("one node has %d places, want 10", tr.peers)
	}
	register(tr, simSeed, testPeer(1, true), now)
	stolen := testPeer(1, true)
	stolen.Address = "10.6.6.6:7951"
	tr.Register(simSeed, "another", stolen, now)
	if got := register(tr, simSeed, testPeer(2, false), now); len(got) != 1 || got[0].Address == stolen.Address {
		t.Errorf("got %+v, want the address that the peer gave itself", got)
	}
	late := now.Add(2 * time.Minute) // a host that came back with another identity
	tr.Register(simSeed, "another", stolen, late)
	if got := register(tr, simSeed, testPeer(2, false), late); len(got) != 1 || got[0].Address != stolen.Address {
		t.Errorf("got %+v, want the address that was given since", got)
	}
	if len(tr.each) != 2 || tr.peers != 2 {
		t.Errorf("%d nodes have %d places, want 2 and 2", len(tr.each), tr.peers)
	}
}
