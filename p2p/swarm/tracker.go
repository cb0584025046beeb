package swarm

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"sort"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// MaxPeersReturned bounds what a Tracker answers: 24-32 neighbours are enough
// for 1,000 nodes (simulated: degree 16 1.13, 24 1.08, 64 1.07 × the optimum).
const MaxPeersReturned = 32

// completeReturned is how many complete peers an answer holds at most while
// there are others: each of them takes only so many requesters, and partial holders
// are what a flash crowd lives on.
const completeReturned = 8

// TrackerConfig bounds a Tracker. Zero values mean the defaults.
type TrackerConfig struct {
	TTL      time.Duration // a peer not heard of for so long is forgotten; 60 s
	MaxPeers int           // peers remembered over all seeds; 65,536
	MaxEach  int           // of them registered by one node; 4,096
	Rand     rand.Source   // picks the peers of an answer; a random one
}

// Tracker is this node's part in finding peers: as one of the owners of a seed
// (see Owners) it remembers who fetches or holds it. All of it is soft state
// that its peers renew. It is safe for concurrent use.
type Tracker struct {
	cfg TrackerConfig

	mu    sync.Mutex
	rng   *rand.Rand
	seeds map[digest.Digest]map[string]tracked
	peers int
	each  map[string]int // how many of them by the node that registered them
	swept time.Time
}

type tracked struct {
	peer Peer
	from string // proved id of who registered it
	seen time.Time
}

// NewTracker returns an empty tracker.
func NewTracker(cfg TrackerConfig) *Tracker {
	if cfg.TTL <= 0 {
		cfg.TTL = time.Minute
	}
	if cfg.MaxPeers <= 0 {
		cfg.MaxPeers = 65536
	}
	if cfg.MaxEach <= 0 {
		cfg.MaxEach = 4096
	}
	return &Tracker{
		cfg: cfg, rng: newRand(cfg.Rand), seeds: map[digest.Digest]map[string]tracked{}, each: map[string]int{},
	}
}

// Register remembers p, for which the node with the proved id from speaks, as a
// peer of seed until TTL after now, and returns at most MaxPeersReturned other
// peers of it, chosen at random. When the tracker is full, from has had its share,
// or another node has spoken for p's name, p is answered but not remembered.
func (t *Tracker) Register(seed digest.Digest, from string, p Peer, now time.Time) []Peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep(now)
	peers := t.seeds[seed]
	old, known := peers[p.Name]
	if known && old.from != from && now.Sub(old.seen) > t.cfg.TTL {
		t.forget(seed, p.Name)
		known = false
	}
	if known && old.from == from || !known && t.peers < t.cfg.MaxPeers && t.each[from] < t.cfg.MaxEach {
		if t.seeds[seed] == nil {
			t.seeds[seed] = map[string]tracked{}
		}
		if peers = t.seeds[seed]; !known {
			t.peers++
			t.each[from]++
		}
		peers[p.Name] = tracked{peer: p, from: from, seen: now}
	}
	return t.choose(peers, p.Name, now)
}

// Peers is what Register returns, for one named self that is not remembered.
func (t *Tracker) Peers(seed digest.Digest, self string, now time.Time) []Peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep(now)
	return t.choose(t.seeds[seed], self, now)
}

// forget removes a peer of seed. The mutex is held.
func (t *Tracker) forget(seed digest.Digest, name string) {
	peers := t.seeds[seed]
	from := peers[name].from
	delete(peers, name)
	if len(peers) == 0 {
		delete(t.seeds, seed)
	}
	t.peers--
	if t.each[from]--; t.each[from] == 0 {
		delete(t.each, from)
	}
}

// choose picks the peers of an answer: a few complete ones, the rest partial
// ones, topped up with complete ones.
func (t *Tracker) choose(peers map[string]tracked, self string, now time.Time) []Peer {
	var complete, partial []Peer
	for name, e := range peers {
		switch {
		case name == self || now.Sub(e.seen) > t.cfg.TTL:
		case e.peer.Complete:
			complete = append(complete, e.peer)
		default:
			partial = append(partial, e.peer)
		}
	}
	t.shuffle(complete)
	t.shuffle(partial)
	first := min(len(complete), max(completeReturned, MaxPeersReturned-len(partial)))
	out := append(complete[:first:first], partial...)
	return out[:min(len(out), MaxPeersReturned)]
}

// shuffle orders peers by chance alone: by name first, since the order of a map
// is a chance that no seed repeats.
func (t *Tracker) shuffle(peers []Peer) {
	sort.Slice(peers, func(i, j int) bool { return peers[i].Name < peers[j].Name })
	t.rng.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
}

// sweep forgets what has expired, at most four times in a TTL.
func (t *Tracker) sweep(now time.Time) {
	if since := now.Sub(t.swept); since >= 0 && since < t.cfg.TTL/4 {
		return
	}
	t.swept = now
	for seed, peers := range t.seeds {
		for name, e := range peers {
			if now.Sub(e.seen) > t.cfg.TTL {
				t.forget(seed, name)
			}
		}
	}
}

// Owners returns the n members that keep track of seed, best first: rendezvous
// hashing, so that every node that sees the same members names the same owners,
// and a member that comes or goes moves only what it owns.
func Owners(seed digest.Digest, members []string, n int) []string {
	type scored struct {
		name  string
		score uint64
	}
	all := make([]scored, 0, len(members))
	for _, m := range members {
		sum := sha256.Sum256([]byte(string(seed) + "\x00" + m))
		all = append(all, scored{m, binary.BigEndian.Uint64(sum[:8])})
	}
	sort.Slice(all, func(i, j int) bool {
		if all[i].score != all[j].score {
			return all[i].score > all[j].score
		}
		return all[i].name < all[j].name
	})
	out := make([]string, 0, n)
	for _, s := range all {
		if len(out) == n {
			break
		}
		if len(out) == 0 || out[len(out)-1] != s.name {
			out = append(out, s.name)
		}
	}
	return out
}

// newRand seeds a generator: from src, or from chance where there is none.
func newRand(src rand.Source) *rand.Rand {
	if src == nil {
		src = rand.NewPCG(rand.Uint64(), rand.Uint64())
	}
	return rand.New(src)
}
