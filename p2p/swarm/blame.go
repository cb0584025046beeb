package swarm

import (
	"fmt"
	"time"

	"seeder/internal/wait"
)

// A peer that sends what does not verify is not asked for a while. It is known by the
// identity that its connection proved and by the address where it answers, never by the
// name that somebody gave it: otherwise a node that says "n1 is at my address" would have n1 blamed.
// The blame lapses, since what was damaged may be whole again, and so that a fetch
// does not end without anybody to ask.
const (
	firstBlame = time.Minute
	maxBlame   = 4 * time.Minute
	// maxBlamed bounds the identities and addresses that are remembered.
	maxBlamed = 1024
)

// blame is what a fetch holds against an identity or an address.
type blame struct {
	until time.Time
	times int
}

// blamed is until when k is not asked; zero: it may be.
func (e *engine) blamed(k *known, now time.Time) time.Time {
	until := e.blames[k.peer.Address].until
	if k.id != "" {
		if t := e.blames[k.id].until; t.After(until) {
			until = t
		}
	}
	if !now.Before(until) {
		return time.Time{}
	}
	return until
}

// isBlamed reports whether the identity is not asked now.
func (e *engine) isBlamed(id string, now time.Time) bool {
	return id != "" && now.Before(e.blames[id].until)
}

// accuse records a bad chunk from the node that proved id at address, and returns for how long
// it is not asked.
func (e *engine) accuse(id, address string, now time.Time) time.Duration {
	var longest time.Duration
	for _, key := range []string{id, address} {
		if key == "" {
			continue
		}
		b := e.blames[key]
		b.times++
		d := wait.Doubled(firstBlame, maxBlame, b.times-1)
		b.until = now.Add(d)
		longest = max(longest, d)
		if len(e.blames) >= maxBlamed && e.blames[key].times == 0 {
			e.forgetBlame()
		}
		e.blames[key] = b
	}
	return longest
}

// forgetBlame makes room: what lapses first goes.
func (e *engine) forgetBlame() {
	first := ""
	for key, b := range e.blames {
		if first == "" || b.until.Before(e.blames[first].until) || b.until.Equal(e.blames[first].until) && key < first {
			first = key
		}
	}
	delete(e.blames, first)
}

// acquit forgets what is held against the sender of a chunk that verified.
func (e *engine) acquit(id, address string) {
	delete(e.blames, id)
	delete(e.blames, address)
}

// bad: what came from a peer is not what was asked for.
func (e *engine) bad(r *request, from string, n int, why string, now time.Time) {
	nb := r.nb
	wait := e.accuse(from, nb.peer.Address, now)
	e.log.Warn("rejected a bad chunk; not asking its sender for a while",
		"peer", nb.peer.Name, "id", from, "address", nb.peer.Address, "chunk", n, "err", why, "for", wait)
	if k := e.known[nb.peer.Name]; k != nil && k.peer.Address == nb.peer.Address {
		k.id = from
	}
	e.lastError = fmt.Sprintf("%s sent damaged data (chunk %d); it is asked again after %s", nb.peer.Name, n, wait)
	e.part(nb, now, now)
	if f := e.cfg.Observe.BadChunk; f != nil {
		f(nb.peer.Name, from, n)
	}
}

// makeRoom forgets one known peer that never answered, or has not for long, where there
// are too many: anyone who makes up names keeps none of the others out.
func (e *engine) makeRoom() bool {
	if len(e.known) < maxKnown {
		return true
	}
	victim := ""
	for name, k := range e.known {
		if k.neighbour || k.tries == 0 {
			continue
		}
		if v := e.known[victim]; v == nil || k.tries > v.tries || k.tries == v.tries && name < victim {
			victim = name
		}
	}
	if victim == "" {
		return false
	}
	delete(e.known, victim)
	return true
}
