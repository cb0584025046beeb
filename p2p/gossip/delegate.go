package gossip

import (
	"bytes"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"seeder/p2p/trust"
)

// delegate is Gossip as memberlist calls it. Event callbacks run under
// memberlist's node lock, NotifyMsg in its one packet handler: none of them may
// block or call memberlist.
type delegate Gossip

var (
	_ memberlist.Delegate         = (*delegate)(nil)
	_ memberlist.EventDelegate    = (*delegate)(nil)
	_ memberlist.ConflictDelegate = (*delegate)(nil)
)

// NodeMeta implements memberlist.Delegate.
func (d *delegate) NodeMeta(int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, err := d.meta.encode()
	if err != nil {
		return nil // config has checked it; only a longer version could do this
	}
	return b
}

// NotifyMsg implements memberlist.Delegate. msg is used again after the call.
func (d *delegate) NotifyMsg(msg []byte) {
	if len(msg) > 0 && msg[0] == summaryKind {
		d.summary(msg[1:])
		return
	}
	if len(msg) > 0 && msg[0] == probeKind {
		d.arrivals.note(msg)
		return
	}
	if len(msg) > 0 && msg[0] == forgetKind {
		d.forget(msg)
		return
	}
	h, err := decodeHint(msg)
	if err != nil {
		d.log.Debug("hint dropped", "err", err)
		return
	}
	(*Gossip)(d).offer(event{hint: &h})
}

// forget drops a member that somebody wants forgotten, unless it is alive, and passes
// the message on where that changed anything.
func (d *delegate) forget(msg []byte) {
	name, err := decodeForget(msg)
	if err != nil {
		d.log.Debug("message dropped", "err", err)
		return
	}
	if err := d.members.forget(name); err != nil {
		d.log.Debug("a member is not forgotten", "err", err)
		return
	}
	d.log.Info("member forgotten", "member", name)
	d.queue.QueueBroadcast(&broadcast{name: "forget " + name, msg: slices.Clone(msg)})
}

// GetBroadcasts implements memberlist.Delegate.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.queue.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate.
func (d *delegate) LocalState(bool) []byte {
	return (*Gossip)(d).state()
}

// MergeRemoteState implements memberlist.Delegate.
func (d *delegate) MergeRemoteState(buf []byte, _ bool) { d.summary(buf) }

// summary hands over a member's catalog summary where it is other than ours.
func (d *delegate) summary(buf []byte) {
	s, err := decodeState(buf)
	if err != nil {
		d.log.Debug("catalog summary dropped", "err", err)
		return
	}
	if s.Hash != d.catalogHash.Load() && s.Name != d.cfg.NodeName {
		(*Gossip)(d).offer(event{name: s.Name, hash: s.Hash})
	}
}

// NotifyJoin implements memberlist.EventDelegate.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.seen(n) }

// NotifyUpdate implements memberlist.EventDelegate.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.seen(n) }

func (d *delegate) seen(n *memberlist.Node) {
	if !validName(n.Name) {
		return
	}
	m, err := decodeMeta(n.Meta)
	reason := d.cfg.Meta.protocols().foreign(n.Meta)
	if reason == "" && err != nil {
		reason = "says something that this node cannot read: " + err.Error()
	}
	before := d.members.seen(n, m, reason)
	if before.State != StateAlive && n.Name != d.cfg.NodeName {
		switch before.State {
		case StateDead:
			d.log.Info("member back", "member", n.Name, "address", n.Address(), "away", time.Since(before.Since).Round(time.Second))
		default:
			d.log.Info("member joined", "member", n.Name, "address", n.Address(), "version", m.Version)
		}
		d.tell(n.Name, StateAlive, reason)
	}
	if reason != "" && before.Reason != reason {
		d.log.Warn("cannot talk to a member", "member", n.Name, "address", n.Address(), "version", m.Version, "reason", reason)
	}
	if before.ID != "" && m.ID != "" && before.ID != m.ID {
		d.log.Warn("a member has a new identity under its old name: its data_dir was replaced, or another host took the name", "member", n.Name, "before", before.ID, "id", m.ID)
	}
}

