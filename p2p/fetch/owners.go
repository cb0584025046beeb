package fetch

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/gossip"
	"seeder/p2p/members"
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

// registrar registers this node with an owner of a seed, which answers who else is there.
type registrar interface {
	Register(ctx context.Context, addr string, seed digest.Digest, self swarm.Peer) ([]swarm.Peer, error)
}

// Owners finds the peers of swarms. The owners of a seed (rendezvous hashing over the alive
// members) know who is fetching it right now. The announcer, and in the long run
// every member, holds it: so the announcer and random members fill the list up, and nothing
// waits for gossip. This node is one of the owners of some seeds. It is safe for concurrent
// use.
type Owners struct {
	id      trust.NodeID // of this node
	members *members.Members
	client  registrar
	tracker *swarm.Tracker // of the seeds that this node owns
	log     *slog.Logger
}

func newOwners(id trust.NodeID, ms *members.Members, client registrar, log *slog.Logger) *Owners {
	return &Owners{id: id, members: ms, client: client, tracker: swarm.NewTracker(swarm.TrackerConfig{}), log: log}
}

// finder finds the peers of what one node has announced.
type finder struct {
	*Owners
	announcer string
}

// Peers implements swarm.Finder. What owners say of who is where is taken only for
// those that gossip does not know.
func (f finder) Peers(ctx context.Context, seed digest.Digest, complete bool) ([]swarm.Peer, error) {
	others := f.members.Peers()
	byName := make(map[string]swarm.Peer, len(others))
	names := []string{f.members.Self()}
	for _, m := range others {
		byName[m.Name] = m
		names = append(names, m.Name)
	}
	self := swarm.Peer{Name: f.members.Self(), Address: f.selfAddress(), Complete: complete}
	answers := f.ask(ctx, seed, swarm.Owners(seed, names, owners), byName, self)

	list := newPeerList(f.members.Self())
	if p, ok := byName[f.announcer]; ok {
		p.Complete = true
		list.add(p)
	}
	f.addFound(list, answers)
	for _, p := range others {
		list.add(p)
	}
	return list.peers, nil
}

// addFound adds what the owners know, from each in turn, and leaves room for members
// by chance: one owner that makes peers up keeps neither the others' nor those out.
func (o *Owners) addFound(list *peerList, answers [][]swarm.Peer) {
	known := map[string]gossip.Member{}
	for _, m := range o.members.All() {
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
func (o *Owners) ask(ctx context.Context, seed digest.Digest, owners []string, byName map[string]swarm.Peer, self swarm.Peer) (answers [][]swarm.Peer) {
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
			answered(o.tracker.Register(seed, string(o.id), self, time.Now()))
			continue
		}
		wg.Go(func() {
			peers, err := o.client.Register(ctx, byName[owner].Address, seed, self)
			if err != nil {
				o.log.Debug("failed to ask an owner", "owner", owner, "seed", seed, "err", err)
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

// selfAddress is this node's transfer address as other members see it.
func (o *Owners) selfAddress() string {
	addr, _ := o.members.Address(o.members.Self())
	return addr
}

// Register serves the owners' side of finding peers (wire.Owner). A node speaks for
// the member that it is, and for that member's address as gossip knows it.
func (o *Owners) Register(_ context.Context, seed digest.Digest, from string, p swarm.Peer) []swarm.Peer {
	for _, m := range o.members.All() {
		switch {
		case m.Name != p.Name:
		case m.ID != "" && string(m.ID) != from:
			return o.tracker.Peers(seed, p.Name, time.Now())
		case m.Address != "":
			p.Address = m.Address
		}
	}
	return o.tracker.Register(seed, from, p, time.Now())
}

// registerWithOwners tells the owners of a seed that this node holds it now, so that
// those who come next find it.
func (o *Owners) registerWithOwners(ctx context.Context, a catalog.Announcement, complete bool) {
	ctx, cancel := context.WithTimeout(ctx, ownerTimeout)
	defer cancel()
	if _, err := (finder{o, a.NodeName}).Peers(ctx, a.Seed.Digest, complete); err != nil {
		o.log.Debug("failed to register as a holder", "ref", a.Reference, "err", err)
	}
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
