package swarm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"seeder/store/chunk"
)

// request is one chunk asked of one neighbour.
type request struct {
	nb      *neighbour
	chunk   int          // -1: the peer chooses
	want    chunk.Bitmap // what it may choose from
	start   time.Time
	overdue bool // asked for elsewhere too; does not count as in flight
	dropped bool // we do not want the answer any more
	cancel  context.CancelFunc
	buf     []byte // lent to the transport, once the frame's length was known
	in      atomic.Pointer[Incoming]
}

// ask starts requests while there is room and something to ask for. It returns
// when to look again.
func (e *engine) ask(now time.Time) (wake time.Time) {
	limit := e.limit()
	flying, wake := e.inFlight(now)
	if e.puts >= maxVerifying || flying >= limit {
		return wake
	}
	// One request per neighbour first, in random order (chance spreads the load;
	// nobody knows the queues of others), then a second one where requests are left.
	order := e.rng.Perm(len(e.peers.neighbours))
	useful := 0
	for _, i := range order {
		if e.isUseful(e.peers.neighbours[i]) {
			useful++
		}
	}
	for round := range perPeer(useful, limit) {
		for _, i := range order {
			nb := e.peers.neighbours[i]
			if flying >= limit {
				return wake
			}
			if len(nb.requests) > round || nb.slow(e.pace.took.median()) && len(nb.requests) > 0 {
				continue
			}
			chunk, want, ok := e.pick(nb, now)
			if !ok {
				continue
			}
			if now.Before(nb.notBefore) {
				wake = earlier(wake, nb.notBefore)
				continue
			}
			e.request(nb, chunk, want, now)
			flying++
		}
	}
	return earlier(wake, e.endgame(now, order))
}

// limit is how many requests may be in flight.
func (e *engine) limit() int {
	return min(e.pace.requests(), max(e.cfg.Memory.room(e.todo.largest)-e.puts, minRequests))
}

// inFlight counts the requests that take up room: not the overdue ones, nor a few
// that take much longer than most, since they wait for a slow peer and leave our
// link idle. wake is when the next one will.
func (e *engine) inFlight(now time.Time) (k int, wake time.Time) {
	patience := stuckAfter * e.pace.took.median()
	stuck := 0
	for _, r := range e.requests {
		at := r.start.Add(patience)
		switch {
		case r.overdue:
		case patience == 0:
			k++
		case now.Before(at):
			k++
			wake = earlier(wake, at)
		default:
			stuck++
		}
	}
	return k + max(0, stuck-maxStuck), wake
}

// isUseful reports whether nb holds, or may hold, something missing.
func (e *engine) isUseful(nb *neighbour) bool {
	if nb.complete {
		return true
	}
	found := false
	e.todo.missing.Both(nb.have, func(int) bool { found = true; return false })
	return found
}

// pick chooses what to ask nb for. A complete neighbour chooses itself among the
// chunks that no partial neighbour holds (super-seeding: it sends each chunk
// once, and the swarm passes it on). Of anybody, complete or not, the rarest is
// asked of what partial neighbours hold: the two sets do not overlap, so neither
// do the answers.
func (e *engine) pick(nb *neighbour, now time.Time) (chunk int, want chunk.Bitmap, ok bool) {
	free := e.todo.free
	if e.todo.free.Count() <= e.openNexts(now) {
		return 0, nil, false // what is left is being chosen from right now
	}
	if nb.complete && e.peers.superSeed() {
		fresh := e.todo.fresh(e.peers.copies)
		rank, classes := e.peers.rank(nb)
		if want := classOf(fresh, rank, classes); want.Count() > 0 {
			return -1, want, true
		}
		if n := fresh.Last(); n >= 0 && e.openNexts(now) == 0 {
			return n, nil, true
		} else if n >= 0 {
			free = free.Without(fresh)
		}
	}
	n := rarest(free, nb.have, e.peers.copies)
	return n, nil, n >= 0
}

// openNexts counts the requests that will yield a chunk not known yet, those
// aside that already take longer than most.
func (e *engine) openNexts(now time.Time) int {
	k := 0
	for _, r := range e.requests {
		if r.chunk < 0 && !r.overdue && now.Before(e.pace.oldAt(r)) {
			k++
		}
	}
	return k
}

