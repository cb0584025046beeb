package swarm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"seeder/store/chunk"
)

// maxKnown bounds the peers that a fetch remembers.
const maxKnown = 1024

// known is a peer that a fetch has heard of.
type known struct {
	peer      Peer
	neighbour bool
	id        string    // that was proved at its address with a bad chunk
	tries     int       // failed have streams in a row
	silent    bool      // the last of them got no answer
	notBefore time.Time // not to be followed before
}

// neighbour is a peer whose haves are followed.
type neighbour struct {
	peer     Peer
	cancel   context.CancelFunc // ends its have stream
	since    time.Time
	mapped   bool // its have-map has come
	complete bool // holds everything there is, or is said to
	gone     bool
	// unfollowed: complete, as we were told, with no room for another have stream.
	// It has no news anyway, and may still have a place for us among its requesters.
	unfollowed bool
	have       chunk.Bitmap // counted in copies unless complete
	requests   []*request
	notBefore  time.Time // not to be asked before
	strikes    int
	idleSince  time.Time // since when it has nothing for us; zero: it has
	took       durations
}

// answers reports whether nb has said anything: until then it may be gone.
func (nb *neighbour) answers() bool { return nb.mapped || nb.unfollowed }

func (nb *neighbour) pause(now time.Time, d time.Duration) {
	if t := now.Add(d); t.After(nb.notBefore) {
		nb.notBefore = t
	}
}

// slow: peers below a quarter of the median rate get one request at most.
func (nb *neighbour) slow(median time.Duration) bool {
	return nb.took.n > 0 && median > 0 && nb.took.median() > 4*median
}

// find asks the finder when it is time, one question at once.
func (e *engine) find(now time.Time) (wake time.Time) {
	if e.finding {
		return time.Time{}
	}
	if now.Before(e.nextFind) {
		return e.nextFind
	}
	e.finding = true
	e.start(func() {
		peers, err := e.cfg.Finder.Peers(e.ctx, e.cfg.Seed, false)
		e.send(e.ctx, found{peers: peers, err: err})
	})
	return time.Time{}
}

// found: the finder has answered.
type found struct {
	peers []Peer
	err   error
}

func (ev found) apply(e *engine, now time.Time) {
	e.finding = false
	useful := slices.ContainsFunc(e.neighbours, e.isUseful)
	e.nextFind = now.Add(finding(e.finds, e.dry, len(e.neighbours), useful))
	e.finds++
	e.dry++
	if useful {
		e.dry = 0
	}
	if ev.err != nil {
		e.log.Debug("failed to find peers", "err", ev.err)
		e.lastError = "find peers: " + ev.err.Error()
	}
	for _, p := range ev.peers {
		k := e.known[p.Name]
		switch {
		case p.Name == e.cfg.Self || p.Name == "":
		case k != nil:
			if k.peer.Address != p.Address {
				k.notBefore, k.id = now, "" // moved: what it did at the old address does not count
			}
			k.peer = p
		case e.makeRoom():
			e.known[p.Name] = &known{peer: p}
		}
	}
}

