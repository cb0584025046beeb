package report

import "time"

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
	Nodes     []string // who announced, the peer, the members: the first 8 of Count
	Count     int      // how many times, or of how many members; at least 1
	Reason    string   // of the last time
}
