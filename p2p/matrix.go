package p2p

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"seeder/p2p/catalog"
	"seeder/p2p/gossip"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

const (
	// askTimeout bounds how long the matrix waits for one member.
	askTimeout = 2 * time.Second
	// maxAsks is how many members are asked at once.
	maxAsks = 64
)

// State serves this node's column for refs, all where none is named
// (wire.Handler).
func (h handler) State(_ context.Context, refs []string) ([]byte, error) {
	n := h.n
	return json.Marshal(n.column(refs))
}

func (n *Node) column(refs []string) column {
	host := n.host()
	r := column{Name: n.cfg.Name, Labels: n.cfg.Labels, Host: &host, Images: n.refused(refs)}
	if slices.Equal(refs, []string{noImage}) {
		p := n.policy()
		r.Policy = &p
	}
	down := n.health.away(time.Now())
	var blocked map[string]string
	if n.cfg.Blocked != nil {
		blocked = n.cfg.Blocked()
	}
	for _, rec := range n.selected(refs) {
		a := rec.Announcement()
		c, ok := n.cells.get(a.Reference)
		if !ok && a.Withdrawn && n.catalog.Reached(rec) {
			c, ok = cell{version: a.Version, target: a.Target.Digest, state: report.Excluded, reason: "withdrawn"}, true
		}
		if !ok || c.version != a.Version {
			c = cell{version: a.Version, target: a.Target.Digest, state: report.Waiting, reason: "queued", total: a.ImageBytes}
		}
		if down != "" && c.state == report.Ready { // the kubelet gets no answer either
			c.state, c.reason = report.Waiting, "waiting for containerd: "+down
		}
		var freed int64
		if a.Withdrawn {
			freed = n.freed.of(a.Reference)
		}
		r.Images = append(r.Images, columnImage{
			FreedBytes: freed,
			Reference:  a.Reference, Digest: c.target.String(), Version: c.version, State: c.state,
			DoneBytes: c.done, TotalBytes: c.total, Reason: c.reason,
			RateBytesPerSecond: c.origin.rate, Sources: c.origin.sources, WireBytes: c.origin.wire,
			Blocked: blocked[a.Reference], SentBytes: max(n.swarms.sentBytes(a.Seed.Digest)-c.sentBefore, 0),
			TookMS: c.origin.took.Milliseconds(),
		})
	}
	return r
}

// refused are those of refs, or of all, that this node knows a newer announcement of
// and does not take: the others need not wait for it.
func (n *Node) refused(refs []string) (out []columnImage) {
	list := n.catalog.Refusals()
	if len(refs) > 0 {
		list = list[:0]
		for _, ref := range refs {
			if r, ok := n.catalog.Refused(ref); ok {
				list = append(list, r)
			}
		}
	}
	for _, r := range list {
		img := columnImage{
			Reference: r.Reference, Digest: r.Target.Digest.String(), Version: r.Version,
			State: report.Waiting, TotalBytes: r.ImageBytes, Reason: r.Why.Error(), Refused: true,
		}
		var announcer *catalog.AnnouncerError
		if errors.As(r.Why, &announcer) {
			img.State = report.Excluded
		}
		out = append(out, img)
	}
	return out
}

// selected are the records of refs, or all, withdrawn ones too.
func (n *Node) selected(refs []string) []catalog.Record {
	if len(refs) == 0 {
		return n.catalog.All()
	}
	var out []catalog.Record
	for _, ref := range refs {
		if rec, ok := n.catalog.Get(ref); ok {
			out = append(out, rec)
		}
	}
	return out
}

// Images is the matrix for refs, or for everything announced. It asks every
// alive member and is answered within a few seconds whatever they do. An unknown
// ref is an error that names the nearest announced ones and wraps
// fs.ErrNotExist.
func (n *Node) Images(ctx context.Context, refs ...string) (report.Images, error) {
	for _, ref := range refs {
		if _, ok := n.catalog.Get(ref); !ok {
			return report.Images{}, fmt.Errorf("image %s: %w", ref, n.notAnnounced(ref))
		}
	}
	reports := n.ask(ctx, refs)
	out := report.Images{Images: []report.ImageState{}}
	for _, rec := range n.selected(refs) {
		out.Images = append(out.Images, n.row(rec, reports))
	}
	slices.SortFunc(out.Images, func(a, b report.ImageState) int { return strings.Compare(a.Reference, b.Reference) })
	return out, nil
}

// row is one announcement against all reports.
func (n *Node) row(rec catalog.Record, reports []answer) report.ImageState {
	a := rec.Announcement()
	img := report.ImageState{
		Reference: a.Reference, Digest: a.Target.Digest.String(), Version: a.Version, Size: a.ImageBytes,
		State: "announced", AnnouncedBy: a.NodeName, AnnouncedAt: a.AnnouncedAt, On: a.On, Nodes: []report.NodeState{},
	}
	if a.Withdrawn {
		img.State = "withdrawn"
		if !a.Purge {
			return img
		}
	}
	for _, ans := range reports {
		ns := ans.cellFor(a)
		img.Nodes = append(img.Nodes, ns)
		if ns.State == report.Excluded {
			continue
		}
		img.Total++
		if ns.Away {
			img.Away++
		}
		if ns.State == report.Ready {
			img.Ready++
		}
	}
	return img
}