// NotifyLeave implements memberlist.EventDelegate.
func (d *delegate) NotifyLeave(n *memberlist.Node) {
	if state := d.members.gone(n.Name); state != "" {
		if state == StateDead {
			d.log.Warn("member lost: no answer to gossip", "member", n.Name, "address", n.Address())
		} else {
			d.log.Info("member left", "member", n.Name, "address", n.Address())
		}
		d.tell(n.Name, state, "")
	}
}

func (d *delegate) tell(name, state, reason string) {
	if d.cfg.OnMember != nil {
		d.cfg.OnMember(name, state, reason)
	}
}

// NotifyConflict implements memberlist.ConflictDelegate.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.log.Error("two hosts have the same node name; give each its own node_name", "node_name", strconv.Quote(existing.Name),
		"address", existing.Address(), "other_address", other.Address())
}

// members is every member seen, safe for concurrent use. Its lock is held for a
// map access only, since memberlist holds its own around it.
type members struct {
	self string

	mu     sync.Mutex
	byName map[string]*Member
	left   map[string]bool            // said that they were leaving
	proved map[trust.NodeID]time.Time // identities that are no member's yet
}

const (
	// deadFor is how long a member that died counts as one of the cluster; leftFor is
	// how long one that left is shown.
	deadFor = 72 * time.Hour
	leftFor = 24 * time.Hour
	// maxGone bounds how many are kept.
	maxGone = 4096
)

func newMembers(self string) *members {
	return &members{self: self, byName: map[string]*Member{}, left: map[string]bool{}, proved: map[trust.NodeID]time.Time{}}
}

// seen books an alive member, with the reason why this node cannot talk to it, and
// returns what was known of it before. An id stays known while the member says
// nothing that can be read.
func (ms *members) seen(n *memberlist.Node, meta Meta, reason string) (before Member) {
	addr := meta.TransferAddress
	if host, port, err := net.SplitHostPort(addr); err == nil && host == "" {
		addr = net.JoinHostPort(n.Addr.String(), port)
	}
	m := &Member{
		Name: n.Name, Address: addr, State: StateAlive, Reason: reason, Version: meta.Version, ID: meta.ID,
		gossip: n.Address(), Since: time.Now(),
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if old := ms.byName[n.Name]; old != nil {
		before = *old
	}
	if m.ID == "" {
		m.ID = before.ID
	}
	if before.State == StateAlive {
		m.Since = before.Since
	}
	if m.ID == before.ID {
		m.contact = before.contact
	}
	if before.State != StateAlive || before.gossip != m.gossip {
		m.contact.reached, m.contact.tries = false, 0
	}
	if _, ok := ms.proved[m.ID]; ok && m.ID != "" {
		m.contact.proved = true
		delete(ms.proved, m.ID)
	}
	for name, o := range ms.byName { // the host has another name now
		if o.State == StateDead && o.gossip == m.gossip && name != n.Name {
			delete(ms.byName, name)
		}
	}
	ms.byName[n.Name] = m
	if meta.Leaving {
		ms.left[n.Name] = true
	} else {
		delete(ms.left, n.Name)
	}
	return before
}

// gone books the end of a member and returns its new state, empty where none is
// known by that name.
func (ms *members) gone(name string) (state string) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.byName[name]
	if m == nil || name == ms.self {
		return ""
	}
	if !m.contact.known() && !ms.left[name] {
		delete(ms.byName, name) // nothing shows that it was ever there
		return ""
	}
	m.State, m.Since = StateDead, time.Now()
	if ms.left[name] {
		m.State = StateLeft
		delete(ms.left, name)
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

func (ms *members) list() []Member {
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

// alive counts alive members, this node among them; at least 1.
func (ms *members) alive() int {
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

// broadcast is a message that a newer one of the same name replaces.
type broadcast struct {
	name string
	msg  []byte
}

var _ memberlist.NamedBroadcast = (*broadcast)(nil)

// Name implements memberlist.NamedBroadcast.
func (b *broadcast) Name() string { return b.name }

// Invalidates implements memberlist.Broadcast.
func (b *broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(*broadcast)
	return ok && o.name == b.name && !bytes.Equal(o.msg, b.msg)
}

// Message implements memberlist.Broadcast.
func (b *broadcast) Message() []byte { return b.msg }

// Finished implements memberlist.Broadcast.
func (b *broadcast) Finished() {}
