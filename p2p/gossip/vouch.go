package gossip

import (
	"slices"
	"time"

	"seeder/p2p/gossip/wall"
	"seeder/p2p/trust"
)

// A node that was started after another one died never hears of that from memberlist, which
// tells of members that are alive. So nodes tell each other which members they have seen
// die, with each exchange of states. Who has the secret can invent some: they are bounded
// in number, for each identity that a handshake has proved and in all, passed on to nobody,
// dialled by nobody, and gone after 72 hours, or once they are forgotten.

const (
	// maxVouched bounds the dead members that one identity vouches for, maxVouchedAll those
	// that are counted on the word of others.
	maxVouched    = 128
	maxVouchedAll = 512
	// maxForgotten bounds the names that were forgotten, which nobody brings back.
	maxForgotten = 1024
)

// away is a member that died, as another one tells of it. How long ago is said in seconds:
// clocks differ.
type away struct {
	Name    string       `json:"n"`
	Gossip  string       `json:"g"` // ip:port
	Address string       `json:"t"` // transfer address, host:port
	Version string       `json:"v"`
	ID      trust.NodeID `json:"id,omitempty"`
	Seconds int64        `json:"s"`
}

// dead lists the members that this node has seen die, the last first.
func (ms *members) dead(now time.Time) []away {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.forgetLocked(now)
	var out []away
	for _, m := range ms.byName {
		if m.State == StateDead && m.voucher == "" {
			out = append(out, away{m.Name, m.gossip, m.Address, m.Version, m.ID, int64(now.Sub(m.Since) / time.Second)})
		}
	}
	slices.SortFunc(out, func(a, b away) int { return int(a.Seconds - b.Seconds) })
	return out[:min(len(out), maxVouched)]
}

// vouched takes the members that died and those that left from what an identity says in an exchange of states.
func (g *Gossip) vouched(by trust.NodeID, user []byte) {
	s, err := decodeState(user, wall.MaxStateBytes)
	if err != nil || by == "" || by == g.cfg.Meta.ID {
		return
	}
	for _, name := range g.members.vouch(by, s.Away, time.Now()) {
		g.log.Info("a member died before this node reached it", "member", name, "told_by", s.Name)
	}
	for _, name := range g.members.learn(by, s.Left, time.Now()) {
		g.log.Info("a member left, and this node had missed its farewell", "member", name, "told_by", s.Name)
		g.roster.parted.Set()
		g.reportState(name, StateLeft, "")
	}
}

// vouch adds members that died on the word of an identity, and returns the names of those
// that are new.
func (ms *members) vouch(by trust.NodeID, list []away, now time.Time) (added []string) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	own, all := 0, 0
	there := map[string]bool{} // addresses of those that are alive
	for _, m := range ms.byName {
		if m.voucher != "" {
			all++
		}
		if m.voucher == by {
			own++
		}
		there[m.gossip] = there[m.gossip] || m.State == StateAlive
	}
	for _, a := range list {
		k := known{Name: a.Name, Gossip: a.Gossip, Address: a.Address, Version: a.Version, ID: a.ID}
		if own >= maxVouched || all >= maxVouchedAll {
			break
		}
		if _, forgotten := ms.forgotten[a.Name]; forgotten || ms.byName[a.Name] != nil || a.Name == ms.self.node || there[a.Gossip] || !k.valid() || a.Seconds < 0 || a.Seconds > int64(deadFor/time.Second) {
			continue
		}
		ms.byName[a.Name] = &Member{
			Name: a.Name, Address: a.Address, State: StateDead, Version: a.Version, ID: a.ID,
			Since: now.Add(-time.Duration(a.Seconds) * time.Second), gossip: a.Gossip, standing: standing{voucher: by},
		}
		own, all, added = own+1, all+1, append(added, a.Name)
	}
	return added
}

// forgotten are names that somebody had forgotten, until they are alive again: nobody brings
// those members back.
type forgotten map[string]time.Time

// add remembers one more.
func (fs forgotten) add(name string, now time.Time) {
	oldest := name
	for o, at := range fs {
		if now.Sub(at) > deadFor {
			delete(fs, o)
		} else if first, ok := fs[oldest]; !ok || at.Before(first) {
			oldest = o
		}
	}
	if len(fs) >= maxForgotten {
		delete(fs, oldest)
	}
	fs[name] = now
}