// cellFor reads the cell of one announcement out of an answer. A member that
// speaks of another version has not heard of this one yet.
func (ans answer) cellFor(a catalog.Announcement) report.NodeState {
	ns := report.NodeState{Name: ans.name, TotalBytes: a.ImageBytes}
	if ans.err != nil {
		ns.State, ns.Reason = report.Unreachable, ans.err.Error()
		ns.Away, ns.Since = ans.away, ans.since
		// What labels it has is known as far as it was asked while it was there.
		if why := catalog.LeftOut(a.On, ans.labels); ans.away && why != "" {
			ns.State, ns.Reason = report.Excluded, why
		}
		return ns
	}
	img, ok := ans.images[a.Reference]
	if r, refused := ans.refused[a.Reference]; refused && r.Version == a.Version {
		img, ok = r, true
	}
	if !ok || img.Version != a.Version || img.Digest != a.Target.Digest.String() {
		ns.State, ns.Reason = report.Waiting, fmt.Sprintf("has not heard of version %d yet", a.Version)
		return ns
	}
	ns.State, ns.Reason = img.State, img.Reason
	ns.DoneBytes, ns.TotalBytes = img.DoneBytes, img.TotalBytes
	ns.RateBytesPerSecond, ns.Sources = img.RateBytesPerSecond, img.Sources
	ns.Blocked = img.Blocked
	ns.WireBytes, ns.SentBytes = img.WireBytes, img.SentBytes
	ns.FreedBytes, ns.TookMS = img.FreedBytes, img.TookMS
	if ns.State != report.Ready && ns.Reason == "" {
		ns.Reason = string(ns.State)
	}
	return ns
}

// Members lists the cluster. Nobody is asked.
func (n *Node) Members() report.Members {
	out := report.Members{Node: n.cfg.Name, Members: []report.MemberState{}}
	for _, m := range n.gossip.Members() {
		f := n.said.of(m.Name)
		if m.Name == n.cfg.Name {
			host := n.host()
			f = facts{labels: n.cfg.Labels, host: &host}
		}
		out.Members = append(out.Members, report.MemberState{
			Name: m.Name, Address: m.Address, State: m.State, Reason: reasonOf(m), Version: m.Version, ID: string(m.ID), Since: m.Since, Labels: f.labels, Host: f.host,
		})
	}
	slices.SortFunc(out.Members, func(a, b report.MemberState) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// reasonOf says why this node cannot talk to a member, and what to do.
func reasonOf(m gossip.Member) string {
	if m.Fix == "" {
		return m.Reason
	}
	return m.Reason + "; " + m.Fix
}

// Forget drops a member that is away from the cluster, on every node that is there.
func (n *Node) Forget(name string) error {
	if err := n.gossip.Forget(name); err != nil {
		return fmt.Errorf("forget %s: %w", name, err)
	}
	n.log.Info("removed a dead member", "member", name)
	return nil
}

// joinStatus is how the node of g is with its cluster.
func joinStatus(g *gossip.Gossip) report.JoinStatus {
	joined, err := g.Status()
	if joined || err == nil {
		return report.JoinStatus{OK: true}
	}
	return report.JoinStatus{Refused: errors.Is(err, trust.ErrSecretsDiffer), Reason: err.Error(), Since: g.FailedSince()}
}

// conflicts are the pairs of hosts that cannot be told apart.
func (n *Node) conflicts() (out []report.Conflict) {
	for _, c := range n.gossip.Conflicts() {
		out = append(out, c.Conflict)
	}
	return out
}

// Status is this node alone.
func (n *Node) Status(context.Context) report.Status {
	s := report.Status{
		Node: n.cfg.Name, ID: string(n.identity.ID()), Version: n.cfg.Version,
		Containerd: n.health.status(), Join: joinStatus(n.gossip), Conflicts: n.conflicts(), Members: len(n.gossip.Alive()), Converged: true,
		Transfers: []report.Transfer{}, Disk: n.diskStatus(),
	}
	for _, img := range n.column(nil).Images {
		c, _ := n.cells.get(img.Reference)
		if rec, ok := n.catalog.Get(img.Reference); !ok || img.Refused || rec.Announcement().Withdrawn || img.State == report.Excluded {
			continue
		}
		s.Images.Total++
		if img.State == report.Ready {
			s.Images.Ready++
			continue
		}
		s.Converged = false
		if img.State == report.Failed {
			s.Images.Failed++
		}
		if img.State == report.Fetching || img.State == report.Importing {
			s.Transfers = append(s.Transfers, report.Transfer{
				Reference: img.Reference, Digest: img.Digest, State: img.State,
				DoneBytes: img.DoneBytes, TotalBytes: img.TotalBytes, Peers: append([]string{}, c.origin.peers...),
				RateBytesPerSecond: img.RateBytesPerSecond, Sources: img.Sources,
			})
		}
	}
	return s
}
