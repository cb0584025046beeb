package swarm

import (
	"time"

	"seeder/store/chunk"
)

// Requester is who asks for a chunk: the id that its connection proved, and its host.
// Anyone who has the secret can make up any number of ids, but has few addresses.
type Requester struct {
	ID   string
	Host string // IP address without a port, of IPv6 the /64
}

const (
	// repeatsAllowed is how many chunks an requester may ask a super-seed for again that it
	// has taken already: a few are lost on the way.
	repeatsAllowed = 2
	// lostFor is how long a host that asked for more comes after all others.
	lostFor = time.Minute
	// maxLost bounds the hosts that are remembered for that.
	maxLost = 256
	// maxSlowPerHost bounds the chunks on their way to one host that takes them slowly.
	maxSlowPerHost = 2
)

// requester is a peer that a complete node serves.
type requester struct {
	host    string
	last    time.Time
	pending int          // requests that wait or are being answered
	grants  int          // chunks that it was given
	got     chunk.Bitmap // those that it took whole, of a super-seed
	repeats int          // how often it asked for one of them
}

// makePlace frees a place at a super-seed whose places are taken, for one more requester of
// host: that of somebody who stopped asking, of a host that asks for what it has taken
// already, or of the host that has the most places. mu is held.
func (u *Upload) makePlace(host string, now time.Time) bool {
	places := u.uploader.cfg.Requesters
	if len(u.requesters) < places {
		return true
	}
	u.expireAskers(now)
	if len(u.requesters) < places {
		return true
	}
	if u.isLost(host, now) {
		return false
	}
	count := map[string]int{}
	for _, a := range u.requesters {
		count[a.host]++
	}
	victim, share := "", count[host]+1 // the host that has more than the newcomer would have
	for id, a := range u.requesters {
		n := count[a.host]
		if u.isLost(a.host, now) {
			n += 1 << 16
		}
		v := u.requesters[victim]
		if n > share || n == share && victim != "" && (a.pending < v.pending || a.pending == v.pending && id < victim) {
			victim, share = id, n
		}
	}
	if victim == "" {
		return false
	}
	delete(u.requesters, victim)
	return true
}

// isLost reports whether host has asked for what it had taken. mu is held.
func (u *Upload) isLost(host string, now time.Time) bool { return now.Before(u.lost[host]) }

// granted records that peer was given chunk n. mu is held.
func (u *Upload) granted(peer string, n int, now time.Time) {
	a, ok := u.requesters[peer]
	if !ok {
		return // its place went to somebody else meanwhile
	}
	a.grants++
	if a.got.Has(n) {
		a.repeats++
	}
	u.requesters[peer] = a
	if a.repeats <= repeatsAllowed {
		return
	}
	if len(u.lost) >= maxLost {
		for host, until := range u.lost {
			if !now.Before(until) || len(u.lost) >= 2*maxLost {
				delete(u.lost, host)
			}
		}
	}
	u.lost[a.host] = now.Add(lostFor)
}

// took records that peer took chunk n whole. mu is held.
func (u *Upload) took(peer string, n int) {
	a, ok := u.requesters[peer]
	if !ok || !u.complete {
		return
	}
	if a.got == nil {
		a.got = chunk.NewBitmap(u.Len())
	}
	a.got.Set(n)
	u.requesters[peer] = a
}

// hostGrants is what the requesters of each host were given. mu is held.
func (u *Upload) hostGrants() map[string]int {
	out := map[string]int{}
	for _, a := range u.requesters {
		out[a.host] += a.grants
	}
	return out
}
