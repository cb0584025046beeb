package matrix

import (
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/report"
	"seeder/p2p/tally"
)

// cell is how far this node is with one reference.
type cell struct {
	version    uint64
	target     digest.Digest
	state      report.State
	done       int64
	total      int64
	reason     string
	live       func() (done, total int64) // while fetching; nil otherwise
	liveReason func() string
	tally      *tally.Tally // of the tries to fetch it; nil before the first one, and once it is ready
	origin     tally.Origin // what the tally says, or said when it was ready
	begun      time.Time
	sentBefore int64 // bytes that went out of its seed before it was announced

	since   time.Time // when it was ready last, or came to be known; zero: it is, or need not be
	lacking int64     // bytes of disk, while it waits for those
}

// Column is this node's column of the matrix, safe for concurrent use.
type Column struct {
	sent func(seed digest.Digest) int64 // bytes that went out of a seed

	mu    sync.Mutex
	byRef map[string]*cell
	kept  []string      // ready ones whose origin is kept, the oldest first
	next  chan struct{} // closed when a cell comes to another state
	freed freed
}

// maxOrigins bounds the ready images of which a node still knows where their bytes
// came from: 0.5 KB each in memory and in every answer to the matrix.
const maxOrigins = 64

// NewColumn returns a column without a cell. sent says how many bytes of a seed have gone
// out since this node started.
func NewColumn(sent func(seed digest.Digest) int64) *Column {
	return &Column{sent: sent, byRef: map[string]*cell{}, next: make(chan struct{})}
}

// Begin implements converge.Column.
func (c *Column) Begin(a catalog.Announcement) { c.begin(a, c.sent(a.Seed.Digest)) }

// Queue implements converge.Column.
func (c *Column) Queue(a catalog.Announcement, reason string) {
	c.update(a, func(x *cell) {
		if x.state == report.Ready { // was ready, is no longer
			x.done, x.origin = 0, tally.Origin{}
		}
		x.state, x.reason = report.Waiting, reason
	})
}

// Settle implements converge.Column.
func (c *Column) Settle(a catalog.Announcement, s report.State, reason string, lackingBytes int64) {
	c.setState(a, s, reason)
	if lackingBytes > 0 {
		c.update(a, func(x *cell) { x.lacking = lackingBytes })
	}
}

// Purged implements converge.Column.
func (c *Column) Purged(ref string, bytes int64) {
	c.freed.forget(ref)
	c.freed.add(ref, bytes)
}

// Freed implements converge.Column.
func (c *Column) Freed(ref string, bytes int64) { c.freed.add(ref, bytes) }

// Wait implements fetch.Column.
func (c *Column) Wait(a catalog.Announcement, reason string) {
	c.update(a, func(x *cell) { x.state, x.reason = report.Waiting, reason })
}

// Fetch implements fetch.Column.
func (c *Column) Fetch(a catalog.Announcement, bytes func() (done, total int64), reason func() string) {
	c.update(a, func(x *cell) {
		x.state, x.reason, x.live, x.liveReason = report.Fetching, "", bytes, reason
	})
}

// Import implements fetch.Column.
func (c *Column) Import(a catalog.Announcement, reason func() string) {
	c.update(a, func(x *cell) { x.state, x.reason, x.liveReason = report.Importing, "", reason })
}

// begin makes the cell one of a, the newest announcement of its reference. sent is how
// much of it has gone out before.
func (c *Column) begin(a catalog.Announcement, sent int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := &cell{version: a.Version, target: a.Target.Digest, state: report.Waiting, reason: "queued", total: a.ImageBytes, sentBefore: sent}
	x.begun = time.Now()
	if x.since = x.begun; c.byRef[a.Reference] != nil && !c.byRef[a.Reference].since.IsZero() {
		x.since = c.byRef[a.Reference].since
	}
	c.byRef[a.Reference] = x
	c.wake()
}

// of is the cell of a, nil where it is about another announcement of the reference: who
// works on an earlier one may speak late. The mutex is held.
func (c *Column) of(a catalog.Announcement) *cell {
	if x := c.byRef[a.Reference]; x != nil && x.version == a.Version && x.target == a.Target.Digest {
		return x
	}
	return nil
}

// update changes the cell of a, where there is one.
func (c *Column) update(a catalog.Announcement, change func(*cell)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.of(a)
	if x == nil {
		return
	}
	since, before := x.since, x.state
	x.lacking = 0
	change(x)
	switch {
	case x.state == report.Ready || x.state == report.Excluded:
		since = time.Time{}
	case since.IsZero():
		since = time.Now()
	}
	if x.since = since; x.state != before {
		c.wake()
	}
}

// cellState is what Counts needs of a cell.
type cellState struct {
	state   report.State
	since   time.Time
	lacking int64
}

// states are all cells by reference, without the figures that have to be asked for.
func (c *Column) states() map[string]cellState {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]cellState, len(c.byRef))
	for ref, x := range c.byRef {
		out[ref] = cellState{x.state, x.since, x.lacking}
	}
	return out
}

// setState shows a in a state that holds until the next one.
func (c *Column) setState(a catalog.Announcement, s report.State, reason string) {
	c.update(a, func(x *cell) {
		if x.live != nil {
			x.done, x.total = x.live()
		}
		x.state, x.reason, x.live, x.liveReason = s, reason, nil, nil
		if s == report.Ready {
			x.done, x.reason = x.total, ""
			c.keepOrigin(a.Reference, x)
		}
	})
}

// keepOrigin turns the tally of an image that has just become ready into its origin
// and forgets the oldest one that is too many. The mutex is held.
func (c *Column) keepOrigin(ref string, x *cell) {
	if x.tally == nil {
		return
	}
	x.origin, x.tally = x.tally.Origin(time.Now()), nil
	x.origin.Rate, x.origin.Took = 0, time.Since(x.begun)
	c.kept = append(slices.DeleteFunc(c.kept, func(r string) bool { return r == ref }), ref)
	if len(c.kept) <= maxOrigins {
		return
	}
	if old := c.byRef[c.kept[0]]; old != nil && old.state == report.Ready {
		old.origin = tally.Origin{}
	}
	c.kept = slices.Delete(c.kept, 0, 1)
}

// Tally returns the tally of a, a new one at the first try to fetch what its cell says.
func (c *Column) Tally(a catalog.Announcement) *tally.Tally {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.of(a)
	if x == nil {
		return tally.New(time.Now())
	}
	if x.tally == nil {
		x.tally = tally.New(time.Now())
	}
	return x.tally
}

// Remove implements converge.Column.
func (c *Column) Remove(a catalog.Announcement) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of(a) != nil {
		delete(c.byRef, a.Reference)
	}
}

// get returns a copy of the cell of ref with the figures of this moment.
func (c *Column) get(ref string) (cell, bool) {
	c.mu.Lock()
	x, ok := c.byRef[ref]
	if !ok {
		c.mu.Unlock()
		return cell{}, false
	}
	y := *x
	c.mu.Unlock()
	if y.live != nil {
		y.done, y.total = y.live()
	}
	if y.tally != nil {
		y.origin = y.tally.Origin(time.Now())
		if y.state != report.Fetching {
			y.origin.Rate = 0
		}
	}
	if y.liveReason != nil {
		if r := y.liveReason(); r != "" {
			y.reason = r
		}
	}
	return y, true
}
