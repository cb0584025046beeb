package web

import (
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"seeder/p2p/report"
)

// section is what stands on the page below a heading, "" where it is hidden or not there.
func section(doc *html.Node, heading string) string {
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode || n.Data != "section" || slices.ContainsFunc(n.Attr, func(a html.Attribute) bool { return a.Key == "hidden" }) {
			continue
		}
		if said := text(n); strings.HasPrefix(said, heading) {
			return said
		}
	}
	return ""
}

func wantSaid(t *testing.T, said string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(said, w) {
			t.Errorf("no %q in %s", w, said[:min(len(said), 3000)])
		}
	}
}

// TestPageSections: what unfolds below an image, the last rollouts, traffic, who gave to
// whom, and the members with their disks, at 3 and at 300 nodes.
func TestPageSections(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{3, 300} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			t.Parallel()
			m := makeUp(nodes, 5)
			m.images.Images[0].On = []string{"zone=a"}
			m.members.Members[1].Host.ContainerdAway = "no such socket"
			m.members.Members[2].Version = "0.8.0"
			doc := document(t, getPage(t, pageHandler(t, m), "/").Body.String())
			images := section(doc, "Images")
			wantSaid(t, images, "Digest sha256:"+strings.Repeat("0", 63)+"2 Copy", "Placement for nodes with zone=a; ready on edge-001", "Platforms linux/amd64, linux/arm64",
				"000000000000 1 MiB for linux/amd64", "2 more, 27 MiB", "bbbbbbbbbbbb: seeder announce --rollback grafana/loki:v1", "cccccccccccc: seeder announce grafana/loki:v1@sha256:"+strings.Repeat("c", 64))
			behind := section(doc, "Not ready, and why")
			wantSaid(t, behind, "no space left on device k3s crictl rmi --prune # on")
			wantSaid(t, section(doc, "Traffic of this node"), "received nothing sent nothing", "The chart covers 10 minutes; its top is")
			wantSaid(t, section(doc, "Who gave to whom"), "To edge-001 edge-002")
			members := section(doc, "Members")
			wantSaid(t, members, " versions run side by side: 0.9.0 on", "0.8.0 on 1", "! 0.8.0 differs", "! away no such socket", "GiB of 252 GiB", "2.0.5-k3s1")
			if rollouts := section(doc, "Last rollouts"); nodes == 3 { // of 300 some wait
				wantSaid(t, rollouts, "k3s-dashboard:v1 version", "about a minute ago by edge-001 4", "3 of 3", "compressed to 40 %", "edge-001 sent 1.2 × the image")
			} else if strings.Contains(rollouts, "grafana/loki:v1") {
				t.Errorf("an image that is on its way is called rolled out: %s", rollouts)
			}
			if nodes == 300 {
				wantSaid(t, section(doc, "Who gave to whom"), "others")
			}
		})
	}
}

// TestPageQuiet: where nothing waits and nothing is on its way, one line says so.
func TestPageQuiet(t *testing.T) {
	t.Parallel()
	doc := document(t, getPage(t, pageHandler(t, makeUp(3, 1)), "/").Body.String())
	if said := section(doc, "All quiet"); said == "" {
		t.Error("it does not say that all is quiet")
	}
	for _, heading := range []string{"Not ready, and why", "Transfers"} {
		if said := section(doc, heading); said != "" {
			t.Errorf("it says beside: %s", said)
		}
	}
}

// TestTransfersKeepTheirPlaces: rows stand where they stood while the figures change.
func TestTransfersKeepTheirPlaces(t *testing.T) {
	t.Parallel()
	m := makeUp(9, 2)
	order := func() string {
		v := newTransfersView(m.images.Images, name(4))
		var names []string
		for _, r := range v.First {
			names = append(names, r.Node)
		}
		return strings.Join(names, " ")
	}
	before := order()
	for i := range m.images.Images {
		for j := range m.images.Images[i].Nodes {
			n := &m.images.Images[i].Nodes[j]
			n.DoneBytes = n.TotalBytes - n.DoneBytes
		}
	}
	if after := order(); after != before || !strings.HasPrefix(after, name(4)+" ") && strings.Contains(after, name(4)) {
		t.Errorf("%q, then %q", before, after)
	}
}

