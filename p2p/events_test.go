package p2p

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"seeder/p2p/report"
)

// TestEventsAreBounded: however many things happen, and whatever members call
// themselves, so many are kept, newest first, and members do not push out failures.
func TestEventsAreBounded(t *testing.T) {
	t.Parallel()
	var es events
	start := time.Now()
	es.add(report.Event{Time: start, Kind: report.EventFailed, Reference: "app", Version: 1, Reason: "disk full"})
	for i := range 1000 {
		at := start.Add(time.Duration(i) * time.Minute)
		es.member([]report.EventKind{report.EventJoined, report.EventLost}[i%2], fmt.Sprintf("n%d\x1b[2J%s", i, strings.Repeat("x", 1000)), strings.Repeat("é", 1000), at)
	}
	list := es.list()
	if len(list) != maxEvents+1 || list[len(list)-1].Reason != "disk full" {
		t.Fatalf("%d events, last %+v", len(list), list[len(list)-1])
	}
	if !slices.IsSortedFunc(list, func(a, b report.Event) int { return b.Time.Compare(a.Time) }) {
		t.Error("not newest first")
	}
	for _, e := range list[:maxEvents] {
		if len(e.Nodes) != 1 || len(e.Nodes[0]) > maxEventName+len("…") || len(e.Reason) > report.MaxTextBytes+len("…") || strings.Contains(e.Nodes[0], "\x1b") {
			t.Fatalf("%+v", e)
		}
	}
	for i := range 1000 {
		es.add(report.Event{Time: start, Kind: report.EventReady, Reference: fmt.Sprint("app", i)})
	}
	if got := len(es.list()); got != 2*maxEvents {
		t.Errorf("%d events, want %d", got, 2*maxEvents)
	}
}

// TestEventsCount: the same again is one event of the last time; members that come
// together are one.
func TestEventsCount(t *testing.T) {
	t.Parallel()
	var es events
	start := time.Now()
	es.add(report.Event{Time: start, Kind: report.EventFailed, Reference: "app", Version: 1, Reason: "first"})
	es.add(report.Event{Time: start.Add(time.Second), Kind: report.EventReady, Reference: "other", Version: 1})
	es.add(report.Event{Time: start.Add(2 * time.Second), Kind: report.EventFailed, Reference: "app", Version: 1, Reason: "second"})
	es.add(report.Event{Time: start.Add(3 * time.Second), Kind: report.EventFailed, Reference: "app", Version: 2})
	list := es.list()
	if len(list) != 3 || list[1].Count != 2 || list[1].Reason != "second" || list[2].Reference != "other" {
		t.Errorf("%+v", list)
	}
	for i := range 300 {
		es.member(report.EventJoined, fmt.Sprintf("n%d", i%200), "", start.Add(time.Minute))
	}
	es.member(report.EventJoined, "late", "", start.Add(time.Minute+oneBurst+1))
	es.member(report.EventLeft, "late", "", start.Add(time.Minute+oneBurst+2))
	list = es.list()
	if len(list) != 6 || list[0].Kind != report.EventLeft || list[1].Nodes[0] != "late" || list[2].Count != 300 || len(list[2].Nodes) != maxEventNodes {
		t.Errorf("%+v", list)
	}
	list[2].Nodes[0] = "changed"
	if es.list()[2].Nodes[0] != "n0" {
		t.Error("who reads the list writes into the events")
	}
}

// TestEventsTogether is for the race detector: events come from many goroutines.
func TestEventsTogether(t *testing.T) {
	t.Parallel()
	var es events
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for j := range 200 {
				es.add(report.Event{Time: time.Now(), Kind: report.EventReady, Reference: fmt.Sprint(i, j%20)})
				es.member(report.EventJoined, fmt.Sprint(i), "", time.Now())
				for _, e := range es.list() {
					_ = strings.Join(e.Nodes, "")
				}
			}
		})
	}
	group.Wait()
	total := 0
	for _, e := range es.list() {
		total += e.Count
	}
	if total > 2*8*200 || total < 8*200 {
		t.Errorf("%d", total)
	}
}
