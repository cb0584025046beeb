package web

import (
	"fmt"

	"seeder/p2p/report"
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
		if row.Of = "by"; e.Kind == report.EventBadChunk {
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

func isMemberEvent(k report.EventKind) bool {
	return k == report.EventJoined || k == report.EventLeft || k == report.EventLost
}

func eventMark(e report.Event) mark {
	switch e.Kind {
	case report.EventReady:
		return mark{"✓", "ready", "ready here"}
	case report.EventAnnounced:
		return mark{"↓", "fetching", "announced"}
	case report.EventWithdrawn:
		return mark{"–", "excluded", "withdrawn"}
	case report.EventFailed:
		return mark{"!", "failed", "failed here"}
	case report.EventWaiting:
		return mark{"…", "waiting", "waits here"}
	case report.EventRemoved:
		return mark{"!", "waiting", "removed here"}
	case report.EventBadChunk:
		return mark{"!", "failed", "bad chunk"}
	case report.EventUp:
		return mark{"✓", "ready", "containerd answers"}
	case report.EventDown:
		return mark{"!", "failed", "containerd is away"}
	case report.EventJoined:
		return mark{"+", "ready", countOf(e.Count, "member joined", "members joined")}
	case report.EventLeft:
		return mark{"–", "excluded", countOf(e.Count, "member left", "members left")}
	case report.EventLost:
		return mark{"!", "failed", fmt.Sprintf("%s answer", countOf(e.Count, "member does not", "members do not"))}
	}
	return mark{"·", "waiting", cleanText(string(e.Kind), maxName)}
}
