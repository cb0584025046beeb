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

// blames are by proved id, and by address.
type blames map[string]blame

// of is until when k is not asked; zero: it may be.
func (bs blames) of(k *known, now time.Time) time.Time {
	until := bs[k.peer.Address].until
	if k.id != "" {
		if t := bs[k.id].until; t.After(until) {
			until = t
		}
	}
	if !now.Before(until) {
		return time.Time{}
	}
	return until
}

// blamed reports whether the identity is not asked now.
func (bs blames) blamed(id string, now time.Time) bool {
	return id != "" && now.Before(bs[id].until)
}

// accuse records a bad chunk from the node that proved id at address, and returns for how long
// it is not asked.
func (bs blames) accuse(id, address string, now time.Time) time.Duration {
	var longest time.Duration
	for _, key := range []string{id, address} {
		if key == "" {
			continue
		}
		b := bs[key]
		b.times++
		d := wait.Doubled(firstBlame, maxBlame, b.times-1)
		b.until = now.Add(d)
		longest = max(longest, d)
		if len(bs) >= maxBlamed && bs[key].times == 0 {
			bs.forget()
		}
		bs[key] = b
	}
	return longest
}

// forget makes room: what lapses first goes.
func (bs blames) forget() {
	first := ""
	for key, b := range bs {
		if first == "" || b.until.Before(bs[first].until) || b.until.Equal(bs[first].until) && key < first {
			first = key
		}
	}
	delete(bs, first)
}

// acquit forgets what is held against the sender of a chunk that verified.
func (bs blames) acquit(id, address string) {
	delete(bs, id)
	delete(bs, address)
}

// bad: what came from a peer is not what was asked for.
func (e *engine) bad(r *request, from string, n int, why string, now time.Time) {
	nb := r.nb
	wait := e.blames.accuse(from, nb.peer.Address, now)
	e.log.Warn("rejected a bad chunk; not asking its sender for a while",
		"peer", nb.peer.Name, "id", from, "address", nb.peer.Address, "chunk", n, "err", why, "for", wait)
	if k := e.peers.known[nb.peer.Name]; k != nil && k.peer.Address == nb.peer.Address {
		k.id = from
	}
	e.status.lastError = fmt.Sprintf("%s sent damaged data (chunk %d); it is asked again after %s", nb.peer.Name, n, wait)
	e.part(nb, now, now)
	if f := e.cfg.Observe.BadChunk; f != nil {
		f(nb.peer.Name, from, n)
	}
}
