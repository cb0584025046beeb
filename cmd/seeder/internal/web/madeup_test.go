package web

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/control/controltest"
	"seeder/cmd/seeder/internal/pods"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// madeUp is a cluster that exists in its figures alone.
type madeUp struct {
	*controltest.Node // what changes something, which nobody asks of it
	images            report.Images
	members           report.Members
	status            report.Status
	events            []report.Event
	traffic           report.Traffic
	asked, described  atomic.Int32
	hold              chan struct{} // not nil: an answer comes when it is closed
}

func (m *madeUp) Images(ctx context.Context, _ ...string) (report.Images, error) {
	m.asked.Add(1)
	if m.hold != nil {
		select {
		case <-m.hold:
		case <-ctx.Done():
			return report.Images{}, ctx.Err()
		}
	}
	return m.images, nil
}
func (m *madeUp) Members() report.Members              { return m.members }
func (m *madeUp) Status(context.Context) report.Status { return m.status }
func (m *madeUp) Events() []report.Event               { return m.events }

func (m *madeUp) Traffic() report.Traffic { return m.traffic }

// Pods makes up one that waits for what failed, and one for what nobody has announced.
func (m *madeUp) Pods(context.Context) pods.Found {
	f := pods.Found{Asked: true}
	for i, img := range m.images.Images {
		if i == 1 {
			f.List = []pods.Waiting{{Namespace: "web", Name: "dashboard-7c9f", Node: name(2), Image: cli.ShortRef(img.Reference), Policy: "Never", Reason: "ErrImageNeverPull"},
				{Namespace: "shop", Name: "cart-5d88", Node: name(1), Image: "cart:v3", Policy: "IfNotPresent", Reason: "ImagePullBackOff"}}
		}
	}
	return f
}

// Describe makes up three layers, the first image more than are shown, and two versions
// before.
func (m *madeUp) Describe(_ context.Context, ref string) report.ImageDetail {
	m.described.Add(1)
	d := report.ImageDetail{Kept: []string{"sha256:" + strings.Repeat("b", 64), "sha256:" + strings.Repeat("c", 64)}, Platforms: []string{"linux/amd64", "linux/arm64"}}
	layers := 3
	if len(m.images.Images) > 0 && ref == m.images.Images[0].Reference {
		layers = maxLayerRows + 2
	}
	for i := range layers {
		d.Layers = append(d.Layers, report.Layer{Digest: fmt.Sprintf("sha256:%064x", i+1), Bytes: int64(i+1) << 20, Platforms: d.Platforms[i%2 : i%2+1]})
	}
	return d
}

// makeUp is a cluster of so many nodes that hold so many images, or are on the way
// there. The same figures come from the same numbers.
func makeUp(nodes, images int) *madeUp {
	r := rand.New(rand.NewPCG(uint64(nodes), uint64(images)))
	m := &madeUp{Node: &controltest.Node{}, members: report.Members{Members: []report.MemberState{}}, images: report.Images{Images: []report.ImageState{}}}
	now := time.Now()
	for i := range nodes {
		ms := report.MemberState{Name: name(i), Address: fmt.Sprintf("10.0.%d.%d:7951", i/250, 1+i%250), State: "alive", Version: "0.9.0", ID: fmt.Sprintf("%032x", i+1)}
		ms.Since = now.Add(-time.Duration(i%9) * time.Hour)
		ms.Host = &report.Host{Containerd: "2.0.5-k3s1", FreeBytes: int64(9+i%50) << 30, DiskBytes: 252 << 30}
		switch {
		case nodes > 20 && i == 11, nodes > 20 && i == 170:
			ms.State, ms.Since = "dead", now.Add(-time.Hour)
		case nodes > 20 && i == 42:
			ms.State = "left"
		case nodes > 20 && i == 99:
			ms.Version, ms.Reason = "0.3.1", "speaks protocol 0 to 0 (version 0.3.1), this node 1; upgrade the older of the two"
		}
		m.members.Members = append(m.members.Members, ms)
	}
	m.status = report.Status{
		Node: name(0), ID: fmt.Sprintf("%032x", 1), Version: "0.9.0", Members: max(nodes-3*min(nodes/20, 1), min(nodes, 1)), Converged: images == 0,
		Containerd: report.ContainerdStatus{Address: "/run/k3s/containerd/containerd.sock", Version: "2.0.5-k3s1", OK: true}, Join: report.JoinStatus{OK: true},
		Images: report.ImageCount{Ready: max(images-1, 0), Total: images}, Disk: report.DiskStatus{FreeBytes: 120 << 30},
	}
	apps := []string{"k3s-dashboard", "docker.io/grafana/loki", "registry.example.org/shop/checkout", "registry.example.com/acme/vision", "k3s-dashboard-proxy", "registry.example.net/acme/ingest"}
	for i := range images {
		ref := fmt.Sprintf("%s:v%d", apps[i%len(apps)], 1+i/len(apps))
		if full, err := cli.NormalizeRef(ref); err == nil {
			ref = full
		}
		bytes := int64(20+r.IntN(900)) << 20
		img := report.ImageState{Reference: ref, Digest: "sha256:" + fmt.Sprintf("%064x", i+1), Version: uint64(1 + r.IntN(9)), Size: bytes, State: "announced",
			AnnouncedBy: name(i % max(nodes, 1)), AnnouncedAt: now.Add(-time.Duration(1+i*i*7) * time.Minute), Nodes: []report.NodeState{}}
		for j := range nodes {
			img.Nodes = append(img.Nodes, madeUpCell(r, m.members.Members[j], i, j, nodes, bytes))
			if c := img.Nodes[j]; m.members.Members[j].State == "left" {
				img.Nodes[j].Name = "" // not asked
			} else if c.State != report.Excluded {
				img.Total++
				if c.Away {
					img.Away++
				}
				if c.State == report.Ready {
					img.Ready++
				}
			}
		}
		img.Nodes = slices.DeleteFunc(img.Nodes, func(n report.NodeState) bool { return n.Name == "" })
		m.images.Images = append(m.images.Images, img)
	}
	slices.SortFunc(m.images.Images, func(a, b report.ImageState) int { return strings.Compare(a.Reference, b.Reference) })
	m.events = madeUpEvents(m, now)
	m.traffic = report.Traffic{Slot: 5 * time.Second}
	for i := range 120 {
		bytes := int64(0)
		if i > 40 && i < 110 {
			bytes = int64(20+r.IntN(40)) << 20
		}
		m.traffic.In, m.traffic.Out = append(m.traffic.In, bytes), append(m.traffic.Out, bytes/3)
	}
	return m
}

