// Package members answers what the other parts of a node ask of the membership: who is
// there by name or by identity, at which address, with what to say of itself, and in which order
// peers are tried.
//
// It owns what members said of themselves when they were asked last: labels, containerd, disk. It never
// contacts a member and decides about none: package gossip does both.
//
// Invariant: what a member said of itself stays known while it is away, and is bounded
// whatever members do.
package members

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"seeder/p2p/gossip"
	"seeder/p2p/report"
	"seeder/p2p/swarm"
	"seeder/p2p/trust"
)

// maxKnown bounds the members of whom it is remembered what they said: as many as gossip
// keeps.
const maxKnown = 4096

// Members is the cluster as one node sees it. It is safe for concurrent use.
type Members struct {
	gossip *gossip.Gossip
	self   string
	labels map[string]string  // of this node
	host   func() report.Host // of this node

	mu    sync.Mutex
	facts map[string]Facts // of the others, by name
}

// New returns the members that g knows. self is the name of this node, labels are its own,
// and host is what it says of its host.
func New(g *gossip.Gossip, self string, labels map[string]string, host func() report.Host) *Members {
	return &Members{gossip: g, self: self, labels: labels, host: host, facts: map[string]Facts{}}
}

// Self is the name of this node.
func (ms *Members) Self() string { return ms.self }

// All are the members, this node among them: those first that it has to do with.
func (ms *Members) All() []gossip.Member { return gossip.ProofFirst(ms.gossip.Members()) }

// Others are the other alive members that this node can talk to.
func (ms *Members) Others() []gossip.Member {
	return slices.DeleteFunc(ms.gossip.Peers(), func(m gossip.Member) bool { return m.Name == ms.self })
}

// Peers are the others as peers of a swarm, by chance, but those first that this node has
// to do with: others may not exist.
func (ms *Members) Peers() []swarm.Peer {
	var out []swarm.Peer
	others := ms.Others()
	rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	if ms.gossip.NeverReached() > 0 {
		others = gossip.ProofFirst(others)
	}
	for _, m := range others {
		if m.Address != "" {
			out = append(out, swarm.Peer{Name: m.Name, Address: m.Address})
		}
	}
	return out
}

// Address is the transfer address of an alive or suspect member that this node can talk
// to.
func (ms *Members) Address(name string) (addr string, ok bool) {
	for _, m := range ms.gossip.Peers() {
		if m.Name == name && m.Address != "" {
			return m.Address, true
		}
	}
	return "", false
}

// NameOf is the name of the member with a proved id; other where gossip knows none.
func (ms *Members) NameOf(id, other string) string {
	for _, m := range ms.gossip.Members() {
		if id != "" && string(m.ID) == id {
			return m.Name
		}
	}
	return other
}

// ByID finds the member with an id that is not this node's own, dead ones too: that it
// seems so may be what is to be found out. several: more than one that is alive has it.
func (ms *Members) ByID(id string) (found gossip.Member, several, ok bool) {
	for _, m := range ms.gossip.Members() {
		if string(m.ID) != id || m.State == gossip.StateLeft || m.State == gossip.StateDead && ok {
			continue
		}
		several = ok && found.State == gossip.StateAlive
		if found, ok = m, true; several {
			break
		}
	}
	return found, several, ok && found.Name != ms.self
}

// List lists the cluster. Nobody is asked.
func (ms *Members) List() report.Members {
	out := report.Members{Node: ms.self, Members: []report.MemberState{}}
	for _, m := range ms.gossip.Members() {
		f := ms.Facts(m.Name)
		out.Members = append(out.Members, report.MemberState{
			Name: m.Name, Address: m.Address, State: m.State, Reason: Reason(m), Version: m.Version, ID: string(m.ID), Since: m.Since, Labels: f.Labels, Host: f.Host,
		})
	}
	slices.SortFunc(out.Members, func(a, b report.MemberState) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Reason says why this node cannot talk to a member, and what to do.
func Reason(m gossip.Member) string {
	if m.Fix == "" {
		return m.Reason
	}
	return m.Reason + "; " + m.Fix
}

// Facts are what a member said of itself beside its images.
type Facts struct {
	Labels map[string]string
	Host   *report.Host // nil: it has not been asked
}

// SetFacts records what a member has said of itself.
func (ms *Members) SetFacts(name string, f Facts) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if len(ms.facts) >= maxKnown {
		clear(ms.facts)
	}
	ms.facts[name] = f
}

// Facts are those of a member as far as they are known, and of this node as they are.
func (ms *Members) Facts(name string) Facts {
	if name == ms.self {
		host := ms.host()
		return Facts{Labels: ms.labels, Host: &host}
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return ms.facts[name]
}

// Conflicts are the pairs of hosts that cannot be told apart.
func (ms *Members) Conflicts() (out []report.Conflict) {
	for _, c := range ms.gossip.Conflicts() {
		out = append(out, c.Conflict)
	}
	return out
}

// Join is how this node is with the cluster that it is meant to be in.
func (ms *Members) Join() report.JoinStatus {
	joined, err := ms.gossip.Status()
	if joined || err == nil {
		return report.JoinStatus{OK: true}
	}
	return report.JoinStatus{Refused: errors.Is(err, trust.ErrSecretsDiffer), Reason: err.Error(), Since: ms.gossip.FailedSince()}
}

// NeverReached counts alive members that have answered this node nothing yet.
func (ms *Members) NeverReached() int { return ms.gossip.NeverReached() }

// Alive counts the members that are alive, this node among them.
func (ms *Members) Alive() int { return len(ms.gossip.Alive()) }

// Forget drops a member that is away from the cluster, on every node that is there.
func (ms *Members) Forget(name string) error {
	if err := ms.gossip.Forget(name); err != nil {
		return fmt.Errorf("forget %s: %w", name, err)
	}
	return nil
}
