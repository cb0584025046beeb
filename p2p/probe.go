package p2p

import (
	"context"
	"errors"
	"sync"
	"time"

	"seeder/p2p/gossip"
	"seeder/p2p/swarm"
	"seeder/p2p/wire"
)

const (
	// maxProbes is how many members a node connects back to at once.
	maxProbes = 8
	// backTimeout bounds what connecting back takes.
	backTimeout = 3 * time.Second
	// packetTimeout is how long a packet may take that was sent before the question.
	packetTimeout = 1500 * time.Millisecond
)

// probing are the members that are connected back to now. It is safe for concurrent
// use.
type probing struct {
	mu  sync.Mutex
	now map[string]bool // by node id
}

// enter reports whether this one may be probed now: one at a time for whoever asks,
// so that asking often costs the asker as much as this node.
func (p *probing) enter(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == nil {
		p.now = map[string]bool{}
	}
	if p.now[id] || len(p.now) >= maxProbes {
		return false
	}
	p.now[id] = true
	return true
}

func (p *probing) leave(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.now, id)
}

// Probe connects back to the member with a proved id, at the addresses that gossip
// knows of it, and says what came of it (wire.Handler).
func (h handler) Probe(ctx context.Context, from string, nonce wire.Nonce) (wire.Answer, error) {
	n := h.n
	m, others, ok := n.memberOf(from)
	if others {
		return wire.Answer{}, errors.New("two members have this identity: cannot tell which of them is asking")
	}
	if !ok {
		const stranger = "its gossip does not know this node"
		return wire.Answer{Transfer: stranger}, nil
	}
	if !n.probing.enter(from) {
		return wire.Answer{}, &swarm.BusyError{RetryAfter: time.Second}
	}
	defer n.probing.leave(from)
	ctx, cancel := context.WithTimeout(ctx, backTimeout)
	defer cancel()
	var a wire.Answer
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.gossip.SendProbe(m.Name, nonce); err != nil {
			n.log.Debug("failed to send a probe", "member", m.Name, "err", err)
		}
		ctx, cancel := context.WithTimeout(ctx, packetTimeout)
		defer cancel()
		a.GossipUDP, a.GossipUDPLarge = n.gossip.AwaitArrival(ctx, nonce)
	})
	wg.Go(func() { a.Transfer = why(n.client.Echo(ctx, m.Address, 0, 0).Reason) })
	wg.Wait()
	return a, nil
}

// memberOf finds the member with an id that is not this node's own, dead ones too: that it
// seems so may be what is to be found out. Others: several that are alive have it.
func (n *Node) memberOf(id string) (found gossip.Member, others, ok bool) {
	for _, m := range n.gossip.Members() {
		if string(m.ID) != id || m.State == gossip.StateLeft || m.State == gossip.StateDead && ok {
			continue
		}
		others = ok && found.State == gossip.StateAlive
		if found, ok = m, true; others {
			break
		}
	}
	return found, others, ok && found.Name != n.cfg.Name
}

// Held are those of refs that this host's store has (wire.Handler).
func (h handler) Held(ctx context.Context, refs []string) ([]string, error) {
	n := h.n
	have, err := n.store.List(ctx)
	if err != nil {
		return nil, err
	}
	out := []string{}
	for _, ref := range refs {
		if _, ok := have[ref]; ok {
			out = append(out, ref)
		}
	}
	return out, nil
}
