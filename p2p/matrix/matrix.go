// Package matrix is which node is how far with which image: this node's column, which it
// shows to the others, and the columns of all, gathered when somebody asks.
//
// It owns the cells of this node and the form in which a column travels. It never changes
// how far anything is, and keeps no answer of another node but its labels, and since when
// there has been none.
//
// Invariant: what this node says of an announcement is about that very record; who works
// on an earlier one may speak late, and is not heard. What another node says is bounded
// before it is decoded and cleaned before it is shown.
//
// Locks: where an image settles, the mutex of a Column is held around that of its Tally and
// of the open image, which is asked how much of it is here. Nothing takes it under those.
package matrix

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"seeder/p2p/catalog"
	"seeder/p2p/gossip"
	"seeder/p2p/images"
	"seeder/p2p/members"
	"seeder/p2p/report"
	"seeder/p2p/tally"
	"seeder/p2p/trust"
)

const (
	// askTimeout bounds how long the matrix waits for one member.
	askTimeout = 2 * time.Second
	// maxAsks is how many members are asked at once.
	maxAsks = 64
)

// Client asks another node for its column.
type Client interface {
	// State gets its column for refs. With the versions of these the answer may be held
	// back until the node has settled them.
	State(ctx context.Context, addr string, refs []string, versions []uint64, limit int64, read func(io.Reader) error) error
}

// Health is how this host's containerd is.
type Health interface {
	Status() report.ContainerdStatus
	// Away is why containerd does not answer, empty while it does or has only just stopped.
	Away(now time.Time) string
}

// Config is what a Matrix is made of.
type Config struct {
	ID      trust.NodeID // of this node
	Version string       // of the program
	Catalog *catalog.Catalog
	Members *members.Members
	Images  *images.Set
	Store   Store
	Column  *Column
	Client  Client
	Health  Health
	// Policy is what this node's configuration lets it take and send.
	Policy func() report.Policy
	// Disk is how full the disk of data_dir is.
	Disk func() report.DiskStatus
	// Blocked says of which images, by reference, this host's kubelet refuses to start a
	// container although they are ready, and what to do about it; nil: of none.
	Blocked func() map[string]string
}

// Matrix answers how far the nodes are. It is safe for concurrent use.
type Matrix struct {
	cfg  Config
	held atomic.Int64 // answers that are held back

	silences silences
	slow     chan map[string][]string // addresses that Run asks, with the members there
}

// New returns the matrix of a cluster.
func New(cfg Config) *Matrix {
	return &Matrix{cfg: cfg, silences: silences{at: map[string]silence{}}, slow: make(chan map[string][]string, 1)}
}

// Policy is that of this node, as it is told to others.
func (m *Matrix) Policy() report.Policy { return boundedPolicy(m.cfg.Policy()) }

// State serves this node's column for refs, all where none is named. With the versions of
// these it is held back until the node has settled them (wire.Matrix).
func (m *Matrix) State(ctx context.Context, refs []string, versions []uint64) ([]byte, error) {
	if len(versions) > 0 {
		m.hold(ctx, refs, versions)
	}
	return json.Marshal(m.column(refs))
}

func (m *Matrix) column(refs []string) column {
	self := m.cfg.Members.Facts(m.cfg.Members.Self())
	r := column{Name: m.cfg.Members.Self(), Labels: self.Labels, Host: self.Host, Images: m.refused(refs)}
	if slices.Equal(refs, []string{noImage}) {
		p := m.Policy()
		r.Policy = &p
	}
	down := m.cfg.Health.Away(time.Now())
	var blocked map[string]string
	if m.cfg.Blocked != nil {
		blocked = m.cfg.Blocked()
	}
	for _, rec := range m.selected(refs) {
		a := rec.Announcement()
		c, ok := m.cfg.Column.get(a.Reference)
		if !ok && a.Withdrawn && m.cfg.Catalog.Reached(rec) {
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
			freed = m.cfg.Column.freed.of(a.Reference)
		}
		r.Images = append(r.Images, columnImage{
			FreedBytes: freed,
			Reference:  a.Reference, Digest: c.target.String(), Version: c.version, State: c.state,
			progress: progress{c.done, c.total}, Reason: c.reason,
			RateBytesPerSecond: c.origin.Rate, Sources: c.origin.Sources, WireBytes: c.origin.Wire,
			Blocked: blocked[a.Reference], SentBytes: max(m.cfg.Images.SentBytes(a.Seed.Digest)-c.sentBefore, 0),
			TookMS: c.origin.Took.Milliseconds(), Rebuilt: report.Rebuilt{RebuiltBytes: c.origin.Rebuilt, DeltaBytes: c.origin.Delta, NoDelta: noDelta(c.origin)},
		})
	}
	return r
}

// noDelta is why no layer came as a delta, empty where one did and none failed.
func noDelta(o tally.Origin) string {
	if o.Rebuilt > 0 && !o.DeltaFailed {
		return ""
	}
	return o.NoDelta
}

