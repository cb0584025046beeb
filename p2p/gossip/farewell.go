package gossip

import (
	"net/netip"
	"slices"
	"time"

	"seeder/p2p/trust"
)

// A farewell is the metadata in which a node says that it leaves. Who misses it takes the
// node for dead. So nodes tell each other, with each exchange of states, who said farewell
// to them. The metadata is signed by the node that leaves, for its instance and address, and
// counts only for that process: nobody can make a farewell of another node, and that of an
// earlier run means nothing. Nodes that were not known stay unknown.

// maxFarewells bounds the farewells that a node tells, takes from one exchange and saves.
// With metadata of 512 bytes each they still fit into wall.MaxStateBytes.
const maxFarewells = 64

// farewell is the farewell of a member, as another one tells of it. How long ago is said in
// seconds: clocks differ.
type farewell struct {
	Instance string `json:"i"`
	Gossip   string `json:"g"` // ip:port
	Meta     []byte `json:"m"` // with the proof
	Seconds  int64  `json:"s"`
}

// farewells lists those of the members that left, the last first.
func (ms *members) farewells(now time.Time) []farewell {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.forgetLocked(now)
	var out []farewell
	for _, m := range ms.byName {
		if m.State == StateLeft && m.told != "" && m.genuine() {
			out = append(out, farewell{m.instance.String(), m.gossip, []byte(m.told), int64(now.Sub(m.Since) / time.Second)})
		}
	}
	slices.SortFunc(out, func(a, b farewell) int { return int(a.Seconds - b.Seconds) })
	return out[:min(len(out), maxFarewells)]
}

// learn takes farewells that an identity tells of, and returns the names of the members that
// count as left by them and were dead before.
func (ms *members) learn(by trust.NodeID, list []farewell, now time.Time) (left []string) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, f := range list[:min(len(list), maxFarewells)] {
		i, err := parseInstance(f.Instance)
		if err != nil || i.process == ms.self.process || f.Seconds < 0 || f.Seconds > int64(leftFor/time.Second) {
			continue
		}
		switch m := ms.byName[i.node]; {
		case ms.alive[i] != nil:
			ms.leaveLocked(i, f)
		case m == nil || m.State != StateDead:
		case m.voucher == by:
			delete(ms.byName, i.node) // it was dead on the word of who says now that it left
		// One that is dead on others' word has no instance. One that died here may have been
		// started again, and have left, while this node was away.
		case m.instance.process == i.process && m.instance.moved <= i.moved, i.startedAfter(m.instance):
			if at, ok := f.verify(i, m.ID); ok {
				m.State, m.Since, m.leaving = StateLeft, now.Add(-time.Duration(f.Seconds)*time.Second), true
				m.instance, m.gossip, m.told, m.proven = i, at.String(), string(f.Meta), genuine
				left = append(left, i.node)
			}
		}
	}
	return left
}

// leaveLocked notes of an instance that is alive that it said farewell: memberlist is about
// to find out that it is gone. mu is held.
func (ms *members) leaveLocked(i instance, f farewell) {
	m := ms.alive[i]
	if m.leaving || m.gossip != f.Gossip {
		return
	}
	if _, ok := f.verify(i, m.ID); ok {
		m.leaving, m.told, m.proven = true, string(f.Meta), genuine
		ms.resolveName(i.node)
	}
}

// verify reports whether f is the farewell of an instance with this identity, and where the
// instance was.
func (f farewell) verify(i instance, id trust.NodeID) (at netip.AddrPort, ok bool) {
	at, err := netip.ParseAddrPort(f.Gossip)
	if err != nil || at.Addr().Zone() != "" {
		return at, false
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	meta, err := decodeMeta(f.Meta)
	return at, err == nil && meta.Leaving && meta.ID == id && verifyMeta(f.Meta, i.String(), at)
}
