package web

import (
	"fmt"

	"seeder/p2p"
)

// eventRow is something that happened, as the page tells it.
type eventRow struct {
	At      stamp
	Kind    mark
	Image   string
	Version uint64
	Of      string // what Nodes are to Image: by, from
	Nodes   names
	Times   int // more than once, else 0
	Reason  string
}

func newEventRows(l *look) []eventRow {
	var rows []eventRow
	for _, e := range l.events[:min(len(l.events), maxEventRows)] {
		row := eventRow{At: stampOf(e.Time, l.at), Kind: eventMark(e), Version: e.Version, Reason: cleanText(e.Reason, maxReason)}
		if e.Reference != "" {
			row.Image = cleanRef(e.Reference)
		}
		if row.Of = "by"; e.Kind == p2p.EventBadChunk {
			row.Of = "from"
		}
		count := len(e.Nodes)
		if isMemberEvent(e.Kind) {
			count = e.Count
		} else if e.Count > 1 {
			row.Times = e.Count
		}
		row.Nodes = namesOf(e.Nodes, count, 4, cleanName)
		rows = append(rows, row)
	}
	return rows
}

func isMemberEvent(k p2p.EventKind) bool {
	return k == p2p.EventJoined || k == p2p.EventLeft || k == p2p.EventLost
}

func eventMark(e p2p.Event) mark {
	switch e.Kind {
	case p2p.EventReady:
		return mark{"✓", "ready", "ready here"}
	case p2p.EventAnnounced:
		return mark{"↓", "fetching", "announced"}
	case p2p.EventWithdrawn:
		return mark{"–", "excluded", "withdrawn"}
	case p2p.EventFailed:
		return mark{"!", "failed", "failed here"}
	case p2p.EventWaiting:
		return mark{"…", "waiting", "waits here"}
	case p2p.EventRemoved:
		return mark{"!", "waiting", "removed here"}
	case p2p.EventBadChunk:
		return mark{"!", "failed", "bad chunk"}
	case p2p.EventUp:
		return mark{"✓", "ready", "containerd answers"}
	case p2p.EventDown:
		return mark{"!", "failed", "containerd is away"}
	case p2p.EventJoined:
		return mark{"+", "ready", countOf(e.Count, "member joined", "members joined")}
	case p2p.EventLeft:
		return mark{"–", "excluded", countOf(e.Count, "member left", "members left")}
	case p2p.EventLost:
		return mark{"!", "failed", fmt.Sprintf("%s answer", countOf(e.Count, "member does not", "members do not"))}
	}
	return mark{"·", "waiting", cleanText(string(e.Kind), maxName)}
}
