package swarm

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
)

// Progress is where a fetch stands.
type Progress struct {
	Peers      int    // known for this swarm
	Neighbours int    // whose haves are followed
	Reason     string // why nothing comes; empty while something does
	// Bytes are raw: of the wanted chunks that are held, and what has come of those under
	// way. They go back only where a held chunk is lost.
	Bytes int64
	// Received are those of Bytes that peers gave in this fetch. They never go back.
	Received int64
}

// status is what the progress of a fetch follows from, besides its peers and requests.
type status struct {
	lastChunk time.Time // when one was verified last, or the fetch began
	lastError string    // of a peer
	reported  Progress
	once      bool // reported is there
}

// reportProgress reports the progress where it has changed.
func (e *engine) reportProgress(now time.Time) {
	f := e.cfg.Observe.State
	if f == nil {
		return
	}
	p := Progress{Peers: len(e.peers.known), Neighbours: len(e.peers.neighbours), Reason: e.status.reported.Reason,
		Bytes: e.standing.shown, Received: e.standing.received}
	// A request that is under way says nothing yet: one that is refused ends soon.
	const while = tickEvery / 2
	waited := func(r *request) bool { return now.Sub(r.start) >= while }
	switch {
	case e.puts > 0, e.todo.open() == 0, now.Sub(e.status.lastChunk) < while, slices.ContainsFunc(e.requests, waited):
		p.Reason = ""
	case len(e.requests) == 0:
		p.Reason = e.reason(now)
	}
	if e.status.once && p == e.status.reported {
		return
	}
	e.status.reported, e.status.once = p, true
	f(p)
}

// reason says why nothing comes, and whose return would fix it.
func (e *engine) reason(now time.Time) string {
	if !slices.ContainsFunc(e.peers.neighbours, (*neighbour).answers) {
		switch {
		case e.status.lastError != "":
			return "no peer answers (" + e.status.lastError + ")"
		case len(e.peers.known) == 0:
			return "no peer found"
		}
		return "no peer answers"
	}
	nowhere := e.todo.missing
	for _, nb := range e.peers.neighbours {
		nowhere = nowhere.Without(nb.have)
	}
	k := nowhere.Count()
	if k == 0 {
		return "peers are busy"
	}
	why := fmt.Sprintf("%d of the %d missing chunks are on no peer that answers", k, e.todo.left)
	var had []string
	for name, have := range e.peers.lost {
		known := e.peers.known[name]
		if known != nil && nowhere.Without(have).Count() < k && !e.peers.answers(name) && e.blames.of(known, now).IsZero() {
			had = append(had, name)
		}
	}
	if len(had) > 0 {
		sort.Strings(had)
		why += "; they were on " + strings.Join(had, ", ")
	}
	return why
}