func name(i int) string { return fmt.Sprintf("edge-%03d", max(i, 0)+1) }

// madeUpCell is one node for the i-th image: the second is on its way everywhere, the
// fifth has failed here and there.
func madeUpCell(r *rand.Rand, m report.MemberState, i, j, nodes int, bytes int64) report.NodeState {
	c := report.NodeState{Name: m.Name, State: report.Ready, DoneBytes: bytes, TotalBytes: bytes}
	if first := i % max(nodes, 1); j == first {
		c.SentBytes = bytes * 12 / 10
	} else {
		c.TookMS, c.WireBytes = int64(4000+100*i+10*j), bytes*4/10
		c.Sources = []report.Source{{Name: name(first), Bytes: bytes * 6 / 10}, {Name: name((j + 1) % max(nodes, 1)), Bytes: bytes * 4 / 10}}
	}
	switch {
	case m.State == "dead":
		c.State, c.DoneBytes, c.Reason, c.Away, c.Since = report.Unreachable, 0, "no answer to gossip", true, m.Since
	case m.Reason != "":
		c.State, c.DoneBytes, c.Reason = report.Unreachable, 0, m.Reason
	case i == 1 && j > 0:
		c.State, c.DoneBytes = report.Fetching, bytes*int64(r.IntN(100))/100
		c.RateBytesPerSecond = int64(8+r.IntN(60)) << 20
		c.Sources = []report.Source{{Name: "edge-001", Bytes: c.DoneBytes / 2}, {Name: name(1 + j%max(min(nodes, 40)-1, 1)), Bytes: c.DoneBytes / 3}, {Name: report.LocalSource, Bytes: 3 << 20}}
		c.Reason = fmt.Sprintf("%s of %s from edge-001", term.Bytes(c.DoneBytes), term.Bytes(bytes))
		switch {
		case r.IntN(6) == 0:
			c.RateBytesPerSecond = 0
			c.State, c.DoneBytes, c.Reason = report.Importing, bytes, "all data received, unpacking layer 3 of 4"
		case r.IntN(9) == 0:
			c.State, c.DoneBytes, c.Reason = report.Waiting, 0, "shares a layer with registry.example.net/acme/ingest:v1, which is being fetched"
		}
	case i == 4 && j%97 == 2:
		c.State, c.DoneBytes, c.Reason = report.Failed, bytes/3, "import: unpack layer 3: write /var/lib/rancher/k3s/agent/containerd: no space left on device"
	case i%7 == 3 && j%50 == 7:
		c.State, c.DoneBytes, c.Reason = report.Excluded, 0, "announced with --on gpu=true, this node has no label gpu"
	}
	return c
}