// endgame asks a second peer for each of the last few chunks once they take longer
// than most, and the first answer wins. It waits that long
// since a copy that is about to come costs its uplink for nothing.
func (e *engine) endgame(now time.Time, order []int) (wake time.Time) {
	left := e.todo.open() - e.puts
	if left > endgameChunks {
		return time.Time{}
	}
	over := endgame(e.todo.free.Count(), left)
	for _, r := range slices.Clone(e.requests) {
		if r.overdue || r.chunk >= 0 && e.todo.asked[r.chunk] > 1 {
			continue
		}
		if old := e.pace.oldAt(r); now.Before(old) {
			wake = earlier(wake, old)
			continue
		}
		if r.chunk < 0 || !over {
			continue
		}
		for _, i := range order {
			nb := e.peers.neighbours[i]
			if flying, _ := e.inFlight(now); flying >= maxRequests {
				return wake
			}
			if len(nb.requests) == 0 && nb.have.Has(r.chunk) && !now.Before(nb.notBefore) {
				e.request(nb, r.chunk, nil, now)
				break
			}
		}
	}
	return wake
}

// request asks nb for chunk, or for one of want.
func (e *engine) request(nb *neighbour, chunk int, want chunk.Bitmap, now time.Time) {
	if len(e.requests) >= min(maxOpen, max(e.cfg.Memory.room(e.todo.largest), minRequests+maxStuck)) {
		e.dropOldest()
	}
	ctx, cancel := context.WithTimeoutCause(e.workers.ctx, hardDeadline(e.todo.largest), errGivenUp)
	r := &request{nb: nb, chunk: chunk, want: want, start: now, cancel: cancel}
	e.requests = append(e.requests, r)
	nb.requests = append(nb.requests, r)
	if chunk >= 0 {
		e.todo.ask(chunk)
	}
	t, peer, seed := e.cfg.Transport, nb.peer, e.cfg.Seed
	limit := e.todo.largest
	if chunk >= 0 {
		limit = min(limit, e.cfg.Chunks.Bytes(chunk))
	}
	lend := func(n int, bytes int64) *Incoming { // the event that comes after it gives r back to the engine
		if bytes > limit || r.buf != nil {
			return nil
		}
		r.buf = e.cfg.Memory.take(bytes)
		return r.lend(n)
	}
	e.workers.start(func() {
		defer cancel()
		var reply Reply
		var err error
		if chunk >= 0 {
			reply, err = t.Chunk(ctx, peer, seed, chunk, lend)
		} else {
			reply, err = t.Next(ctx, peer, seed, want, lend)
		}
		e.workers.send(e.workers.ctx, replied{r: r, reply: reply, err: err})
	})
}

// errGivenUp ends a request that took longer than any useful link does.
var errGivenUp = errors.New("no chunk came in time")

// dropOldest gives up the oldest overdue request to make room.
func (e *engine) dropOldest() {
	for _, r := range e.requests {
		if r.overdue && !r.dropped {
			r.drop()
			return
		}
	}
}

func (r *request) drop() {
	r.dropped = true
	r.cancel()
}

// expire marks the requests past their deadline: their chunks may be asked for
// elsewhere, they do not count as in flight, and their peer is asked for nothing
// else until they end. They are not ended, since on a slow link they are all
// there is.
func (e *engine) expire(now time.Time) (wake time.Time) {
	limit := deadline(e.pace.took.median())
	for _, r := range e.requests {
		if r.overdue {
			continue
		}
		if due := r.start.Add(limit); now.Before(due) {
			wake = earlier(wake, due)
			continue
		}
		r.overdue = true
		if r.chunk >= 0 {
			e.todo.unask(r.chunk)
		}
	}
	return wake
}

// replied: a request has ended. Whatever came is verified, unless it is here
// already.
type replied struct {
	r     *request
	reply Reply
	err   error
}

func (ev replied) apply(e *engine, now time.Time) {
	r := ev.r
	e.forget(r)
	if ev.err != nil {
		e.cfg.Memory.give(r.buf)
		e.refused(r, ev.err, now)
		return
	}
	n := ev.reply.Chunk
	if r.chunk >= 0 && n != r.chunk || r.chunk < 0 && !r.want.Has(n) {
		e.cfg.Memory.give(r.buf)
		e.bad(r, ev.reply.From, n, fmt.Sprintf("asked for chunk %d, got %d", r.chunk, n), now)
		return
	}
	if e.blames.blamed(ev.reply.From, now) { // by another name
		e.cfg.Memory.give(r.buf)
		if k := e.peers.known[r.nb.peer.Name]; k != nil {
			k.id = ev.reply.From
		}
		e.part(r.nb, now, now)
		return
	}
	e.pace.replied(r.start, now, ev.reply.Trip)
	r.nb.took.add(now.Sub(r.start))
	r.nb.strikes = 0
	if !e.todo.missing.Has(n) || e.todo.verifying.Has(n) {
		e.cfg.Memory.give(r.buf)
		if f := e.cfg.Observe.Duplicate; f != nil {
			f(r.nb.peer.Name, int64(len(ev.reply.Payload)))
		}
		return
	}
	e.todo.verify(n)
	e.puts++
	e.workers.start(func() {
		ok, err := e.cfg.Chunks.Put(e.workers.ctx, n, ev.reply.Encoding, ev.reply.Payload)
		e.workers.send(e.workers.ctx, put{r: r, from: ev.reply.From, n: n, wire: int64(len(ev.reply.Payload)), ok: ok, err: err})
	})
}

