package swarm

import (
	"time"

	"seeder/store/chunk"
)

// Asker is who asks for a chunk: the id that its connection proved, and its host.
// Whoever has the secret can make up any number of ids, but has few addresses.
type Asker struct {
	ID   string
	Host string // IP address without a port, of IPv6 the /64
}

const (
	// repeatsAllowed is how many chunks an asker may ask a super-seed for again that it
	// has taken already: a few are lost on the way.
	repeatsAllowed = 2
	// lostFor is how long a host that asked for more comes after all others.
	lostFor = time.Minute
	// maxLost bounds the hosts that are remembered for that.
	maxLost = 256
	// maxSlowPerHost bounds the chunks on their way to one host that takes them slowly.
	maxSlowPerHost = 2
)

// asker is a peer that a complete node serves.
type asker struct {
	host    string
	last    time.Time
	pending int          // requests that wait or are being answered
	grants  int          // chunks that it was given
	got     chunk.Bitmap // those that it took whole, of a super-seed
	repeats int          // how often it asked for one of them
}

// makePlace frees a place at a super-seed whose places are taken, for one more asker of
// host: that of somebody who stopped asking, of a host that asks for what it has taken
// already, or of the host that has the most places. mu is held.
func (u *Upload) makePlace(host string, now time.Time) bool {
	places := u.uploader.cfg.Askers
	if len(u.askers) < places {
		return true
	}
	u.expireAskers(now)
	if len(u.askers) < places {
		return true
	}
	if u.isLost(host, now) {
		return false
	}
	count := map[string]int{}
	for _, a := range u.askers {
		count[a.host]++
	}
	victim, share := "", count[host]+1 // whoever has more than the newcomer would have
	for id, a := range u.askers {
		n := count[a.host]
		if u.isLost(a.host, now) {
			n += 1 << 16
		}
		v := u.askers[victim]
		if n > share || n == share && victim != "" && (a.pending < v.pending || a.pending == v.pending && id < victim) {
			victim, share = id, n
		}
	}
	if victim == "" {
		return false
	}
	delete(u.askers, victim)
	return true
}

// isLost reports whether host has asked for what it had taken. mu is held.
func (u *Upload) isLost(host string, now time.Time) bool { return now.Before(u.lost[host]) }

// granted books chunk n for peer. mu is held.
func (u *Upload) granted(peer string, n int, now time.Time) {
	a, ok := u.askers[peer]
	if !ok {
		return // its place went to somebody else meanwhile
	}
	a.grants++
	if a.got.Has(n) {
		a.repeats++
	}
	u.askers[peer] = a
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

// took books that peer took chunk n whole. mu is held.
func (u *Upload) took(peer string, n int) {
	a, ok := u.askers[peer]
	if !ok || !u.complete {
		return
	}
	if a.got == nil {
		a.got = chunk.NewBitmap(u.Len())
	}
	a.got.Set(n)
	u.askers[peer] = a
}

// hostGrants is what the askers of each host were given. mu is held.
func (u *Upload) hostGrants() map[string]int {
	out := map[string]int{}
	for _, a := range u.askers {
		out[a.host] += a.grants
	}
	return out
}