// connect follows known peers until there are neighbours enough: those said to
// be complete first, the others by chance. It returns when the next one may be
// tried.
func (e *engine) connect(now time.Time) (wake time.Time) {
	if len(e.neighbours) >= maxNeighbours || len(e.known) == len(e.neighbours) {
		return time.Time{}
	}
	var ready []*known
	for _, k := range e.known {
		until := e.blamed(k, now)
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
	for _, k := range ready {
		if len(e.neighbours) >= maxNeighbours {
			break
		}
		e.follow(k, now)
	}
	return wake
}

// follow makes k a neighbour. One that is said to be complete is asked at once,
// before its have-map is here, unless it was silent the last time: it may be gone.
func (e *engine) follow(k *known, now time.Time) {
	n := e.cfg.Chunks.Len()
	ctx, cancel := context.WithCancel(e.ctx)
	nb := &neighbour{peer: k.peer, cancel: cancel, since: now, idleSince: now,
		have: chunk.NewBitmap(n), complete: k.peer.Complete && !k.silent}
	if nb.complete {
		nb.have = everything(n)
	}
	k.neighbour = true
	e.neighbours = append(e.neighbours, nb)
	e.start(func() {
		defer cancel()
		err := e.cfg.Transport.FollowHaves(ctx, nb.peer, e.cfg.Seed, n, func(h Haves) {
			e.send(ctx, told{nb: nb, haves: h})
		})
		e.send(e.ctx, parted{nb: nb, err: err})
	})
}

// everything is the set of all n chunks.
func everything(n int) chunk.Bitmap {
	b := chunk.NewBitmap(n)
	for i := range n {
		b.Set(i)
	}
	return b
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
	if k := e.known[nb.peer.Name]; k != nil {
		k.tries, k.silent = 0, false
	}
	if ev.haves.Map != nil {
		e.uncount(nb)
		nb.mapped, nb.complete = true, false
		nb.have = chunk.NewBitmap(n)
		everything(n).Both(ev.haves.Map, func(i int) bool { e.holds(nb, i); return true })
	}
	for _, i := range ev.haves.New {
		if i >= 0 && i < n {
			e.holds(nb, i)
		}
	}
	if ev.haves.Complete && !nb.complete {
		e.uncount(nb)
		nb.complete, nb.have = true, everything(n)
	}
}

// holds counts chunk i as held by nb.
func (e *engine) holds(nb *neighbour, i int) {
	if !nb.have.Has(i) {
		nb.have.Set(i)
		e.copies[i]++
	}
}

// uncount takes what nb holds out of copies, which counts partial holders only.
func (e *engine) uncount(nb *neighbour) {
	if nb.complete {
		return
	}
	nb.have.Both(nb.have, func(i int) bool { e.copies[i]--; return true })
}

// lacks: nb does not hold what it was said to. -1 stands for all of it.
func (e *engine) lacks(nb *neighbour, n int) {
	if nb.gone {
		return
	}
	switch {
	case nb.complete && (n < 0 || !nb.mapped):
		nb.complete, nb.have = false, chunk.NewBitmap(e.cfg.Chunks.Len())
	case nb.complete:
		nb.complete = false
		nb.have = nb.have.Clone()
		nb.have.Clear(n)
		nb.have.Both(nb.have, func(i int) bool { e.copies[i]++; return true })
	case nb.have.Has(n):
		nb.have.Clear(n)
		e.copies[n]--
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
	k := e.known[ev.nb.peer.Name]
	k.tries++
	k.silent = !errors.Is(ev.err, ErrCrowded) && !errors.Is(ev.err, ErrNotHeld)
	wait := backoff(k.tries+1) / 2
	wait += e.chance(wait) // those who lost it at once do not return at once
	if ev.err != nil {
		e.lastError = fmt.Sprintf("%s: %v", ev.nb.peer.Name, ev.err)
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
		e.lost[nb.peer.Name] = nb.have
		if len(e.lost) > 2*maxNeighbours {
			e.forgetLost()
		}
	}
	e.uncount(nb)
	nb.gone = true
	nb.cancel()
	e.neighbours = without(e.neighbours, nb)
	if k := e.known[nb.peer.Name]; k != nil {
		k.neighbour = false
		k.notBefore = notBefore
	}
	if !slices.ContainsFunc(e.neighbours, e.isUseful) {
		e.nextFind = earlier(e.nextFind, now.Add(finding(0, e.dry, 0, false)))
	}
}

// forgetLost keeps lost bounded; which one goes does not matter.
func (e *engine) forgetLost() {
	for name := range e.lost {
		delete(e.lost, name)
		return
	}
}

// tick looks at the whole: what is held by now, and which neighbours have been
// of no use for 10 s while others are known who might be.
func (e *engine) tick(now time.Time) {
	const useless, atOnce = 10 * time.Second, 4
	e.nextTick = now.Add(tickEvery)
	before := e.missing.Clone()
	e.readHeld()
	for i := range e.cfg.Chunks.Len() {
		e.refresh(i)
		if f := e.cfg.Observe.Have; f != nil && before.Has(i) && !e.missing.Has(i) {
			f(i) // it came from elsewhere
		}
	}
	spare := 0
	for _, k := range e.known {
		if !k.neighbour && e.blamed(k, now).IsZero() && !now.Before(k.notBefore) {
			spare++
		}
	}
	var drop []*neighbour
	for _, nb := range e.neighbours {
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
	if len(e.neighbours) < maxNeighbours {
		return
	}
	for _, nb := range drop[:min(len(drop), spare, atOnce)] {
		e.part(nb, now, now.Add(3*useless))
	}
}

// reportProgress reports the progress where it has changed.
func (e *engine) reportProgress(now time.Time) {
	f := e.cfg.Observe.State
	if f == nil {
		return
	}
	p := Progress{Peers: len(e.known), Neighbours: len(e.neighbours), Reason: e.reported.Reason}
	// A request that is under way says nothing yet: one that is refused ends soon.
	const while = tickEvery / 2
	waited := func(r *request) bool { return now.Sub(r.start) >= while }
	switch {
	case e.puts > 0, now.Sub(e.lastChunk) < while, slices.ContainsFunc(e.requests, waited):
		p.Reason = ""
	case len(e.requests) == 0:
		p.Reason = e.reason(now)
	}
	if e.reportedOnce && p == e.reported {
		return
	}
	e.reported, e.reportedOnce = p, true
	f(p)
}

// reason says why nothing comes, and whose return would fix it.
func (e *engine) reason(now time.Time) string {
	if !slices.ContainsFunc(e.neighbours, (*neighbour).answers) {
		switch {
		case e.lastError != "":
			return "no peer answers (" + e.lastError + ")"
		case len(e.known) == 0:
			return "no peer found"
		}
		return "no peer answers"
	}
	nowhere := e.missing
	for _, nb := range e.neighbours {
		nowhere = nowhere.Without(nb.have)
	}
	k := nowhere.Count()
	if k == 0 {
		return "peers are busy"
	}
	why := fmt.Sprintf("%d of the %d missing chunks are on no peer that answers", k, e.left)
	var had []string
	for name, have := range e.lost {
		known := e.known[name]
		if known != nil && nowhere.Without(have).Count() < k && !e.answers(name) && e.blamed(known, now).IsZero() {
			had = append(had, name)
		}
	}
	if len(had) > 0 {
		sort.Strings(had)
		why += "; they were on " + strings.Join(had, ", ")
	}
	return why
}

func (e *engine) answers(name string) bool {
	return slices.ContainsFunc(e.neighbours, func(nb *neighbour) bool { return nb.peer.Name == name && nb.answers() })
}
