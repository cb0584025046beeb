package diagnose

import (
	"context"
	"errors"
	"sync"
	"time"

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

// enter reports whether this one may be probed now: one at a time for each asker,
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
// knows of it, and says what came of it (wire.Prober).
func (dg *Diagnoser) Probe(ctx context.Context, from string, nonce wire.Nonce) (wire.Answer, error) {
	m, others, ok := dg.cfg.Members.ByID(from)
	if others {
		return wire.Answer{}, errors.New("two members have this identity: cannot tell which of them is asking")
	}
	if !ok {
		const stranger = "its gossip does not know this node"
		return wire.Answer{Transfer: stranger}, nil
	}
	if !dg.probing.enter(from) {
		return wire.Answer{}, &swarm.BusyError{RetryAfter: time.Second}
	}
	defer dg.probing.leave(from)
	ctx, cancel := context.WithTimeout(ctx, backTimeout)
	defer cancel()
	var a wire.Answer
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := dg.cfg.Gossip.SendProbe(m.Name, nonce); err != nil {
			dg.cfg.Log.Debug("failed to send a probe", "member", m.Name, "err", err)
		}
		ctx, cancel := context.WithTimeout(ctx, packetTimeout)
		defer cancel()
		a.GossipUDP, a.GossipUDPLarge = dg.cfg.Gossip.AwaitArrival(ctx, nonce)
	})
	wg.Go(func() { a.Transfer = why(dg.cfg.Client.Echo(ctx, m.Address, 0, 0).Reason) })
	wg.Wait()
	return a, nil
}

// Held are those of refs that this host's store has (wire.Prober).
func (dg *Diagnoser) Held(ctx context.Context, refs []string) ([]string, error) {
	have, err := dg.cfg.Store.List(ctx)
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
