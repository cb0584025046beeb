package swarm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"seeder/store/chunk"
)

// search is when it began, when the finder is asked next, and how often it was.
type search struct {
	begun  time.Time
	next   time.Time
	asking bool
	asked  int // questions answered
	dry    int // of them, those since there was a useful neighbour
}

// find asks the finder when it is time, one question at once.
func (e *engine) find(now time.Time) (wake time.Time) {
	if e.search.asking {
		return time.Time{}
	}
	if now.Before(e.search.next) {
		return e.search.next
	}
	e.search.asking = true
	e.workers.start(func() {
		peers, err := e.cfg.Finder.Peers(e.workers.ctx, e.cfg.Seed, false)
		e.workers.send(e.workers.ctx, found{peers: peers, err: err})
	})
	return time.Time{}
}

// found: the finder has answered.
type found struct {
	peers []Peer
	err   error
}

func (ev found) apply(e *engine, now time.Time) {
	e.search.asking = false
	useful := slices.ContainsFunc(e.peers.neighbours, e.isUseful)
	e.search.next = now.Add(finding(e.search.asked, e.search.dry, len(e.peers.neighbours), useful))
	e.search.asked++
	e.search.dry++
	if useful {
		e.search.dry = 0
	}
	if ev.err != nil {
		e.log.Debug("failed to find peers", "err", ev.err)
		e.status.lastError = "find peers: " + ev.err.Error()
	}
	for _, p := range ev.peers {
		k := e.peers.known[p.Name]
		switch {
		case p.Name == e.cfg.Self || p.Name == "":
		case k != nil:
			if k.peer.Address != p.Address {
				k.notBefore, k.id = now, "" // moved: what it did at the old address does not count
			}
			k.peer = p
		case e.peers.makeRoom():
			e.peers.known[p.Name] = &known{peer: p}
		}
	}
}

// connect follows known peers until there are neighbours enough: those said to
// be complete first, the others by chance. It returns when the next one may be
// tried.
func (e *engine) connect(now time.Time) (wake time.Time) {
	if len(e.peers.neighbours) >= maxNeighbours || len(e.peers.known) == len(e.peers.neighbours) {
		return time.Time{}
	}
	var ready []*known
	for _, k := range e.peers.known {
		until := e.blames.of(k, now)
		switch {
		case k.neighbour:
		case !until.IsZero():
			wake = earlier(wake, until)
		case now.Before(k.notBefore):
			wake = earlier(wake, k.notBefore)
		default:
			ready = append(ready, k)
		}
	}
	sort.Slice(ready, func(i, j int) bool { return ready[i].peer.Name < ready[j].peer.Name })
	e.rng.Shuffle(len(ready), func(i, j int) { ready[i], ready[j] = ready[j], ready[i] })
	slices.SortStableFunc(ready, func(a, b *known) int {
		switch {
		case a.peer.Complete == b.peer.Complete:
			return 0
		case a.peer.Complete:
			return -1
		}
		return 1
	})
	patience := e.search.begun.Add(smallPatience)
	for _, k := range ready {
		if len(e.peers.neighbours) >= maxNeighbours {
			break
		}
		if !k.peer.Complete && e.todo.small && now.Before(patience) && e.peers.serves() {
			wake = earlier(wake, patience)
			continue
		}
		e.follow(k, now)
	}
	return wake
}

// follow makes k a neighbour. One that is said to be complete is asked at once,
// before its have-map is here, unless it was silent the last time: it may be gone. For
// very little that is all: its haves are not followed.
func (e *engine) follow(k *known, now time.Time) {
	n := e.cfg.Chunks.Len()
	ctx, cancel := context.WithCancel(e.workers.ctx)
	nb := &neighbour{peer: k.peer, cancel: cancel, idleSince: now,
		have: chunk.NewBitmap(n), complete: k.peer.Complete && !k.silent}
	if nb.complete {
		nb.have = everything(n)
	}
	k.neighbour = true
	e.peers.neighbours = append(e.peers.neighbours, nb)
	if nb.complete && e.todo.small {
		nb.unfollowed = true
		return
	}
	e.workers.start(func() {
		defer cancel()
		err := e.cfg.Transport.FollowHaves(ctx, nb.peer, e.cfg.Seed, n, func(h Haves) {
			e.workers.send(ctx, told{nb: nb, haves: h})
		})
		e.workers.send(e.workers.ctx, parted{nb: nb, err: err})
	})
}

// told: a neighbour says what it holds.
type told struct {
	nb    *neighbour
	haves Haves
}

