package gossip

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"seeder/p2p/trust"
)

// members is every member seen, safe for concurrent use. Its lock is held for a few map
// accesses only, since memberlist holds its own around it.
//
// Of the instances that memberlist has alive each node name belongs to one: of one process
// the newest, and of several processes at one address the one that came last, since the
// others were ended there. Instances of a name that are left are other hosts, which have
// the name, too: rivals. The one that was seen first keeps the name, unless it says itself
// that it came second. An instance takes the place of another one only where the same
// identity signed both, or where it has answered at the address that both have.
type members struct {
	self instance // this process; its count does not matter

	mu        sync.Mutex
	byName    map[string]*Member
	alive     map[instance]*Member
	rivals    map[string][]*Member       // by node name
	ids       map[trust.NodeID]int       // of instances that are alive
	confirmed map[instance]bool          // that have answered by their own name; see doubts
	contacts  map[instance]contact       // of instances that are alive
	proved    map[trust.NodeID]time.Time // identities that are no member's yet
	forgotten forgotten
	count     int       // of instances ever seen
	wasted    time.Time // when an instance that was never reached was found dead last
}

const (
	// deadFor is how long a member that died counts as one of the cluster; leftFor is
	// how long one that left is shown.
	deadFor = 72 * time.Hour
	leftFor = 24 * time.Hour
	// maxGone bounds how many are kept.
	maxGone = 4096
)

func newMembers(self instance) *members {
	return &members{self: self, byName: map[string]*Member{}, alive: map[instance]*Member{}, rivals: map[string][]*Member{}, ids: map[trust.NodeID]int{}, confirmed: map[instance]bool{},
		contacts: map[instance]contact{}, proved: map[trust.NodeID]time.Time{}, forgotten: forgotten{}}
}

// seen books an instance that is alive, and returns what was known of the node by its name
// and what is now; they differ where another instance has the name. An id stays known
// while the member says nothing that can be read.
func (ms *members) seen(m *Member) (before, after Member) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if old := ms.byName[m.Name]; old != nil {
		before = *old
	}
	if m.ID == "" {
		m.ID = before.ID
	}
	m.Since = time.Now()
	if old := ms.alive[m.instance]; old != nil {
		m.order, m.Since = old.order, old.Since
	} else {
		m.order = ms.count
		ms.count++
	}
	delete(ms.forgotten, m.Name)
	for name, o := range ms.byName { // the host has another name now
		if o.State == StateDead && o.gossip == m.gossip && name != m.Name {
			delete(ms.byName, name)
		}
	}
	confirmed, known, met := ms.confirmed[m.instance], ms.contacts[before.instance], ms.contacts[m.instance]
	if before.ID == m.ID && (known.proved || before.contact.proved) && m.genuine() {
		met.proved = true
	}
	if _, ok := ms.proved[m.ID]; ok && m.ID != "" {
		met.proved = true
		delete(ms.proved, m.ID)
	}
	ms.drop(m.instance)
	if confirmed {
		ms.confirmed[m.instance] = true
	}
	ms.contacts[m.instance] = met
	ms.alive[m.instance] = m
	ms.ids[m.ID]++
	ms.resolveName(m.Name)
	return before, *ms.byName[m.Name]
}

// drop takes an instance out. mu is held.
func (ms *members) drop(i instance) {
	m := ms.alive[i]
	if m == nil {
		return
	}
	delete(ms.alive, i)
	delete(ms.confirmed, i)
	delete(ms.contacts, i)
	if ms.ids[m.ID]--; ms.ids[m.ID] == 0 {
		delete(ms.ids, m.ID)
	}
}

// doubtful reports whether an instance may be in a conflict: whether another one has its
// name or its identity.
func (ms *members) doubtful(i instance) bool {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.alive[i]
	return len(ms.rivals[i.node]) > 0 || m != nil && ms.ids[m.ID] > 1
}

// resolveName decides to which instance a name belongs, and reports whether there
// is one. mu is held.
func (ms *members) resolveName(name string) bool {
	var of []*Member
	for i, m := range ms.alive {
		if i.node == name {
			of = append(of, m)
		}
	}
	of = onlyGenuine(of)
	slices.SortFunc(of, func(a, b *Member) int { return a.order - b.order })
	candidates := slices.DeleteFunc(slices.Clone(of), func(m *Member) bool {
		return slices.ContainsFunc(of, func(o *Member) bool {
			return o.replaces(m, ms.contacts[o.instance].reached || ms.confirmed[o.instance])
		})
	})
	delete(ms.rivals, name)
	if len(candidates) == 0 {
		return false
	}
	holder := ms.byName[name]
	slices.SortStableFunc(candidates, func(a, b *Member) int {
		return cmp.Or(compare(b.instance.process == ms.self.process, a.instance.process == ms.self.process),
			compare(a.second, b.second),
			compare(b.owns(holder), a.owns(holder)),
			compare(b.continues(holder), a.continues(holder)))
	})
	winner := *candidates[0]
	if holder != nil && holder.State == StateAlive {
		winner.Since = holder.Since
	}
	winner.owner = ownerAfter(holder, &winner, ms.contacts[winner.instance].proved, time.Now())
	ms.byName[name] = &winner
	if len(candidates) > 1 {
		ms.rivals[name] = candidates[1:]
	}
	return true
}

