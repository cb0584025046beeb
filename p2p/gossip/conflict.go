package gossip

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"seeder/internal/wait"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

// Conflict says that two hosts that are alive cannot be told apart.
type Conflict struct {
	report.Conflict
	second instance
}

// ranks is what this node has decided of hosts with its name or identity: whether it is the
// second of the two.
type ranks struct {
	g          *Gossip
	reconsider wait.Signal

	mu        sync.Mutex
	byProcess map[string]bool // whether this node is the second
	joins     int             // that are under way
}

// Conflicts are the pairs of hosts that are alive and cannot be told apart. Every node
// sees all of them.
func (g *Gossip) Conflicts() []Conflict {
	g.members.mu.Lock()
	defer g.members.mu.Unlock()
	return g.members.conflictsLocked()
}

// conflictsLocked lists rivals for a name, and nodes of one identity. mu is held.
func (ms *members) conflictsLocked() []Conflict {
	var out []Conflict
	for name, rivals := range ms.rivals {
		for _, r := range rivals {
			if !ms.confirmedLocked(r) || !ms.confirmedLocked(ms.byName[name]) {
				continue
			}
			out = append(out, ms.self.conflict(report.ConflictName, ms.byName[name], r))
		}
	}
	byID := map[string][]*Member{}
	for _, m := range ms.byName {
		if m.State == StateAlive && m.ID != "" && ms.ids[m.ID] > 1 && ms.confirmedLocked(m) {
			byID[string(m.ID)] = append(byID[string(m.ID)], m)
		}
	}
	for _, same := range byID {
		if same = onlyGenuine(same); len(same) < 2 {
			continue
		}
		slices.SortFunc(same, func(a, b *Member) int { return cmp.Or(compare(a.second, b.second), a.order-b.order) })
		for _, m := range same[1:] {
			if m.gossip != same[0].gossip { // else it was renamed, and the other instance is about to be found dead
				out = append(out, ms.self.conflict(report.ConflictIdentity, same[0], m))
			}
		}
	}
	slices.SortFunc(out, func(a, b Conflict) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name), strings.Compare(a.OtherAddress, b.OtherAddress))
	})
	return out
}

// conflict is that between two members, as i sees it. That it is the second a node says itself.
func (i instance) conflict(kind string, first, second *Member) Conflict {
	if first.instance.process == i.process && first.second && !second.second {
		first, second = second, first
	}
	return Conflict{second: second.instance, Conflict: report.Conflict{
		Kind: kind, Name: first.Name, Address: first.gossip, Other: second.Name, OtherAddress: second.gossip,
		Self:   first.instance.process == i.process || second.instance.process == i.process,
		Second: second.instance.process == i.process,
	}}
}

// youngFor is how long after its start a node that knows nobody may be the one that comes
// into a cluster, and so the second.
const youngFor = time.Minute

// joining notes that this node joins others, until the returned function is called.
func (r *ranks) joining() (done func()) {
	count := func(by int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.joins += by
	}
	count(1)
	return func() { count(-1) }
}

// rival decides for a new instance with this node's name or identity which of the two is
// the second: this node, where it is the one that comes into the cluster of the other. It
// is called under memberlist's lock.
func (d *delegate) rival(i instance, m Meta) {
	if i.node != d.cfg.NodeName && (m.ID == "" || m.ID != d.cfg.Meta.ID) {
		return
	}
	alone, at := !d.members.others(i.node), d.site.at()
	d.ranks.decide(i, alone && at.instance.moved == 0 && time.Since(at.since) < youngFor)
}

// decide keeps whether this node is the second beside a new instance: where it joins others
// just now, or is new and alone.
func (r *ranks) decide(i instance, newcomer bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.byProcess[i.process]; !known && len(r.byProcess) < maxGone {
		r.byProcess[i.process] = r.joins > 0 || newcomer
	}
}

// others reports whether there are members of other names than this one and that.
func (ms *members) others(name string) bool {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, m := range ms.byName {
		if m.State == StateAlive && m.Name != ms.self.node && m.Name != name {
			return true
		}
	}
	return false
}

