package gossip

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"seeder/internal/wait"
	"seeder/p2p/trust"
)

// Anyone who has the secret can say that any number of members exist. They are bounded,
// pinged until they answer or are suspected, and come after those whose identity a
// handshake has proved, so that they cannot keep news from honest ones.

const (
	// maxUnproved bounds the alive members that nobody has reached from here, and
	// maxAlive all that are alive.
	maxUnproved = 2048
	maxAlive    = 8192
	// maxNamesakes bounds the alive instances of one name: one that was killed and started
	// again is there twice until the first is found dead.
	maxNamesakes = 16
	// maxProved bounds the identities that a handshake has proved before gossip told
	// whose they are.
	maxProved = 1024
	// reachInterval is how often members that were never reached are pinged, and
	// maxReached how many at a time: 2,048 are through in two minutes.
	reachInterval = time.Second
	maxReached    = 32
	// reachAgain is after how long one is pinged again, reachTries how often it must
	// not have answered to be suspected.
	reachAgain = 10 * time.Second
	reachTries = 2
	// maxDirect is how many proved members a hint is sent to besides where gossip
	// spreads it, while many members were never reached, or have just been found dead.
	maxDirect = 8
	// gossipToTheDead is how long memberlist gossips to a node that died.
	gossipToTheDead = 30 * time.Second
)

// contact is what this node knows of a member from its own dealings with it.
type contact struct {
	proved  bool // a handshake has proved its identity
	reached bool // it has answered a packet
	tries   int  // pings without an answer
	tried   time.Time
}

// known reports whether the member is there as far as this node can tell.
func (c contact) known() bool { return c.proved || c.reached }

var _ memberlist.AliveDelegate = (*delegate)(nil)

var (
	errNotItself = errors.New("it is not signed by the node that it is about, and would take its place")
	errTooMany   = errors.New("there are too many members that were never reached")
)

// NotifyAlive implements memberlist.AliveDelegate.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	i, err := parseInstance(n.Name)
	if err != nil {
		return err
	}
	if i == d.of {
		return nil // memberlist objects to what others say of this node
	}
	return d.members.admit(n, i, claimedID(n.Meta))
}

// admit says why what is told of an instance is not taken, nil where it is.
func (ms *members) admit(n *memberlist.Node, i instance, id trust.NodeID) error {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.atStakeLocked(n, i, id) && !verifyMeta(n.Meta, n.Name, addressOf(n)) {
		return errNotItself
	}
	if ms.alive[i] != nil || i.process == ms.self.process {
		return nil
	}
	unproved, namesakes := 0, 0
	for o := range ms.alive {
		if !ms.contacts[o].known() && o.process != ms.self.process {
			unproved++
		}
		if o.node == i.node {
			namesakes++
		}
	}
	_, proved := ms.proved[id]
	if m := ms.byName[i.node]; m != nil && m.contact.known() && m.ID == id {
		proved = true // it was there before
	}
	if len(ms.alive) >= maxAlive || namesakes >= maxNamesakes || !proved && unproved >= maxUnproved {
		return errTooMany
	}
	return nil
}

// Proved notes that a handshake has proved an identity.
func (g *Gossip) Proved(id trust.NodeID) { g.members.prove(id, time.Now()) }

func (ms *members) prove(id trust.NodeID, now time.Time) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if id == "" {
		return
	}
	if ms.ids[id] > 0 {
		var of []*Member
		for _, m := range ms.alive {
			if m.ID == id {
				of = append(of, m)
			}
		}
		of = onlyGenuine(of) // what others say of the identity proves nothing
		first := slices.MinFunc(of, func(a, b *Member) int { return a.order - b.order })
		c := ms.contacts[first.instance]
		c.proved = true
		ms.contacts[first.instance] = c
		if m := ms.byName[first.Name]; m.instance == first.instance && m.owner.id == "" {
			m.owner = owner{id: id, seen: now}
		}
		return
	}
	if _, ok := ms.proved[id]; !ok && len(ms.proved) >= maxProved {
		oldest := id
		for o, at := range ms.proved {
			if first, ok := ms.proved[oldest]; !ok || at.Before(first) {
				oldest = o
			}
		}
		delete(ms.proved, oldest)
	}
	ms.proved[id] = now
}

// answered books the answer to a ping, or that none came, and reports whether the
// instance is to be suspected.
func (ms *members) answered(i instance, ok bool) (suspect bool) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.alive[i] == nil {
		return false
	}
	c := ms.contacts[i]
	if ok {
		c.reached, c.tries = true, 0
	} else {
		c.tries++
	}
	ms.contacts[i] = c
	if ok {
		ms.resolveName(i.node)
	}
	return !ok && !c.known() && c.tries >= reachTries
}

// toReach picks alive instances that are to be pinged now.
func (ms *members) toReach(now time.Time) []Member {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	var out []Member
	for i, m := range ms.alive {
		c := ms.contacts[i]
		if i.process == ms.self.process || c.known() || now.Sub(c.tried) < reachAgain {
			continue
		}
		c.tried = now
		ms.contacts[i] = c
		if out = append(out, *m); len(out) == maxReached {
			break
		}
	}
	return out
}

// neverReached counts alive instances that this node has never reached.
func (ms *members) neverReached() int {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	n := 0
	for i := range ms.alive {
		if i.process != ms.self.process && !ms.contacts[i].known() {
			n++
		}
	}
	return n
}

// crowded reports whether most of those that memberlist chooses may not be there: while
// many were never reached, and for as long after they were found dead as it gossips to them.
func crowded(ms *members, now time.Time) bool {
	many := ms.neverReached() >= maxDirect
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return many || now.Sub(ms.wasted) <= gossipToTheDead
}

// NeverReached counts the alive members that have answered this node nothing yet.
func (g *Gossip) NeverReached() int { return g.members.neverReached() }

// reach pings members that were never reached, and suspects those that do not answer,
// as memberlist does of one member a second.
func (g *Gossip) reach(ctx context.Context) {
	for wait.For(ctx, jitter(reachInterval)) {
		var wg sync.WaitGroup
		for _, m := range g.members.toReach(time.Now()) {
			wg.Go(func() {
				if g.members.answered(m.instance, g.ping(m) == nil) {
					g.suspect(m.instance)
				}
			})
		}
		wg.Wait()
	}
}

// suspect tells memberlist that this node suspects a member. One that is there hears of
// it and objects.
func (g *Gossip) suspect(i instance) {
	g.site.transport.Load().Suspect(i.String(), g.site.at().instance.String())
}

// ProofFirst sorts members whose identity a handshake has proved first, then those that
// have answered, and leaves the order otherwise.
func ProofFirst(list []Member) []Member {
	rank := func(m Member) int {
		switch {
		case m.contact.proved:
			return 0
		case m.contact.reached:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(list, func(a, b Member) int { return rank(a) - rank(b) })
	return list
}

// Proved reports whether a handshake has proved the member's identity to this node.
func (m Member) Proved() bool { return m.contact.proved }

// Reached reports whether the member has ever answered this node.
func (m Member) Reached() bool { return m.contact.known() }
