package p2p

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/gossip"
	"seeder/p2p/swarm"
	"seeder/p2p/trust"
)

const (
	// owners is how many nodes keep track of a swarm: one answer is enough, three
	// are there so that two may be away.
	owners = 3
	// ownerTimeout bounds the question to one owner, ownerGrace the wait for the
	// others once one has answered: an owner that died a moment ago is still alive as
	// far as this node knows.
	ownerTimeout = 2 * time.Second
	ownerGrace   = 500 * time.Millisecond
	// maxPeers is how many peers a question for peers yields at most.
	maxPeers = 32
	// maxFound is how many of them may come from the owners, the others are members by
	// chance, and maxStrangers how many of those gossip does not know (yet).
	maxFound     = 24
	maxStrangers = 8
)

// finder finds the peers of one swarm. The owners of a seed (rendezvous hashing
// over the alive members) know who is fetching it right now. Whoever announced
// it, and in the long run every member, holds it: so the announcer and random
// members fill the list up, and nothing waits for gossip.
type finder struct {
	n         *Node
	announcer string
}

// Peers implements swarm.Finder. What owners say of who is where is taken only for
// those that gossip does not know.
func (f *finder) Peers(ctx context.Context, seed digest.Digest, complete bool) ([]swarm.Peer, error) {
	members := f.n.peers()
	byName := make(map[string]swarm.Peer, len(members))
	names := []string{f.n.cfg.Name}
	for _, m := range members {
		byName[m.Name] = m
		names = append(names, m.Name)
	}
	self := swarm.Peer{Name: f.n.cfg.Name, Address: f.n.selfAddress(), Complete: complete}
	answers := f.ask(ctx, seed, swarm.Owners(seed, names, owners), byName, self)

	list := newPeerList(f.n.cfg.Name)
	if p, ok := byName[f.announcer]; ok {
		p.Complete = true
		list.add(p)
	}
	f.addFound(list, answers)
	for _, p := range members {
		list.add(p)
	}
	return list.peers, nil
}

// addFound adds what the owners know, from each in turn, and leaves room for members
// by chance: one owner that makes peers up keeps neither the others' nor those out.
func (f *finder) addFound(list *peerList, answers [][]swarm.Peer) {
	known := map[string]gossip.Member{}
	for _, m := range f.n.gossip.Members() {
		known[m.Name] = m
	}
	strangers := 0
	for i := range swarm.MaxPeersReturned {
		for _, peers := range answers {
			if i >= len(peers) || len(list.peers) >= maxFound {
				continue
			}
			p := peers[i]
			m, ok := known[p.Name]
			switch {
			case ok && m.Reason != "":
				continue
			case ok:
				p.Address = m.Address
			case strangers >= maxStrangers:
				continue
			default:
				strangers++
			}
			list.add(p)
		}
	}
}

// ask registers self with each owner and gathers their answers.
func (f *finder) ask(ctx context.Context, seed digest.Digest, owners []string, byName map[string]swarm.Peer, self swarm.Peer) (answers [][]swarm.Peer) {
	ctx, cancel := context.WithTimeout(ctx, ownerTimeout)
	defer cancel()
	var (
		mu    sync.Mutex
		grace *time.Timer // ends the wait
		wg    sync.WaitGroup
	)
	answered := func(peers []swarm.Peer) {
		mu.Lock()
		defer mu.Unlock()
		answers = append(answers, peers)
		if grace == nil {
			grace = time.AfterFunc(ownerGrace, cancel)
		}
	}
	for _, owner := range owners {
		if owner == self.Name {
			answered(f.n.tracker.Register(seed, string(f.n.ID()), self, time.Now()))
			continue
		}
		wg.Go(func() {
			peers, err := f.n.client.Register(ctx, byName[owner].Address, seed, self)
			if err != nil {
				f.n.log.Debug("failed to ask an owner", "owner", owner, "seed", seed, "err", err)
				return
			}
			answered(peers)
		})
	}
	wg.Wait()
	if grace != nil {
		grace.Stop()
	}
	return answers
}

// peerList gathers at most maxPeers different peers, never self.
type peerList struct {
	seen  map[string]bool
	peers []swarm.Peer
}

func newPeerList(self string) *peerList {
	return &peerList{seen: map[string]bool{self: true}}
}

func (l *peerList) add(p swarm.Peer) {
	if p.Name == "" || p.Address == "" || l.seen[p.Name] || len(l.peers) >= maxPeers {
		return
	}
	l.seen[p.Name] = true
	l.peers = append(l.peers, p)
}

// peers are the other alive members that this node can talk to as swarm peers, by
// chance, but those first that it has to do with: others may not exist.
func (n *Node) peers() []swarm.Peer {
	var out []swarm.Peer
	members := n.gossip.Peers()
	rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	if n.gossip.NeverReached() > 0 {
		members = gossip.ProofFirst(members)
	}
	for _, m := range members {
		if m.Name != n.cfg.Name && m.Address != "" {
			out = append(out, swarm.Peer{Name: m.Name, Address: m.Address})
		}
	}
	return out
}

// proved tells gossip whom a handshake has proved.
func (n *Node) proved(id trust.NodeID) { n.gossip.Proved(id) }

// nameOf is the name of the member with a proved id; other where gossip knows none.
func (n *Node) nameOf(id, other string) string {
	for _, m := range n.gossip.Members() {
		if id != "" && string(m.ID) == id {
			return m.Name
		}
	}
	return other
}

// selfAddress is this node's transfer address as other members see it.
func (n *Node) selfAddress() string {
	addr, _ := n.addressOf(n.cfg.Name)
	return addr
}

// Register serves the owners' side of finding peers (wire.Handler). A node speaks for
// the member that it is, and for that member's address as gossip knows it.
func (h handler) Register(_ context.Context, seed digest.Digest, from string, p swarm.Peer) []swarm.Peer {
	n := h.n
	for _, m := range n.gossip.Members() {
		switch {
		case m.Name != p.Name:
		case m.ID != "" && string(m.ID) != from:
			return n.tracker.Peers(seed, p.Name, time.Now())
		case m.Address != "":
			p.Address = m.Address
		}
	}
	return n.tracker.Register(seed, from, p, time.Now())
}
