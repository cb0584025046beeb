package gossip

import (
	"bytes"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"seeder/p2p/gossip/wall"
)

// delegate is Gossip as the memberlist of one instance calls it. Event callbacks run under
// memberlist's node lock, NotifyMsg in its one packet handler: none of them may block or
// call memberlist. What comes from the memberlist of an earlier instance counts for
// nothing: its timers outlive it.
type delegate struct {
	*Gossip
	of        instance
	transport *wall.Transport
}

// gate lets memberlist's callbacks through until this node is closed: then nobody is there
// to be told any more.
type gate struct {
	mu    sync.RWMutex
	ended bool
}

// during runs what a callback does.
func (d *delegate) during(f func()) {
	d.gate.mu.RLock()
	defer d.gate.mu.RUnlock()
	if !d.gate.ended {
		f()
	}
}

// close waits for the callbacks that run.
func (ga *gate) close() {
	ga.mu.Lock()
	defer ga.mu.Unlock()
	ga.ended = true
}

// current reports whether the instance is the one that runs.
func (d *delegate) current() bool { return d.site.at().instance == d.of }

var (
	_ memberlist.Delegate         = (*delegate)(nil)
	_ memberlist.EventDelegate    = (*delegate)(nil)
	_ memberlist.ConflictDelegate = (*delegate)(nil)
)

// NodeMeta implements memberlist.Delegate.
func (d *delegate) NodeMeta(int) []byte {
	meta, at := d.site.said(), d.transport.Advertised()
	sign := d.cfg.Identity != nil && at != nil
	if sign {
		meta.ID = "" // follows from the key of the proof
	}
	b, err := meta.encode()
	if err != nil {
		return nil // config has checked it; only a longer version could do this
	}
	if sign {
		b = signMeta(b, d.of, *at, d.cfg.Identity)
	}
	return b
}

// NotifyMsg implements memberlist.Delegate. msg is used again after the call.
func (d *delegate) NotifyMsg(msg []byte) { d.during(func() { d.message(msg) }) }

// message takes one of the messages that are seeder's own.
func (d *delegate) message(msg []byte) {
	if len(msg) > 0 && msg[0] == summaryKind {
		d.summary(msg[1:], wall.MaxMetaBytes)
		return
	}
	if len(msg) > 0 && msg[0] == probeKind {
		d.arrivals.record(msg)
		return
	}
	if len(msg) > 0 && msg[0] == forgetKind {
		d.forget(msg)
		return
	}
	h, err := decodeHint(msg)
	if err != nil {
		d.log.Debug("dropped a hint", "err", err)
		return
	}
	d.Gossip.news.offer(event{hint: &h})
}

// forget drops a member that somebody wants forgotten, unless it is alive, and passes
// the message on where that changed anything.
func (d *delegate) forget(msg []byte) {
	name, err := decodeForget(msg)
	if err != nil {
		d.log.Debug("dropped a message", "err", err)
		return
	}
	if err := d.members.forget(name); err != nil {
		d.log.Debug("kept a member that another node forgot", "err", err)
		return
	}
	d.log.Info("removed a dead member", "member", name)
	d.news.queue.QueueBroadcast(&broadcast{name: "forget " + name, msg: slices.Clone(msg)})
}

// GetBroadcasts implements memberlist.Delegate.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.news.queue.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate.
func (d *delegate) LocalState(bool) []byte {
	return d.news.exchanged()
}

// MergeRemoteState implements memberlist.Delegate.
func (d *delegate) MergeRemoteState(buf []byte, _ bool) {
	d.during(func() { d.summary(buf, wall.MaxStateBytes) })
}

// summary hands over a member's catalog summary where it is other than ours.
func (d *delegate) summary(buf []byte, limit int) {
	s, err := decodeState(buf, limit)
	if err != nil {
		d.log.Debug("dropped a catalog summary", "err", err)
		return
	}
	if s.Hash != d.news.catalogHash.Load() && s.Name != d.cfg.NodeName {
		d.Gossip.news.offer(event{name: s.Name, hash: s.Hash})
	}
}

// NotifyJoin implements memberlist.EventDelegate.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.during(func() { d.seen(n) }) }

// NotifyUpdate implements memberlist.EventDelegate.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.during(func() { d.seen(n) }) }

