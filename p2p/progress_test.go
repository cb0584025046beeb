package p2p

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/catalog"
	"seeder/p2p/report"
)

func TestSourcesAreBounded(t *testing.T) {
	t.Parallel()
	if got := sources(nil, 0); got != nil {
		t.Errorf("nothing came from %v", got)
	}
	got := sources(map[string]int64{"b": 5, "a": 5, "c": 7, "none": 0}, 3)
	if want := []report.Source{{Name: "c", Bytes: 7}, {Name: "a", Bytes: 5}, {Name: "b", Bytes: 5}, {Name: report.LocalSource, Bytes: 3}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	raw, sum := map[string]int64{}, int64(0)
	for i := range int64(300) {
		raw[fmt.Sprintf("n%03d", i)] = i + 1
		sum += i + 1
	}
	got = sources(raw, 10)
	if len(got) != maxSources+2 || got[0] != (report.Source{Name: "n299", Bytes: 300}) || got[9] != (report.Source{Name: report.LocalSource, Bytes: 10}) {
		t.Fatalf("%v", got)
	}
	others := got[maxSources]
	for _, s := range got[:maxSources] {
		sum -= s.Bytes
	}
	if others != (report.Source{Name: report.OtherSources, Bytes: sum}) {
		t.Errorf("others %v, want %d bytes", others, sum)
	}
}

func TestReadSources(t *testing.T) {
	t.Parallel()
	var many []report.Source
	for range 1000 {
		many = append(many, report.Source{Name: "n\x1b[2J" + strings.Repeat("x", 2*maxReasonBytes), Bytes: 1})
	}
	got := readSources(many)
	if len(got) != maxSources+2 {
		t.Errorf("%d sources", len(got))
	}
	if strings.Contains(got[0].Name, "\x1b") || len(got[0].Name) > maxReasonBytes+len("…") {
		t.Errorf("name %q", got[0].Name)
	}
	if got := readSources([]report.Source{{Name: "a", Bytes: -1}, {Name: "b", Bytes: 0}, {Name: "c", Bytes: 1}}); !slices.Equal(got, []report.Source{{Name: "c", Bytes: 1}}) {
		t.Errorf("%v", got)
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
	tl := newTally(now)
	tl.holds(10)
	tl.received(now, "a", 20, 8)
	tl.travelled(8)
	tl.restart(now)
	tl.holds(30)
	tl.received(now, "b", 5, 5)
	tl.received(now, "a", 5, 5)
	tl.holds(40)
	o := tl.origin(now.Add(time.Second))
	if want := []report.Source{{Name: "a", Bytes: 25}, {Name: "b", Bytes: 5}, {Name: report.LocalSource, Bytes: 10}}; !slices.Equal(o.sources, want) {
		t.Errorf("sources %v, want %v", o.sources, want)
	}
	if o.rate != 0 {
		t.Errorf("%d B/s after a second", o.rate)
	}
	o = tl.origin(now.Add(5 * time.Second))
	if o.wire != 26 || o.rate != 2 || !slices.Equal(o.peers, []string{"a", "b"}) {
		t.Errorf("%+v", o)
	}
	tl.holds(5) // what came was lost again
	if o := tl.origin(now); o.sources[len(o.sources)-1].Name == report.LocalSource {
		t.Errorf("%v", o.sources)
	}
}

// A node remembers the origin of so many ready images, of the latest ones.
func TestOriginsAreBounded(t *testing.T) {
	t.Parallel()
	c := newCells()
	for i := range maxOrigins + 3 {
		a := catalog.Announcement{Reference: fmt.Sprintf("r%d", i), Version: 1}
		c.begin(a, 0)
		c.update(a, func(x *cell) { x.total = 1 })
		c.tally(a).received(time.Now(), "a", 1, 1)
		c.settle(a, report.Ready, "")
		c.settle(a, report.Ready, "") // looked at again
	}
	for i := range maxOrigins + 3 {
		x, _ := c.get(fmt.Sprintf("r%d", i))
		if kept := len(x.origin.sources) > 0; kept != (i >= 3) || x.origin.rate != 0 {
			t.Errorf("origin of r%d: %+v", i, x.origin)
		}
	}
}

// TestLateWord: the job of an announcement that was superseded may still find its image
// ready, or removed; nothing of that is said of the announcement that stands now.
func TestLateWord(t *testing.T) {
	t.Parallel()
	c := newCells()
	b := board{cells: c, swarms: newSwarms(nil), freed: &freed{}}
	old := catalog.Announcement{Reference: "r", Version: 1, Target: ocispec.Descriptor{Digest: "sha256:a"}}
	rival, now := old, old
	rival.Version, now.Version = 2, 2
	rival.Target.Digest, now.Target.Digest = "sha256:b", "sha256:c" // of one version, from both sides of a partition
	b.Begin(old)
	b.Begin(rival)
	b.Begin(now)
	for _, a := range []catalog.Announcement{old, rival} {
		b.Settle(a, report.Ready, "", 0)
		b.Queue(a, "again")
		b.Remove(a)
		if x, ok := c.get("r"); !ok || x.version != 2 || x.target != "sha256:c" || x.state != report.Waiting || x.reason != "queued" {
			t.Fatalf("after the late word of version %d: %+v, %v", a.Version, x, ok)
		}
	}
	b.Settle(now, report.Ready, "", 0)
	if x, _ := c.get("r"); x.state != report.Ready {
		t.Errorf("%+v, want ready", x)
	}
}