// refused are those of refs, or of all, that this node knows a newer announcement of
// and does not take: the others need not wait for it.
func (m *Matrix) refused(refs []string) (out []columnImage) {
	list := m.cfg.Catalog.Refusals()
	if len(refs) > 0 {
		list = list[:0]
		for _, ref := range refs {
			if r, ok := m.cfg.Catalog.Refused(ref); ok {
				list = append(list, r)
			}
		}
	}
	for _, r := range list {
		img := columnImage{
			Reference: r.Reference, Digest: r.Target.Digest.String(), Version: r.Version,
			State: report.Waiting, progress: progress{TotalBytes: r.ImageBytes}, Reason: r.Why.Error(), Refused: true,
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
func (m *Matrix) selected(refs []string) []catalog.Record {
	if len(refs) == 0 {
		return m.cfg.Catalog.All()
	}
	var out []catalog.Record
	for _, ref := range refs {
		if rec, ok := m.cfg.Catalog.Get(ref); ok {
			out = append(out, rec)
		}
	}
	return out
}

// Images is the matrix for refs, or for everything announced. It asks every
// alive member and is answered within a few seconds whatever they do. An unknown
// ref is an error that names the nearest announced ones and wraps
// fs.ErrNotExist.
func (m *Matrix) Images(ctx context.Context, refs ...string) (report.Images, error) {
	for _, ref := range refs {
		if _, ok := m.cfg.Catalog.Get(ref); !ok {
			return report.Images{}, fmt.Errorf("image %s: %w", ref, m.cfg.Catalog.Unknown(ref))
		}
	}
	reports := m.ask(ctx, refs)
	out := report.Images{Images: []report.ImageState{}}
	for _, rec := range m.selected(refs) {
		out.Images = append(out.Images, m.row(rec, reports))
	}
	slices.SortFunc(out.Images, func(a, b report.ImageState) int { return strings.Compare(a.Reference, b.Reference) })
	return out, nil
}

// row is one announcement against all reports.
func (m *Matrix) row(rec catalog.Record, reports []answer) report.ImageState {
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
	ns.Rebuilt = img.Rebuilt
	if ns.State != report.Ready && ns.Reason == "" {
		ns.Reason = string(ns.State)
	}
	return ns
}

// membersWait is how long AskMembers waits for members that are slow: the list itself is
// known.
const membersWait = 500 * time.Millisecond

// AskMembers lists the cluster with what the members say of themselves now. It takes no
// longer than half a second: of a member that is slower it has what that one said before,
// and since when it has not answered, which Run finds out.
func (m *Matrix) AskMembers(ctx context.Context) report.Members {
	ctx, cancel := context.WithTimeout(ctx, membersWait)
	defer cancel()
	failed := map[string]error{}
	late := map[string]bool{}
	for _, a := range m.ask(ctx, []string{noImage}) { // no image: the labels are enough
		switch {
		case a.err == nil || a.away:
		case errors.Is(a.err, context.DeadlineExceeded):
			late[a.name] = true
		default:
			failed[a.name] = a.err
		}
	}
	out := m.cfg.Members.List()
	slow := map[string][]string{}
	for i, member := range out.Members {
		if member.Reason != "" {
			continue
		}
		if err := failed[member.Name]; err != nil {
			out.Members[i].Reason = err.Error()
		}
		if !late[member.Name] || member.State != gossip.StateAlive {
			continue
		}
		slow[member.Address] = append(slow[member.Address], member.Name)
		if since, ok := m.silences.since(member.Address); ok {
			out.Members[i].Reason = fmt.Sprintf("is alive, but does not answer on %s since %s", member.Address, since.Format(time.TimeOnly))
		}
	}
	if len(slow) > 0 {
		select {
		case m.slow <- slow:
		default: // Run has others to ask first
		}
	}
	return out
}

// Status is this node alone.
func (m *Matrix) Status(context.Context) report.Status {
	s := report.Status{
		Node: m.cfg.Members.Self(), ID: string(m.cfg.ID), Version: m.cfg.Version,
		Containerd: m.cfg.Health.Status(), Join: m.cfg.Members.Join(), Conflicts: m.cfg.Members.Conflicts(), Members: m.cfg.Members.Alive(), Converged: true,
		Transfers: []report.Transfer{}, Disk: m.cfg.Disk(),
	}
	for _, img := range m.column(nil).Images {
		c, _ := m.cfg.Column.get(img.Reference)
		if rec, ok := m.cfg.Catalog.Get(img.Reference); !ok || img.Refused || rec.Announcement().Withdrawn || img.State == report.Excluded {
			continue
		}
		s.Images.Total++
		if img.NoDelta != "" {
			s.NoDeltas = append(s.NoDeltas, report.NoDelta{Reference: img.Reference, Reason: img.NoDelta, Failed: c.origin.DeltaFailed})
		}
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
				DoneBytes: img.DoneBytes, TotalBytes: img.TotalBytes, Peers: append([]string{}, c.origin.Peers...),
				RateBytesPerSecond: img.RateBytesPerSecond, Sources: img.Sources,
			})
		}
	}
	return s
}