// TestBarShowsProgress: of the nodes that fetch an image only as much is filled as they have.
func TestBarShowsProgress(t *testing.T) {
	t.Parallel()
	img := report.ImageState{Total: 3, Nodes: []report.NodeState{{Name: "a", State: report.Ready},
		{Name: "b", State: report.Fetching, DoneBytes: 20, TotalBytes: 100}, {Name: "c", State: report.Fetching, DoneBytes: 10, TotalBytes: 100}}}
	if got, want := newImageRow(img, nil).Bar, []barPart{{"ready", 0, 100}, {"fetching", 100, 30}, {"rest", 130, 170}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestFlowsAreBounded: the largest have a row and a column of their own, the rest is summed
// up, and nothing is lost.
func TestFlowsAreBounded(t *testing.T) {
	t.Parallel()
	var img report.ImageState
	for i := range 40 {
		img.Nodes = append(img.Nodes, report.NodeState{Name: name(i), Sources: []report.Source{
			{Name: name((i + 1) % 40), Bytes: int64(i+1) << 20}, {Name: report.LocalSource, Bytes: 1 << 40}, {Name: report.OtherSources, Bytes: 1 << 20}}})
	}
	v := newFlowsView([]report.ImageState{img})
	if len(v.Rows) != maxFlowNodes+1 || len(v.Givers) != maxFlowNodes+1 || v.Rows[maxFlowNodes].To != restName || v.Givers[maxFlowNodes] != restName {
		t.Fatalf("%+v", v)
	}
	if !slices.IsSorted(v.Givers[:maxFlowNodes]) || v.Rows[maxFlowNodes-1].To != name(39) || v.Rows[maxFlowNodes].Cells[maxFlowNodes].Bytes == "" {
		t.Errorf("%+v", v)
	}
	for _, r := range v.Rows {
		for _, c := range r.Cells {
			if c.Heat > maxHeat || (c.Heat > 0) != (c.Bytes != "") {
				t.Errorf("%+v", c)
			}
		}
	}
	if v := newFlowsView(nil); len(v.Rows) != 0 {
		t.Errorf("%+v", v)
	}
}

// TestTrafficChart: the newest slot, which is not over, is no part of the chart, so that a
// page on which nothing happens stays the same.
func TestTrafficChart(t *testing.T) {
	t.Parallel()
	r := report.Traffic{Slot: 5 * time.Second, In: []int64{0, 5 << 20, 10 << 20, 7}, Out: []int64{0, 0, 0, 9 << 30}}
	v := newTrafficView(r)
	if v.In != "M0 40L0 40.0L1 20.0L2 0.0L2 40Z" || v.Out != "" || v.NowIn != "2 MiB/s" || v.NowOut != "nothing" || v.Most != "2 MiB/s" || v.Width != 2 {
		t.Errorf("%+v", v)
	}
	if v := newTrafficView(report.Traffic{}); v.Width != 0 {
		t.Errorf("%+v", v)
	}
}

// TestDetailsAreAskedOnce: for each image and half minute, and again for a new version.
func TestDetailsAreAskedOnce(t *testing.T) {
	t.Parallel()
	m := makeUp(3, 4)
	p := newPage(m, nil, slog.New(slog.DiscardHandler))
	t.Cleanup(p.Close)
	mux := http.NewServeMux()
	p.routes(mux)
	getPage(t, mux, "/")
	getPage(t, mux, "/")
	if got := m.described.Load(); got != 4 {
		t.Errorf("asked %d times for 4 images", got)
	}
	img := m.images.Images[0]
	img.Version++
	p.details.of(t.Context(), img, time.Now())
	p.details.of(t.Context(), img, time.Now())
	p.details.of(t.Context(), img, time.Now().Add(keepDetail+time.Second))
	if got := m.described.Load(); got != 6 {
		t.Errorf("asked %d times, want once for the new version and once more later", got)
	}
}

// TestDo: for each reason that somebody can do something about there is a command, with the
// host to run it on.
func TestDo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		n     report.NodeState
		nodes int
		want  string
	}{
		{report.NodeState{Name: "h3", State: report.Unreachable, Away: true}, 1, "systemctl status seeder  # on h3"},
		{report.NodeState{Name: "h3", State: report.Unreachable}, 2, "seeder doctor  # on each of these"},
		{report.NodeState{Name: "h3", State: report.Failed, Reason: "import: no space left on device"}, 1, "k3s crictl rmi --prune  # on h3"},
		{report.NodeState{Name: "h3", State: report.Failed, Reason: "import: unpack"}, 1, "seeder doctor  # on h3"},
		{report.NodeState{Name: "h3", State: report.Waiting, Reason: "waiting for containerd: no socket"}, 1, "systemctl status k3s k3s-agent  # on h3"},
		{report.NodeState{Name: "h3", State: report.Waiting, Reason: "the disk of /var/lib lacks 1 GiB"}, 1, "k3s crictl rmi --prune  # on h3"},
		{report.NodeState{Name: "h3", State: report.Waiting, Reason: "no reachable member has the seed index"}, 1, "seeder announce app:v1  # on a host that has it"},
		{report.NodeState{Name: "h3", State: report.Waiting, Reason: "has not heard of version 2 yet"}, 1, "seeder doctor  # on h3"},
		{report.NodeState{Name: "h3", State: blocked, Reason: "the kubelet refuses it: rm FILE"}, 1, "rm FILE  # on h3"},
		{report.NodeState{Name: "h3", State: report.Waiting, Reason: "queued"}, 1, ""},
		{report.NodeState{Name: "h3", State: report.Excluded, Reason: "images.accept"}, 1, ""},
	} {
		if got := doAbout(c.n, "docker.io/library/app:v1", c.nodes); got != c.want {
			t.Errorf("%+v: %q, want %q", c.n, got, c.want)
		}
	}
}