// forget takes r out of the requests under way.
func (e *engine) forget(r *request) {
	e.requests = without(e.requests, r)
	r.nb.requests = without(r.nb.requests, r)
	if r.chunk >= 0 && !r.overdue {
		e.todo.unask(r.chunk)
	}
}

func without[T comparable](list []T, x T) []T {
	for i, o := range list {
		if o == x {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
}

// refused: the peer did not give a chunk. What it says decides when it is asked
// again; anything else than a refusal is a strike.
func (e *engine) refused(r *request, err error, now time.Time) {
	nb := r.nb
	var busy *BusyError
	ours := isOurs(e.workers.ctx, err) || r.dropped
	if f := e.cfg.Observe.Refused; f != nil && !ours {
		f(nb.peer.Name, refusal(err))
	}
	switch {
	case nb.gone, r.dropped && !r.overdue:
	case errors.As(err, &busy):
		e.pace.trips.add(now.Sub(r.start))
		nb.pause(now, min(max(busy.RetryAfter, minRetry), 10*time.Second))
	case errors.Is(err, ErrCrowded):
		// Its places are taken by others, who pass on what they get.
		wait := time.Second + e.chance(2*time.Second)
		nb.pause(now, wait)
		if nb.unfollowed {
			e.leave(nb, now, now.Add(wait))
		}
	case errors.Is(err, ErrNothing):
		nb.pause(now, 20*time.Millisecond+e.chance(30*time.Millisecond))
	case errors.Is(err, ErrNotHeld):
		if r.chunk < 0 && nb.mapped || nb.unfollowed {
			e.part(nb, now, now.Add(backoff(maxStrikes))) // it does not know the seed any more
			return
		}
		e.peers.lacks(nb, r.chunk)
		nb.pause(now, 50*time.Millisecond)
	case isOurs(e.workers.ctx, err):
	default:
		nb.strikes++
		e.status.lastError = fmt.Sprintf("%s: %v", nb.peer.Name, err)
		e.log.Debug("failed to fetch a chunk", "peer", nb.peer.Name, "chunk", r.chunk, "err", err)
		nb.pause(now, backoff(nb.strikes))
		if nb.strikes >= maxStrikes {
			e.part(nb, now, now.Add(backoff(nb.strikes+maxStrikes)))
		}
	}
}

// Why a request came to nothing, in one word.
const (
	RefusedBusy    = "busy"    // every upload slot of the peer is taken
	RefusedCrowded = "crowded" // the peer has as many requesters as it takes
	RefusedAbsent  = "absent"  // the peer does not hold it
	RefusedError   = "error"   // no answer, or one that makes no sense
)

// Refusals are all of them.
func Refusals() []string {
	return []string{RefusedBusy, RefusedCrowded, RefusedAbsent, RefusedError}
}

func refusal(err error) string {
	var busy *BusyError
	switch {
	case errors.As(err, &busy):
		return RefusedBusy
	case errors.Is(err, ErrCrowded):
		return RefusedCrowded
	case errors.Is(err, ErrNothing), errors.Is(err, ErrNotHeld):
		return RefusedAbsent
	}
	return RefusedError
}

// put: a chunk has been verified, or not.
type put struct {
	r    *request
	from string // proved id of who sent it
	n    int
	wire int64
	ok   bool
	err  error
}

func (ev put) apply(e *engine, now time.Time) {
	e.puts--
	e.cfg.Memory.give(ev.r.buf)
	missing := e.todo.missing.Has(ev.n)
	e.todo.verified(ev.n, ev.err == nil && ev.ok)
	name := ev.r.nb.peer.Name
	switch {
	case ev.err != nil:
		e.err = fmt.Errorf("stage chunk %d: %w", ev.n, ev.err)
		return
	case !ev.ok:
		e.bad(ev.r, ev.from, ev.n, "it does not verify", now)
		return
	}
	e.blames.acquit(ev.from, ev.r.nb.peer.Address)
	e.status.lastChunk = now
	e.standing.hold(e.cfg.Chunks.Bytes(ev.n), missing)
	for _, r := range e.requests {
		if r.chunk == ev.n && !r.dropped {
			r.drop()
		}
	}
	if f := e.cfg.Observe.Have; f != nil {
		f(ev.n)
	}
	if f := e.cfg.Observe.Received; f != nil {
		f(ev.n, name, e.cfg.Chunks.Bytes(ev.n), ev.wire)
	}
}
