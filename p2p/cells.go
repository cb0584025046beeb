package p2p

import (
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/report"
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
	tally      *tally // of the tries to fetch it; nil before the first one, and once it is ready
	origin     origin // what the tally says, or said when it was ready
	sentBefore int64  // bytes that went out of its seed before it was announced

	since   time.Time // when it was ready last, or came to be known; zero: it is, or need not be
	lacking int64     // bytes of disk, while it waits for those
	looked  time.Time // when the look that last found it ready began; zero: none has
}

// cells is this node's column of the matrix, safe for concurrent use.
type cells struct {
	mu    sync.Mutex
	byRef map[string]*cell
	kept  []string      // ready ones whose origin is kept, the oldest first
	next  chan struct{} // closed and replaced at each change
}

// maxOrigins bounds the ready images of which a node still knows where their bytes
// came from: 0.5 KB each in memory and in every answer to the matrix.
const maxOrigins = 64

func newCells() *cells {
	return &cells{byRef: map[string]*cell{}, next: make(chan struct{})}
}

// update changes the cell of ref, made when it is not there.
func (c *cells) update(ref string, change func(*cell)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.byRef[ref]
	if x == nil {
		x = &cell{}
		c.byRef[ref] = x
	}
	since := x.since
	x.lacking = 0
	change(x)
	switch {
	case x.state == report.Ready || x.state == report.Excluded:
		since = time.Time{}
	case since.IsZero():
		since = time.Now()
	}
	x.since = since
	c.signal()
}

// cellState is what Counts needs of a cell.
type cellState struct {
	state   report.State
	since   time.Time
	lacking int64
}

// states are all cells by reference, without the figures that have to be asked for.
func (c *cells) states() map[string]cellState {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]cellState, len(c.byRef))
	for ref, x := range c.byRef {
		out[ref] = cellState{x.state, x.since, x.lacking}
	}
	return out
}

// settle puts ref in a state that holds until the next one.
func (c *cells) settle(ref string, s report.State, reason string) {
	c.update(ref, func(x *cell) {
		if x.live != nil {
			x.done, x.total = x.live()
		}
		x.state, x.reason, x.live, x.liveReason = s, reason, nil, nil
		if s == report.Ready {
			x.done, x.reason = x.total, ""
			c.keepOrigin(ref, x)
		}
	})
}

// looked is when the look that last found ref ready began.
func (c *cells) looked(ref string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x := c.byRef[ref]; x != nil {
		return x.looked
	}
	return time.Time{}
}

// keepOrigin turns the tally of an image that has just become ready into its origin
// and forgets the oldest one that is too many. The mutex is held.
func (c *cells) keepOrigin(ref string, x *cell) {
	if x.tally == nil {
		return
	}
	x.origin, x.tally = x.tally.origin(time.Now()), nil
	x.origin.rate = 0
	c.kept = append(slices.DeleteFunc(c.kept, func(r string) bool { return r == ref }), ref)
	if len(c.kept) <= maxOrigins {
		return
	}
	if old := c.byRef[c.kept[0]]; old != nil && old.state == report.Ready {
		old.origin = origin{}
	}
	c.kept = slices.Delete(c.kept, 0, 1)
}

// tally returns the tally of ref, a new one at the first try to fetch what its cell
// says.
func (c *cells) tally(ref string) *tally {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.byRef[ref]
	if x == nil {
		return newTally(time.Now())
	}
	if x.tally == nil {
		x.tally = newTally(time.Now())
	}
	return x.tally
}

func (c *cells) remove(ref string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byRef, ref)
	c.signal()
}

// get returns a copy of the cell of ref with the figures of this moment.
func (c *cells) get(ref string) (cell, bool) {
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
		y.origin = y.tally.origin(time.Now())
		if y.state != report.Fetching {
			y.origin.rate = 0
		}
	}
	if y.liveReason != nil {
		if r := y.liveReason(); r != "" {
			y.reason = r
		}
	}
	return y, true
}

// changed is closed at the next change of any cell.
func (c *cells) changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}

func (c *cells) signal() {
	close(c.next)
	c.next = make(chan struct{})
}

// claims says which missing blobs a running fetch brings, so that a layer which
// several images share crosses the network once.
type claims struct {
	mu    sync.Mutex
	held  map[digest.Digest]string // blob → reference that fetches it
	freed chan struct{}            // closed and replaced at each release
}

func newClaims() *claims {
	return &claims{held: map[digest.Digest]string{}, freed: make(chan struct{})}
}

// take claims all blobs for ref or none. Where another reference holds one of
// them, it is named and freed is closed at the next release.
func (c *claims) take(ref string, blobs []digest.Digest) (holder string, freed <-chan struct{}, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range blobs {
		if other, taken := c.held[b]; taken && other != ref {
			return other, c.freed, false
		}
	}
	for _, b := range blobs {
		c.held[b] = ref
	}
	return "", nil, true
}

// release frees every blob that ref claimed.
func (c *claims) release(ref string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b, r := range c.held {
		if r == ref {
			delete(c.held, b)
		}
	}
	close(c.freed)
	c.freed = make(chan struct{})
}