// TestPageTellsNodesApart: each section says which node it speaks of, and what is the matter
// there: who gave how much to whom, what is unpacked, who is left out, whose disk is full.
func TestPageTellsNodesApart(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	m := makeUp(5, 1)
	img := &m.images.Images[0]
	img.Nodes = []report.NodeState{
		{Name: name(0), State: report.Ready, SentBytes: 60 * mib},
		{Name: name(1), State: report.Ready, Sources: []report.Source{{Name: name(0), Bytes: 60 * mib}, {Name: report.LocalSource, Bytes: 7 * mib}}},
		{Name: name(2), State: report.Importing, DoneBytes: 90 * mib, TotalBytes: 90 * mib, Reason: "all data received, unpacking layer 3 of 4"},
		{Name: name(3), State: report.Excluded, Reason: "announced with --on gpu=true, this node has no label gpu"},
		{Name: name(4), State: report.Waiting, Reason: "shares a layer with other:1, which is being fetched"},
	}
	img.Ready, img.Total = 2, 4
	for i := range m.members.Members {
		m.members.Members[i].Host.FreeBytes = 99 << 30
	}
	m.members.Members[1].Host.FreeBytes = 9 << 30
	m.traffic.In, m.traffic.Out = []int64{0, 5 * mib, 10 * mib, 0}, []int64{0, 0, 5 * mib, 0}
	body := getPage(t, pageHandler(t, m), "/").Body.String()
	doc := document(t, body)
	wantSaid(t, section(doc, "Who gave to whom"), "To edge-001 edge-002 60 MiB")
	wantSaid(t, section(doc, "Transfers"), "edge-003", "importing", "all data received, unpacking layer 3 of 4")
	wantSaid(t, section(doc, "Images"), "ready on edge-001, edge-002; not for edge-004")
	wantSaid(t, section(doc, "Not ready, and why"), "waiting shares a layer with other:1, which is being fetched wait", "this node has no label gpu nothing")
	wantSaid(t, section(doc, "Members"), "! 9 GiB of 252 GiB", " 99 GiB of 252 GiB")
	if said := section(doc, "Members"); strings.Count(said, "! ") != 1 {
		t.Errorf("another disk than the one that is full is marked: %s", said)
	}
	want := newTrafficView(m.traffic)
	if wantSaid(t, body, `<path class="in" d="`+want.In+`"/>`, `<path class="out" d="`+want.Out+`"/>`); want.In == want.Out || want.Out == "" {
		t.Errorf("%+v", want)
	}
}
