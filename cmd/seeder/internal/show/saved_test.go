package show

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// TestSavings: every figure of what was saved, from what the nodes say.
func TestSavings(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	src := func(name string, n int64) report.Source { return report.Source{Name: name, Bytes: n * mib} }
	row := report.ImageState{Reference: "docker.io/library/app:v1", AnnouncedBy: "h0", Nodes: []report.NodeState{
		{Name: "h0", State: report.Ready, TotalBytes: 100 * mib, SentBytes: 110 * mib},
		{Name: "h1", State: report.Ready, TotalBytes: 100 * mib, SentBytes: 50 * mib, WireBytes: 40 * mib, Sources: []report.Source{src("h0", 60), src("h2", 40)}},
		{Name: "h2", State: report.Ready, TotalBytes: 100 * mib, WireBytes: 36 * mib, Sources: []report.Source{src("h0", 50), src("h1", 30), src("local", 20)}},
		{Name: "h3", State: report.Ready, TotalBytes: 90 * mib, WireBytes: 36 * mib, Sources: []report.Source{src("others", 90)}}, // another platform
		{Name: "h4", State: report.Ready, TotalBytes: 100 * mib},
		{Name: "h5", State: report.Ready, TotalBytes: 100 * mib, Sources: []report.Source{src("local", 100)}},
		{Name: "h6", State: report.Fetching, TotalBytes: 100 * mib, WireBytes: 1, Sources: []report.Source{src("h0", 5)}}, // away in the meantime
		{Name: "h7", State: report.Excluded},
	}}
	got := control.Savings(row)
	want := control.Saved{Announcer: "h0", Nodes: 3, Had: 2, ImageBytes: 100 * mib, FetchedBytes: 270 * mib, LeastBytes: 80 * mib, MostBytes: 100 * mib,
		LocalBytes: 20 * mib, WireBytes: 112 * mib, SentBytes: 110 * mib}
	if got != want {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	lines := SavedLines(got, 6123*time.Millisecond, true)
	if want := []string{
		"3 nodes got 270 MiB in all, 80 MiB to 100 MiB each in 6.12s, compressed to 41 %; 20 MiB were there already; 2 other nodes fetched nothing",
		"this host sent 1.1 × the image before compression, the other nodes gave each other the rest (59 %)",
	}; !slices.Equal(lines, want) {
		t.Errorf("%q\nwant %q", lines, want)
	}
}

func TestSavedLines(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, c := range []struct {
		name string
		s    control.Saved
		took time.Duration
		here bool
		want string
	}{
		{"nothing is known", control.Saved{}, time.Second, true, ""},
		{"announced again", control.Saved{Announcer: "h0", Had: 3}, 0, true, "nothing was fetched: 3 other nodes had all of it"},
		{"one node", control.Saved{Announcer: "h0", Nodes: 1, ImageBytes: mib, FetchedBytes: mib, LeastBytes: mib, MostBytes: mib, WireBytes: mib, SentBytes: mib}, time.Second, true,
			"1 node got 1 MiB in 1s|this host sent 1.0 × the image"},
		{"wait elsewhere", control.Saved{Announcer: "h\x1b0", Nodes: 2, ImageBytes: mib, FetchedBytes: 2 * mib, LeastBytes: mib, MostBytes: mib, WireBytes: mib, SentBytes: mib}, 0, false,
			"2 nodes got 1 MiB each, compressed to 50 %|h?0 sent 1.0 × the image before compression, the other nodes gave each other the rest (50 %)"},
		{"more was sent than came", control.Saved{Announcer: "h0", Nodes: 1, ImageBytes: mib, FetchedBytes: mib, LeastBytes: mib, MostBytes: mib, WireBytes: 2 * mib, SentBytes: 3 * mib}, 0, true,
			"1 node got 1 MiB|this host sent 3.0 × the image"},
		{"the announcer is gone", control.Saved{Announcer: "h0", Nodes: 2, ImageBytes: mib, FetchedBytes: 2 * mib, LeastBytes: mib, MostBytes: mib}, 0, false, "2 nodes got 1 MiB each"},
	} {
		if got := strings.Join(SavedLines(c.s, c.took, c.here), "|"); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// What nodes claim does not overflow.
func TestSavingsOfLiars(t *testing.T) {
	t.Parallel()
	liar := report.NodeState{Name: "x", State: report.Ready, TotalBytes: math.MaxInt64, DoneBytes: math.MaxInt64, WireBytes: math.MaxInt64, SentBytes: math.MaxInt64,
		RateBytesPerSecond: math.MaxInt64, Sources: []report.Source{{Name: "a", Bytes: math.MaxInt64}, {Name: report.LocalSource, Bytes: math.MaxInt64}}}
	row := report.ImageState{AnnouncedBy: "x", Total: 3, Nodes: []report.NodeState{liar, liar, liar}}
	s := control.Savings(row)
	if s.FetchedBytes != math.MaxInt64 || s.LocalBytes != math.MaxInt64 || s.SentBytes != math.MaxInt64 {
		t.Errorf("%+v", s)
	}
	text := strings.Join(SavedLines(s, time.Second, true), "\n") + imageLine(row)
	for i := range row.Nodes {
		row.Nodes[i].State = report.Fetching
	}
	if text += imageLine(row) + fetchingLine(row.Nodes); strings.Contains(text, "-") || strings.Contains(text, "NaN") {
		t.Error(text)
	}
}

func TestLeft(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		done, total, rate int64
		want              string
	}{
		{0, 100, 0, ""}, {100, 100, 10, ""}, {90, 100, 1000, "1s left"}, {0, 100, 10, "10s left"},
		{0, 1300, 10, "2m10s left"}, {0, 36_600, 10, "1h1m left"}, {0, 72_000, 10, "2h0m left"}, {0, 5_000_000, 10, "days left"}, {0, math.MaxInt64, 1, "days left"},
	} {
		if got := term.Remaining(c.done, c.total, c.rate); got != c.want {
			t.Errorf("left(%d, %d, %d) = %q, want %q", c.done, c.total, c.rate, got, c.want)
		}
	}
}

func TestWrap(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text          string
		width, indent int
		want          string
	}{
		{"", 10, 2, ""}, {"a b", 0, 2, "a b"}, {"aa bb cc dd", 5, 2, "aa bb|  cc|  dd"}, {"aa aaaaaaaaaaaa b", 5, 0, "aa|aaaaaaaaaaaa|b"},
	} {
		if got := strings.Join(term.Wrap(c.text, c.width, c.indent), "|"); got != c.want {
			t.Errorf("wrap(%q, %d) = %q, want %q", c.text, c.width, got, c.want)
		}
	}
}

// TestPlainOfManyNodes: in a pipe, hundreds of nodes are summed up now and then; those
// that fail are told.
func TestPlainOfManyNodes(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	v := &plainView{w: &out, start: time.Now(), cells: map[string]plainCell{}}
	img := busyCluster(300).Images[0]
	begin := time.Unix(1_700_000_000, 0)
	for i := range 60 { // 100 ms apart
		v.show(control.Event{Event: control.EventProgress, Time: begin.Add(time.Duration(i) * 100 * time.Millisecond), Ref: img.Reference, Image: &img})
	}
	v.close()
	if n := strings.Count(out.String(), "app:v1: ready on 190 of 300 nodes, 70%, 1m16s left, then unpacking, 360 MiB/s; 30 fetching, 30 waiting, 20 failed, 30 unreachable\n"); n != 2 {
		t.Errorf("%d lines for all nodes, want 2:\n%s", n, out.String())
	}
	if n := strings.Count(out.String(), "failed (no room on ?[2Jthe disk)\n"); n != 20 {
		t.Errorf("%d nodes failed, want 20:\n%s", n, out.String())
	}
	if n := strings.Count(out.String(), "\n"); n != 22 {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
}

// TestPlainUnpacking: in a pipe, the layers that are unpacked are told now and then, and
// the same layer once, however long it takes.
func TestPlainUnpacking(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	v := &plainView{w: &out, start: time.Now(), cells: map[string]plainCell{}}
	begin := time.Unix(1_700_000_000, 0)
	for i := range 30 {
		img := report.ImageState{Reference: "app:v1", Total: 1, Nodes: []report.NodeState{{Name: "h2", State: report.Importing,
			Reason: fmt.Sprintf("all data received, unpacking layer %d of 4", min(i/4+1, 3)), TotalBytes: 9, DoneBytes: 9}}}
		v.show(control.Event{Event: control.EventProgress, Time: begin.Add(time.Duration(i) * time.Second), Ref: img.Reference, Image: &img})
	}
	v.close()
	const want = "app:v1 on h2: importing (all data received, unpacking layer 1 of 4)\n" +
		"app:v1 on h2: importing (all data received, unpacking layer 2 of 4)\n" +
		"app:v1 on h2: importing (all data received, unpacking layer 3 of 4)\n"
	if out.String() != want {
		t.Errorf("%s", out.String())
	}
}
