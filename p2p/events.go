package p2p

import (
	"slices"
	"sync"
	"time"

	"seeder/internal/text"
	"seeder/p2p/catalog"
)

// EventKind says what an event is about.
type EventKind string

// The kinds of events.
const (
	EventAnnounced EventKind = "announced" // this node has learnt of an announcement
	EventWithdrawn EventKind = "withdrawn" // this node has learnt of a withdrawal
	EventReady     EventKind = "ready"     // an image that was fetched is ready on this host
	EventFailed    EventKind = "failed"    // a try to fetch or import failed; it is tried again
	EventWaiting   EventKind = "waiting"   // an image waits for something on this host: room, a container
	EventRemoved   EventKind = "removed"   // somebody has removed an announced image from this host
	EventBadChunk  EventKind = "bad chunk" // a peer sent a chunk that does not verify
	EventUp        EventKind = "containerd up"
	EventDown      EventKind = "containerd down"
	EventJoined    EventKind = "joined" // a member is there
	EventLeft      EventKind = "left"   // a member said farewell
	EventLost      EventKind = "lost"   // a member does not answer any more
)

// Event is something that happened on this node, as people are told. What is the
// same again is one event with a count.
type Event struct {
	Time      time.Time // of the last time
	Kind      EventKind
	Reference string   // "" where no image is concerned
	Version   uint64   // of the announcement
	Nodes     []string // who announced, the peer, the members: the first maxEventNodes of Count
	Count     int      // how many times, or of how many members; at least 1
	Reason    string   // of the last time
}

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
	work    []Event // oldest first
	members []Event
}

// add books what happened to an image or to this host. The same as before moves to
// the end and counts.
func (es *events) add(e Event) {
	e = bounded(e)
	es.mu.Lock()
	defer es.mu.Unlock()
	if i := slices.IndexFunc(es.work, e.sameAs); i >= 0 {
		e.Count += es.work[i].Count
		es.work = slices.Delete(es.work, i, i+1)
	}
	es.work = push(es.work, e)
}

// member books that a member came or went.
func (es *events) member(kind EventKind, name, reason string, now time.Time) {
	e := bounded(Event{Time: now, Kind: kind, Nodes: []string{name}, Reason: reason})
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

// sameAs reports whether o is e again: another reason for it may be given.
func (e Event) sameAs(o Event) bool {
	return e.Kind == o.Kind && e.Reference == o.Reference && e.Version == o.Version && slices.Equal(e.Nodes, o.Nodes)
}

func push(to []Event, e Event) []Event {
	if len(to) >= maxEvents {
		to = slices.Delete(to, 0, len(to)-maxEvents+1)
	}
	return append(to, e)
}

// bounded is e as it may be kept.
func bounded(e Event) Event {
	e.Count = 1
	e.Reference, e.Reason = text.Clean(e.Reference, maxEventName), text.Clean(e.Reason, maxReasonBytes)
	nodes := make([]string, 0, 1)
	for _, name := range e.Nodes[:min(len(e.Nodes), maxEventNodes)] {
		nodes = append(nodes, text.Clean(name, maxEventName))
	}
	e.Nodes = nodes
	return e
}

// list returns a copy, newest first.
func (es *events) list() []Event {
	es.mu.Lock()
	out := slices.Concat(es.work, es.members)
	for i := range out {
		out[i].Nodes = slices.Clone(out[i].Nodes)
	}
	es.mu.Unlock()
	slices.SortStableFunc(out, func(a, b Event) int { return b.Time.Compare(a.Time) })
	return out
}

// Events are the last events of this node, newest first: at most 2 × 128, since it
// was opened.
func (n *Node) Events() []Event { return n.events.list() }

// note books an event of this moment about an announcement.
func (n *Node) note(kind EventKind, a catalog.Announcement, reason string, nodes ...string) {
	n.events.add(Event{Time: time.Now(), Kind: kind, Reference: a.Reference, Version: a.Version, Nodes: nodes, Reason: reason})
}

// noteNews books what this node has learnt from the catalog of another one, or
// published itself.
func (n *Node) noteNews(recs ...catalog.Record) {
	for _, rec := range recs[max(0, len(recs)-maxEvents):] {
		a := rec.Announcement()
		kind := EventAnnounced
		if a.Withdrawn {
			kind = EventWithdrawn
		}
		n.note(kind, a, "", a.NodeName)
	}
}

// onMember is called by gossip when a member comes or goes.
func (n *Node) onMember(name, state, reason string) {
	kind := EventJoined
	switch state {
	case "left":
		kind = EventLeft
	case "dead":
		kind = EventLost
	}
	n.events.member(kind, name, reason, time.Now())
}
