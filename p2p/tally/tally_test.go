package tally

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"seeder/p2p/report"
)

func TestSourcesAreBounded(t *testing.T) {
	t.Parallel()
	if got := sources(nil, 0, 0); got != nil {
		t.Errorf("nothing came from %v", got)
	}
	got := sources(map[string]int64{"b": 5, "a": 5, "c": 7, "none": 0}, 4, 3)
	if want := []report.Source{{Name: "c", Bytes: 7}, {Name: "a", Bytes: 5}, {Name: "b", Bytes: 5}, {Name: report.DeltaSource, Bytes: 4}, {Name: report.LocalSource, Bytes: 3}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	raw, sum := map[string]int64{}, int64(0)
	for i := range int64(300) {
		raw[fmt.Sprintf("n%03d", i)] = i + 1
		sum += i + 1
	}
	got = sources(raw, 0, 10)
	if len(got) != MaxNamed+2 || got[0] != (report.Source{Name: "n299", Bytes: 300}) || got[9] != (report.Source{Name: report.LocalSource, Bytes: 10}) {
		t.Fatalf("%v", got)
	}
	others := got[MaxNamed]
	for _, s := range got[:MaxNamed] {
		sum -= s.Bytes
	}
	if others != (report.Source{Name: report.OtherSources, Bytes: sum}) {
		t.Errorf("others %v, want %d bytes", others, sum)
	}
}

func TestRate(t *testing.T) {
	t.Parallel()
	start := time.Unix(1_700_000_000, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	r := rate{start: start}
	if got := r.perSecond(start); got != 0 {
		t.Errorf("%d B/s before anything came", got)
	}
	for i := range 40 { // 1 MB each 100 ms for 4 s
		r.add(at(time.Duration(i+1)*100*time.Millisecond), 1_000_000)
	}
	if got := r.perSecond(at(4 * time.Second)); got != 10_000_000 {
		t.Errorf("%d B/s after 4 s, want 10,000,000", got)
	}
	if got := r.perSecond(at(8 * time.Second)); got != 5_000_000 {
		t.Errorf("%d B/s when nothing came for 4 s, want 5,000,000", got)
	}
	if got := r.perSecond(at(12 * time.Second)); got <= 0 || got >= 5_000_000 {
		t.Errorf("%d B/s after 8 s of silence", got)
	}
	if got := r.perSecond(at(time.Minute)); got != 0 {
		t.Errorf("%d B/s a minute later", got)
	}
	r.add(at(2*time.Minute), 500)
	if got := r.perSecond(at(2 * time.Minute)); got != 500*1000/9500 {
		t.Errorf("%d B/s, want 500 B over the 9.5 s of the window that have begun", got)
	}
}

// What an earlier try has fetched is not taken for local by the next one.
func TestTallyOverTries(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	tl := New(now)
	tl.Holds(10)
	tl.Received("a", 20, 8)
	tl.Arrived(now, 20)
	tl.Travelled(8)
	tl.Restart(now)
	tl.Holds(30)
	tl.Received("b", 5, 5)
	tl.Received("a", 5, 5)
	tl.Arrived(now, 10)
	tl.Holds(40)
	o := tl.Origin(now.Add(time.Second))
	if want := []report.Source{{Name: "a", Bytes: 25}, {Name: "b", Bytes: 5}, {Name: report.LocalSource, Bytes: 10}}; !slices.Equal(o.Sources, want) {
		t.Errorf("sources %v, want %v", o.Sources, want)
	}
	if o.Rate != 0 {
		t.Errorf("%d B/s after a second", o.Rate)
	}
	o = tl.Origin(now.Add(5 * time.Second))
	if o.Wire != 26 || o.Rate != 2 || !slices.Equal(o.Peers, []string{"a", "b"}) {
		t.Errorf("%+v", o)
	}
	tl.Holds(5) // what came was lost again
	if o := tl.Origin(now); o.Sources[len(o.Sources)-1].Name == report.LocalSource {
		t.Errorf("%v", o.Sources)
	}
}