func (ev told) apply(e *engine, now time.Time) {
	nb, n := ev.nb, e.cfg.Chunks.Len()
	if nb.gone {
		return
	}
	if k := e.peers.known[nb.peer.Name]; k != nil {
		k.tries, k.silent = 0, false
	}
	if ev.haves.Map != nil {
		e.peers.uncount(nb)
		nb.mapped, nb.complete = true, false
		nb.have = chunk.NewBitmap(n)
		everything(n).Both(ev.haves.Map, func(i int) bool { e.peers.holds(nb, i); return true })
	}
	for _, i := range ev.haves.New {
		if i >= 0 && i < n {
			e.peers.holds(nb, i)
		}
	}
	if ev.haves.Complete && !nb.complete {
		e.peers.uncount(nb)
		nb.complete, nb.have = true, everything(n)
	}
}

// parted: a have stream has ended.
type parted struct {
	nb  *neighbour
	err error
}

func (ev parted) apply(e *engine, now time.Time) {
	if ev.nb.gone {
		return
	}
	k := e.peers.known[ev.nb.peer.Name]
	k.tries++
	k.silent = !errors.Is(ev.err, ErrCrowded) && !errors.Is(ev.err, ErrNotHeld)
	wait := backoff(k.tries+1) / 2
	wait += e.chance(wait) // those who lost it at once do not return at once
	if ev.err != nil {
		e.status.lastError = fmt.Sprintf("%s: %v", ev.nb.peer.Name, ev.err)
		e.log.Debug("failed to follow a peer", "peer", ev.nb.peer.Name, "err", ev.err)
	}
	if errors.Is(ev.err, ErrCrowded) && ev.nb.complete {
		ev.nb.unfollowed = true
		return
	}
	e.part(ev.nb, now, now.Add(wait))
}

// part ends a neighbourhood and its requests; the peer may become a neighbour
// again after notBefore.
func (e *engine) part(nb *neighbour, now, notBefore time.Time) {
	for _, r := range nb.requests {
		r.drop()
	}
	e.leave(nb, now, notBefore)
}

// leave ends a neighbourhood but not its requests.
func (e *engine) leave(nb *neighbour, now, notBefore time.Time) {
	if nb.gone {
		return
	}
	if nb.mapped {
		e.peers.lost[nb.peer.Name] = nb.have
		if len(e.peers.lost) > 2*maxNeighbours {
			e.peers.forgetLost()
		}
	}
	e.peers.uncount(nb)
	nb.gone = true
	nb.cancel()
	e.peers.neighbours = without(e.peers.neighbours, nb)
	if k := e.peers.known[nb.peer.Name]; k != nil {
		k.neighbour = false
		k.notBefore = notBefore
	}
	if !slices.ContainsFunc(e.peers.neighbours, e.isUseful) {
		e.search.next = earlier(e.search.next, now.Add(finding(0, e.search.dry, 0, false)))
	}
}

// tick looks at the whole: what is held by now, and which neighbours have been
// of no use for 10 s while others are known who might be.
func (e *engine) tick(now time.Time) {
	const useless, atOnce = 10 * time.Second, 4
	e.nextTick = now.Add(tickEvery)
	e.reread()
	spare := 0
	for _, k := range e.peers.known {
		if !k.neighbour && e.blames.of(k, now).IsZero() && !now.Before(k.notBefore) {
			spare++
		}
	}
	var drop []*neighbour
	for _, nb := range e.peers.neighbours {
		if len(nb.requests) > 0 || e.isUseful(nb) {
			nb.idleSince = time.Time{}
			continue
		}
		if nb.idleSince.IsZero() {
			nb.idleSince = now
		}
		if now.Sub(nb.idleSince) >= useless {
			drop = append(drop, nb)
		}
	}
	if len(e.peers.neighbours) < maxNeighbours {
		return
	}
	for _, nb := range drop[:min(len(drop), spare, atOnce)] {
		e.part(nb, now, now.Add(3*useless))
	}
}

// reread looks what is held by now, and what is held back.
func (e *engine) reread() {
	before := e.todo.missing.Clone()
	e.todo.readHeld(e.cfg.Chunks)
	e.todo.hold(e.cfg.Hold)
	e.standing.recount(e.cfg.Chunks)
	e.standing.measure(e.coming())
	for i := range e.cfg.Chunks.Len() {
		if f := e.cfg.Observe.Have; f != nil && before.Has(i) && !e.todo.missing.Has(i) {
			f(i) // it came from elsewhere
		}
	}
}
