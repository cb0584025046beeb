package gossip

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"seeder/internal/wait"
	"seeder/p2p/gossip/wall"
)

// news is what this node tells others, and what it was told: hints, and summaries of
// catalogs.
type news struct {
	g           *Gossip
	queue       *memberlist.TransmitLimitedQueue
	events      chan event
	catalogHash atomic.Uint64
}

// event is a hint or a summary on its way out of a callback.
type event struct {
	hint *Hint
	name string
	from string // the transfer address of a member that moved
	hash uint64
}

// deliver hands over what the callbacks brought.
func (n *news) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-n.events:
			if e.hint != nil && n.g.cfg.OnHint != nil {
				n.g.cfg.OnHint(*e.hint)
			}
			if e.from != "" && n.g.cfg.OnMoved != nil {
				n.g.cfg.OnMoved(e.name, e.from)
			}
			if e.hint == nil && e.from == "" && n.g.cfg.OnCatalog != nil {
				n.g.cfg.OnCatalog(e.name, e.hash)
			}
		}
	}
}

// offer queues an event; where the reader is behind it is dropped, and
// anti-entropy finds the difference later.
func (n *news) offer(e event) {
	select {
	case n.events <- e:
	default:
	}
}

// state is the summary of this node's catalog.
func (n *news) state() []byte {
	b, err := json.Marshal(state{Name: n.g.cfg.NodeName, Hash: n.catalogHash.Load()})
	if err != nil {
		return nil // a string and a number always encode
	}
	return b
}

// sendSummary tells one random member after the other the hash of the catalog.
func (n *news) sendSummary(ctx context.Context) {
	for wait.For(ctx, jitter(summaryInterval)) {
		others := slices.DeleteFunc(n.g.Peers(), func(m Member) bool { return m.Name == n.g.cfg.NodeName })
		if len(others) == 0 {
			continue
		}
		proved := slices.DeleteFunc(slices.Clone(others), func(m Member) bool { return !m.contact.proved })
		if len(proved) > 0 && rand.IntN(4) > 0 { // the others are not there, perhaps
			others = proved
		}
		m := others[rand.IntN(len(others))]
		msg := append([]byte{summaryKind}, n.state()...)
		if err := n.g.site.list.Load().SendToAddress(m.to(), msg); err != nil {
			n.g.log.Debug("failed to send the catalog summary", "member", m.Name, "err", err)
		}
	}
}

// sendDirect sends a message to proved members while most of those that memberlist chooses
// may not be there.
func (n *news) sendDirect(msg []byte) {
	if !crowded(n.g.members, time.Now()) {
		return
	}
	list := slices.DeleteFunc(n.g.Peers(), func(m Member) bool { return !m.contact.proved || m.Name == n.g.cfg.NodeName })
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for _, m := range list[:min(len(list), maxDirect)] {
		if err := n.g.site.list.Load().SendToAddress(m.to(), msg); err != nil {
			n.g.log.Debug("failed to send a hint", "member", m.Name, "err", err)
		}
	}
}

// exchanged is what this node says in an exchange of states: the summary of its catalog,
// who died and who left.
func (n *news) exchanged() []byte {
	now := time.Now()
	s := state{Name: n.g.cfg.NodeName, Hash: n.catalogHash.Load(), Away: n.g.members.dead(now), Left: n.g.members.farewells(now)}
	for {
		b, err := json.Marshal(s)
		if err != nil {
			return nil // strings and numbers always encode
		}
		if len(b) <= wall.MaxStateBytes {
			return b
		}
		s.Away, s.Left = s.Away[:len(s.Away)/2], s.Left[:len(s.Left)/2]
	}
}
