package p2p

import (
	"slices"
	"sync"
	"time"

	"seeder/internal/text"
	"seeder/p2p/catalog"
	"seeder/p2p/report"
)

const (
	// maxEvents is how many events of images and of this host are kept, and as many of
	// members: however many come and go, a failure stays in sight.
	maxEvents = 128
	// maxEventNodes is how many names one event keeps.
	maxEventNodes = 8
	// oneBurst: members that come or go within this time of the first are one event.
	oneBurst = 10 * time.Second
	// maxEventName bounds a reference or a name, in bytes; the catalog and gossip have
	// bounds of their own that are not above it.
	maxEventName = 512
)

// events are the last events of a node, safe for concurrent use. Nobody is told of
// them; who wants to know asks.
type events struct {
	mu      sync.Mutex
	work    []report.Event // oldest first
	members []report.Event
}

// add records what happened to an image or to this host. The same as before moves to
// the end and counts.
func (es *events) add(e report.Event) {
	e = bounded(e)
	es.mu.Lock()
	defer es.mu.Unlock()
	if i := slices.IndexFunc(es.work, func(o report.Event) bool { return sameEvent(e, o) }); i >= 0 {
		e.Count += es.work[i].Count
		es.work = slices.Delete(es.work, i, i+1)
	}
	es.work = push(es.work, e)
}

// member records that a member came or went.
func (es *events) member(kind report.EventKind, name, reason string, now time.Time) {
	e := bounded(report.Event{Time: now, Kind: kind, Nodes: []string{name}, Reason: reason})
	es.mu.Lock()
	defer es.mu.Unlock()
	last := len(es.members) - 1
	if last < 0 || es.members[last].Kind != kind || now.Sub(es.members[last].Time) > oneBurst {
		es.members = push(es.members, e)
		return
	}
	burst := &es.members[last]
	burst.Count++
	if len(burst.Nodes) < maxEventNodes && !slices.Contains(burst.Nodes, name) {
		burst.Nodes = append(burst.Nodes, e.Nodes[0])
	}
}

// sameEvent reports whether o is e again: another reason for it may be given.
func sameEvent(e, o report.Event) bool {
	return e.Kind == o.Kind && e.Reference == o.Reference && e.Version == o.Version && slices.Equal(e.Nodes, o.Nodes)
}

func push(to []report.Event, e report.Event) []report.Event {
	if len(to) >= maxEvents {
		to = slices.Delete(to, 0, len(to)-maxEvents+1)
	}
	return append(to, e)
}

// bounded is e as it may be kept.
func bounded(e report.Event) report.Event {
	e.Count = 1
	e.Reference, e.Reason = text.Clean(e.Reference, maxEventName), text.Clean(e.Reason, report.MaxTextBytes)
	nodes := make([]string, 0, 1)
	for _, name := range e.Nodes[:min(len(e.Nodes), maxEventNodes)] {
		nodes = append(nodes, text.Clean(name, maxEventName))
	}
	e.Nodes = nodes
	return e
}

// list returns a copy, newest first.
func (es *events) list() []report.Event {
	es.mu.Lock()
	out := slices.Concat(es.work, es.members)
	for i := range out {
		out[i].Nodes = slices.Clone(out[i].Nodes)
	}
	es.mu.Unlock()
	slices.SortStableFunc(out, func(a, b report.Event) int { return b.Time.Compare(a.Time) })
	return out
}

// record records an event of this moment about an announcement.
func (es *events) record(kind report.EventKind, a catalog.Announcement, reason string, nodes ...string) {
	es.add(report.Event{Time: time.Now(), Kind: kind, Reference: a.Reference, Version: a.Version, Nodes: nodes, Reason: reason})
}

// news records what this node has learnt from the catalog of another one, or
// published itself.
func (es *events) news(recs ...catalog.Record) {
	for _, rec := range recs[max(0, len(recs)-maxEvents):] {
		a := rec.Announcement()
		kind := report.EventAnnounced
		if a.Withdrawn {
			kind = report.EventWithdrawn
		}
		es.record(kind, a, "", a.NodeName)
	}
}

// onMember records what gossip says of a member that comes or goes.
func (es *events) onMember(name, state, reason string) {
	kind := report.EventJoined
	switch state {
	case "left":
		kind = report.EventLeft
	case "dead":
		kind = report.EventLost
	}
	es.member(kind, name, reason, time.Now())
}