func madeUpEvents(m *madeUp, now time.Time) []report.Event {
	nodes := len(m.members.Members)
	at := func(seconds int) time.Time { return now.Add(-time.Duration(seconds) * time.Second) }
	ev := []report.Event{{Time: at(4000), Kind: report.EventUp, Count: 1}}
	if others := len(m.members.Members) - 1; others > 0 {
		var first []string
		for _, o := range m.members.Members[1 : min(others, 8)+1] {
			first = append(first, o.Name)
		}
		ev = append(ev, report.Event{Time: at(3990), Kind: report.EventJoined, Nodes: first, Count: others})
	}
	for i, img := range m.images.Images {
		ev = append(ev, report.Event{Time: at(300 - 10*i), Kind: report.EventAnnounced, Reference: img.Reference, Version: img.Version, Nodes: []string{img.AnnouncedBy}, Count: 1},
			report.Event{Time: at(290 - 10*i), Kind: report.EventReady, Reference: img.Reference, Version: img.Version, Count: 1, Reason: fmt.Sprintf("%s fetched in %d.4 s", term.Bytes(img.Size), 3+i)})
		if i == 4 {
			ev = append(ev, report.Event{Time: at(100), Kind: report.EventFailed, Reference: img.Reference, Version: img.Version, Count: 7, Reason: "no space left on device"},
				report.Event{Time: at(99), Kind: report.EventBadChunk, Reference: img.Reference, Version: img.Version, Nodes: []string{name(min(nodes-1, 11))}, Count: 1, Reason: "does not verify; the peer is not asked again"},
				report.Event{Time: at(80), Kind: report.EventLost, Nodes: []string{name(nodes - 2), name(nodes - 1)}, Count: 2})
			break
		}
	}
	slices.Reverse(ev)
	return ev
}

// hostileText are names that would like to be more than names.
var hostileText = []string{
	`<script>window.hacked=1</script>`, `"><img src=x onerror="window.hacked=2">`, `' onmouseover='window.hacked=3`,
	"\u202egnp.exe\u2066evil", "a\x00b\x1b[2Jc\r\nX-Injected: 1", `javascript:window.hacked=4//`, `{{.Node}}{{template "main"}}`, "</td></tr></table><h1>pwned</h1>",
	"e" + strings.Repeat("\u0301", 500), strings.Repeat("W", 10<<10), "\xff\xfe\xed\xa0\x80", "\u200b\ufeff", "العربية ١٢٣",
}

// makeHostile puts them wherever a member has a say.
func makeHostile(nodes, images int) *madeUp {
	m := makeUp(nodes, images)
	n := 0
	next := func() string { n++; return hostileText[n%len(hostileText)] + fmt.Sprint(n) }
	m.status.Node, m.status.Version, m.status.Containerd.Version = next(), next(), next()
	names := map[string]string{}
	for i := range m.members.Members {
		ms := &m.members.Members[i]
		names[ms.Name] = next()
		ms.Host.Containerd, ms.Host.ContainerdAway = next(), []string{"", next()}[i%2]
		ms.Name, ms.Address, ms.Version, ms.Reason, ms.State = names[ms.Name], next(), next(), next(), []string{"alive", "dead", next()}[i%3]
	}
	for i := range m.images.Images {
		img := &m.images.Images[i]
		img.Reference, img.Digest, img.AnnouncedBy, img.On = next(), next(), next(), []string{next()}
		for j := range img.Nodes {
			c := &img.Nodes[j]
			c.Name, c.Reason = names[c.Name], next()
			if j%5 == 4 {
				c.State = report.State(next())
			} else if j%2 == 1 {
				c.State = report.Failed
			}
		}
	}
	for i := range m.events {
		e := &m.events[i]
		e.Reference, e.Reason, e.Nodes = next(), next(), []string{next(), next()}
	}
	m.events = append(m.events, report.Event{Kind: report.EventKind(next()), Count: 1})
	return m
}

// shown is a madeUp that another one takes the place of.
type shown struct{ atomic.Pointer[madeUp] }

func (s *shown) Images(ctx context.Context, refs ...string) (report.Images, error) {
	return s.Load().Images(ctx, refs...)
}
func (s *shown) Members() report.Members                  { return s.Load().Members() }
func (s *shown) Status(ctx context.Context) report.Status { return s.Load().Status(ctx) }
func (s *shown) Events() []report.Event                   { return s.Load().Events() }
func (s *shown) Traffic() report.Traffic                  { return s.Load().Traffic() }
func (s *shown) Pods(ctx context.Context) pods.Found      { return s.Load().Pods(ctx) }
func (s *shown) Describe(ctx context.Context, ref string) report.ImageDetail {
	return s.Load().Describe(ctx, ref)
}

// seederPage serves the status page of a made-up cluster for a browser (`make
// test-ui`): it prints its address and ends with its standard input. A line there, the
// numbers of nodes and images, makes it another cluster.
func seederPage() {
	nodes := flag.Int("nodes", 3, "")
	images := flag.Int("images", 4, "")
	hostile := flag.Bool("hostile", false, "")
	addr := flag.String("addr", "127.0.0.1:0", "")
	flag.Parse()
	var m shown
	m.Store(makeUp(*nodes, *images))
	if *hostile {
		m.Store(makeHostile(*nodes, *images))
	}
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	h := NewServer(config.HTTP{}, &m, m.Pods, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	h.serve(l)
	fmt.Println(l.Addr())
	for {
		if _, err := fmt.Scanln(nodes, images); err != nil {
			break
		}
		m.Store(makeUp(*nodes, *images))
	}
	_ = h.Close()
}

func noMetrics() prometheus.Gatherer { return prometheus.NewRegistry() }

// contextWithLocal is the context of a request that arrived on an address.
func contextWithLocal(r *http.Request, ip string) context.Context {
	return context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.ParseIP(ip), Port: 7952}))
}