func (d *delegate) seen(n *memberlist.Node) {
	i, err := parseInstance(n.Name)
	if err != nil || !d.current() {
		return
	}
	m, err := decodeMeta(n.Meta)
	reason, fix := d.cfg.Meta.protocols().foreign(n.Meta), ""
	if reason == "" && err != nil {
		reason = "says something that this node cannot read: " + err.Error()
	}
	self := i.process == d.of.process
	if reason == "" && !self {
		if reason = undialable(n, d.site.at()); reason != "" {
			fix = setAddress
		}
	}
	before, after := d.members.seen(memberOf(n, i, m, reason, fix))
	if !self {
		d.rival(i, m)
	}
	if d.members.doubtful(i) {
		d.ranks.reconsider.Set()
	}
	if self && before.Address != "" && before.gossip != after.gossip {
		d.news.offer(event{name: i.node, from: before.Address})
	}
	if after.instance != i || i.node == d.cfg.NodeName {
		return // another host, or an earlier instance, which changes nothing
	}
	switch {
	case before.State == StateAlive && before.gossip != after.gossip:
		d.log.Info("member moved to another address", "member", i.node, "address", after.gossip, "before", before.gossip)
		d.news.offer(event{name: i.node, from: before.Address})
	case before.State == StateDead:
		d.log.Info("member back", "member", i.node, "address", after.gossip, "away", time.Since(before.Since).Round(time.Second))
		d.reportState(i.node, StateAlive, reason)
	case before.State != StateAlive:
		d.log.Info("member joined", "member", i.node, "address", after.gossip, "version", m.Version)
		d.reportState(i.node, StateAlive, reason)
	}
	if reason != "" && before.Reason != reason {
		d.log.Warn("excluded a member", "member", i.node, "address", after.gossip, "version", m.Version, "reason", reason)
	}
	if before.ID != "" && m.ID != "" && before.ID != m.ID {
		d.log.Warn("a member has a new identity under its old name: its data_dir was replaced, or another host took the name", "member", i.node, "before", before.ID, "id", m.ID)
	}
}

// memberOf is what memberlist and its metadata say of an instance.
func memberOf(n *memberlist.Node, i instance, meta Meta, reason, fix string) *Member {
	addr := meta.TransferAddress
	if host, port, err := net.SplitHostPort(addr); err == nil && host == "" {
		addr = net.JoinHostPort(n.Addr.String(), port)
	}
	protocols, _ := spoken(n.Meta)
	return &Member{
		Protocols: protocols,
		Name:      i.node, Address: addr, State: StateAlive, Reason: reason, Fix: fix, Version: meta.Version, ID: meta.ID,
		gossip: n.Address(), instance: i, word: word{told: string(n.Meta), leaving: meta.Leaving, second: meta.Second},
	}
}

// NotifyLeave implements memberlist.EventDelegate.
func (d *delegate) NotifyLeave(n *memberlist.Node) {
	d.during(func() {
		if i, err := parseInstance(n.Name); err == nil && d.current() {
			d.gone(i)
		}
	})
}

// gone books the end of an instance.
func (g *Gossip) gone(i instance) {
	last, err := g.members.byInstance(i.String())
	state := g.members.gone(i)
	g.ranks.reconsider.Set()
	switch {
	case err != nil || state == "":
		return
	case state == StateDead:
		g.log.Warn("member lost: no answer to gossip", "member", i.node, "address", last.gossip)
	default:
		g.log.Info("member left", "member", i.node, "address", last.gossip)
		g.roster.parted.Set()
	}
	g.reportState(i.node, state, "")
}

func (g *Gossip) reportState(name, state, reason string) {
	if g.cfg.OnMember != nil {
		g.cfg.OnMember(name, state, reason)
	}
}

// NotifyConflict implements memberlist.ConflictDelegate. The name of an instance is made by
// chance, so that two addresses of one are those of a member that lies, or has a copy of
// another one's memory.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.during(func() { d.conflict(existing, other) })
}

func (d *delegate) conflict(existing, other *memberlist.Node) {
	d.log.Debug("two addresses of one instance", "instance", existing.Name, "address", existing.Address(), "other_address", other.Address())
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