// replaces reports whether m stands for the same host as o, at a later time. Of several
// processes at one address the last is the one that is there; one with another identity has
// to answer first.
func (m *Member) replaces(o *Member, answered bool) bool {
	same := m.ID == o.ID
	if m.instance.process == o.instance.process {
		return m.instance.moved > o.instance.moved && same
	}
	return m.gossip == o.gossip && m.order > o.order && (same || answered)
}

// owner is the identity that a handshake has proved of a member: while it is there, or was
// not long ago, a rival with another one does not keep the name.
type owner struct {
	id   trust.NodeID
	seen time.Time
}

// ownerFor is how long after it was seen last the owner of a name gets it back.
const ownerFor = 10 * time.Minute

// owns reports whether m has the identity that owns the name of holder.
func (m *Member) owns(holder *Member) bool {
	return holder != nil && m.ID != "" && m.ID == holder.owner.id
}

// ownerAfter is the owner of a name that goes from holder to winner, whose identity a
// handshake has proved, or not.
func ownerAfter(holder, winner *Member, proved bool, now time.Time) owner {
	var before owner
	if holder != nil {
		before = holder.owner
	}
	switch {
	case winner.owns(holder):
		return owner{winner.ID, now}
	case proved && (before.id == "" || now.Sub(before.seen) > ownerFor):
		return owner{winner.ID, now}
	}
	return before
}

// continues reports whether m is the member that was known as holder.
func (m *Member) continues(holder *Member) bool {
	return holder != nil && (m.instance.process == holder.instance.process || m.ID != "" && m.ID == holder.ID && m.gossip == holder.gossip)
}

// compare orders false before true.
func compare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// gone books the end of an instance, and returns the new state of the node, empty where
// another instance has its name, or none is known by that name.
func (ms *members) gone(i instance) (state string) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	met := ms.contacts[i]
	if !met.known() {
		ms.wasted = time.Now()
	}
	m := ms.byName[i.node]
	if last := ms.alive[i]; last != nil && last.owns(m) {
		m.owner.seen = time.Now()
	}
	ms.drop(i)
	if ms.resolveName(i.node) || m == nil || m.State != StateAlive || i.process == ms.self.process {
		return ""
	}
	if !met.known() && !m.leaving {
		delete(ms.byName, i.node) // nothing shows that it was ever there
		return ""
	}
	m.contact = met
	m.State, m.Since = StateDead, time.Now()
	if m.leaving {
		m.State = StateLeft
	}
	ms.forgetLocked(time.Now())
	return m.State
}

// forgetLocked drops members that are gone for long, and the oldest of too many.
func (ms *members) forgetLocked(now time.Time) {
	var gone []*Member
	for name, m := range ms.byName {
		if m.State == StateAlive {
			continue
		}
		if keep := map[string]time.Duration{StateDead: deadFor, StateLeft: leftFor}[m.State]; now.Sub(m.Since) > keep {
			delete(ms.byName, name)
			continue
		}
		gone = append(gone, m)
	}
	if len(gone) <= maxGone {
		return
	}
	slices.SortFunc(gone, func(a, b *Member) int { return a.Since.Compare(b.Since) })
	for _, m := range gone[:len(gone)-maxGone] {
		delete(ms.byName, m.Name)
	}
}

// named is every member that has its name, without the rivals: what list calls those is
// no name, under which nobody would ever be heard of again.
func (ms *members) named() []Member {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.forgetLocked(time.Now())
	out := make([]Member, 0, len(ms.byName))
	for _, m := range ms.byName {
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// list is every member by name. A rival is called by its name and its address, and a
// member that another one excludes has the reason.
func (ms *members) list() []Member {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.forgetLocked(time.Now())
	out := make([]Member, 0, len(ms.byName))
	for _, m := range ms.byName {
		out = append(out, m.as(ms.contacts))
	}
	for name, rivals := range ms.rivals {
		for _, r := range rivals {
			if !ms.confirmedLocked(r) {
				continue
			}
			m := r.as(ms.contacts)
			m.Name = fmt.Sprintf("%s (%s)", name, m.gossip)
			out = append(out, m)
		}
	}
	for _, c := range ms.conflictsLocked() {
		for i := range out {
			if out[i].instance == c.second && out[i].Reason == "" {
				out[i].Reason, out[i].Fix = c.Reason(), c.Fix()
			}
		}
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// as is a copy of m with what this node knows of it now.
func (m *Member) as(contacts map[instance]contact) Member {
	out := *m
	if c, ok := contacts[m.instance]; ok {
		out.contact = c
	}
	return out
}

// byInstance is the member that memberlist knows by a name.
func (ms *members) byInstance(name string) (Member, error) {
	i, err := parseInstance(name)
	if err != nil {
		return Member{}, err
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m := ms.alive[i]; m != nil {
		return *m, nil
	}
	return Member{}, fmt.Errorf("unknown member %q", name)
}

// aliveCount counts alive members, this node among them; at least 1.
func (ms *members) aliveCount() int {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	n := 0
	for _, m := range ms.byName {
		if m.State == StateAlive {
			n++
		}
	}
	return max(n, 1)
}

// instances are all that are alive.
func (ms *members) instances() []instance {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	var out []instance
	for i := range ms.alive {
		out = append(out, i)
	}
	return out
}