// rank tells the others whether this node is the second of two hosts that cannot be told
// apart, and logs conflicts as they come and go, until ctx ends.
func (r *ranks) rank(ctx context.Context) {
	logged := map[string]Conflict{}
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.reconsider:
		case <-again:
		}
		again = nil
		if r.confirm() {
			again = time.After(confirmInterval)
		}
		second := r.second()
		if r.g.site.setSecond(second) {
			r.g.members.setSecond(second)
			tellOfSelf(r.g.site.list.Load())
		}
		now := map[string]Conflict{}
		for _, c := range r.g.Conflicts() {
			key := c.Kind + " " + c.Name + " " + c.OtherAddress
			if now[key] = c; logged[key] == (Conflict{}) {
				r.g.log.Error("found two hosts with the same name or identity", "kind", c.Kind, "name", c.Name, "address", c.Address, "other_name", c.Other, "other_address", c.OtherAddress, "reason", c.Reason(), "fix", c.Fix())
			}
		}
		for key, c := range logged {
			if now[key] == (Conflict{}) {
				r.g.log.Info("resolved a conflict of two hosts", "kind", c.Kind, "name", c.Name, "other_name", c.Other)
			}
		}
		logged = now
	}
}

// second decides whether this node is the second of two. Where both say so, that one of
// the two is not whose process comes first by name.
func (r *ranks) second() bool {
	rivals, self := r.g.members.rivalsOfSelf(r.g.cfg.Meta.ID), r.g.site.at().instance.process
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range rivals {
		if r.byProcess[m.instance.process] && (!m.second || m.instance.process < self) {
			return true
		}
	}
	return false
}

// rivalsOfSelf are the other hosts that have this node's name or identity.
func (ms *members) rivalsOfSelf(id trust.NodeID) []Member {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	self := ms.byName[ms.self.node]
	var out []Member
	for _, r := range ms.rivals[ms.self.node] {
		if ms.confirmedLocked(r) {
			out = append(out, *r)
		}
	}
	for name, m := range ms.byName {
		if name != ms.self.node && m.State == StateAlive && m.ID == id && self != nil && m.gossip != self.gossip && ms.confirmedLocked(m) {
			out = append(out, *m)
		}
	}
	return out
}

const (
	// confirmInterval is how often an instance in doubt is asked whether it is there.
	confirmInterval = time.Second
	// confirmedAfter is when one that is still alive for memberlist counts as there although it
	// has not answered: gossip finds a dead one sooner, and a firewall may be in the way.
	confirmedAfter = 30 * time.Second
)

// confirm asks the instances that may be in a conflict whether they are there: one that was
// killed, or of which somebody sends an old packet again, is alive for memberlist for some
// seconds, and no other host. It reports whether some have not answered.
func (r *ranks) confirm() (left bool) {
	for _, m := range r.g.members.doubts() {
		if time.Since(m.Since) < confirmedAfter && r.g.ping(m) != nil {
			left = true
			continue
		}
		r.g.members.mu.Lock()
		if r.g.members.alive[m.instance] != nil {
			r.g.members.confirmed[m.instance] = true
			r.g.members.resolveName(m.Name)
		}
		r.g.members.mu.Unlock()
	}
	return left
}

// doubts are the instances that may be in a conflict and have not answered.
func (ms *members) doubts() []Member {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	var out []Member
	for i, m := range ms.alive {
		if (len(ms.rivals[i.node]) > 0 || ms.ids[m.ID] > 1) && !ms.confirmedLocked(m) {
			out = append(out, *m)
		}
	}
	return out
}

// confirmedLocked reports whether an instance has shown that it is there. mu is held.
func (ms *members) confirmedLocked(m *Member) bool {
	return m != nil && (m.instance.process == ms.self.process || ms.confirmed[m.instance])
}

// setSecond notes of this node whether it is the second.
func (ms *members) setSecond(second bool) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for i, m := range ms.alive {
		if i.process == ms.self.process {
			m.second = second
		}
	}
	ms.resolveName(ms.self.node)
}
