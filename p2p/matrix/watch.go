package matrix

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"seeder/p2p/gossip"
	"seeder/p2p/report"
)

const (
	// maxHold is how long an answer is held back for an image that is not ready.
	maxHold = 5 * time.Second
	// maxHeld is how many answers are held back at once. Who asks beyond that is answered
	// at once.
	maxHeld = 256
	// maxWatched is how many members are watched at once for one question, and
	// maxAwaited for how many images. Beyond that who wants to know has to ask.
	maxWatched = 64
	maxAwaited = 16
	// watchEvery is how often members are looked for that are not watched yet.
	watchEvery = time.Second
)

// settled reports whether this node has come to its end with each of refs, as of these
// versions: it is ready, or excluded.
func (c *Column) settled(refs []string, versions []uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, ref := range refs {
		x := c.byRef[ref]
		if x == nil || x.version < versions[i] || !isSettled(x.state) {
			return false
		}
	}
	return true
}

func isSettled(s report.State) bool { return s == report.Ready || s == report.Excluded }

// changed is closed when any cell comes to another state.
func (c *Column) changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}

// wake tells who waits that a cell has changed. The mutex is held.
func (c *Column) wake() {
	close(c.next)
	c.next = make(chan struct{})
}

// hold returns when this node has settled each of refs as of these versions, or after
// maxHold: who asks learns of the end at once and does not ask for it again and again.
func (m *Matrix) hold(ctx context.Context, refs []string, versions []uint64) {
	if m.held.Add(1) > maxHeld || len(refs) > maxAwaited || len(refs) != len(versions) {
		m.held.Add(-1)
		return
	}
	defer m.held.Add(-1)
	over := time.NewTimer(maxHold)
	defer over.Stop()
	for {
		next := m.cfg.Column.changed()
		if m.cfg.Column.settled(refs, versions) {
			return
		}
		select {
		case <-next:
		case <-over.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// watching waits for members to settle images. A member that answers at once although it
// has not settled them holds nothing back: it is left to those who ask now and then.
type watching struct {
	m    *Matrix
	refs []string
	fn   func()

	mu      sync.Mutex
	running map[string]bool // addresses that are being watched
	over    map[string]bool // addresses that need not be watched any more
}

// Watch calls fn whenever a member, this one too, has settled each of refs as the catalog
// has them. It returns when ctx ends. It is a hint: of more than 64 members or 16 images,
// and of members that do not know this question, nothing is heard.
func (m *Matrix) Watch(ctx context.Context, fn func(), refs ...string) {
	if len(refs) == 0 || len(refs) > maxAwaited {
		<-ctx.Done()
		return
	}
	w := &watching{m: m, refs: refs, fn: fn, running: map[string]bool{}, over: map[string]bool{}}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { w.self(ctx) })
	ended := make(chan struct{}, 1)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		for _, addr := range w.next() {
			wg.Go(func() {
				if w.one(ctx, addr) {
					select {
					case ended <- struct{}{}:
					default:
					}
				}
			})
		}
		select {
		case <-tick.C:
		case <-ended:
		case <-ctx.Done():
			return
		}
	}
}

// self waits until this node has settled the images.
func (w *watching) self(ctx context.Context) {
	for {
		next := w.m.cfg.Column.changed()
		if w.m.cfg.Column.settled(w.refs, w.versions()) {
			w.fn()
			return
		}
		select {
		case <-next:
		case <-ctx.Done():
			return
		}
	}
}

// versions are those of the images in the catalog, 0 for one that is not there.
func (w *watching) versions() []uint64 {
	out := make([]uint64, len(w.refs))
	for i, ref := range w.refs {
		if rec, ok := w.m.cfg.Catalog.Get(ref); ok {
			out[i] = rec.Announcement().Version
		}
	}
	return out
}

// next are the addresses to be watched from now on.
func (w *watching) next() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, member := range w.m.cfg.Members.All() {
		switch addr := member.Address; {
		case len(w.running) == maxWatched:
			return out
		case member.Name == w.m.cfg.Members.Self() || member.State == gossip.StateDead || member.State == gossip.StateLeft:
		case member.Reason != "" || addr == "" || w.running[addr] || w.over[addr]:
		default:
			w.running[addr] = true
			out = append(out, addr)
		}
	}
	return out
}

// one asks the member at addr once, which takes until it has settled the images. again
// says that there may be somebody to ask at once.
func (w *watching) one(ctx context.Context, addr string) (again bool) {
	ctx, cancel := context.WithTimeout(ctx, maxHold+askTimeout)
	defer cancel()
	asked := map[string]bool{}
	for _, ref := range w.refs {
		asked[ref] = true
	}
	a := &asking{limit: maxReportBytes + imageBytes*int64(len(w.refs))}
	a.total.Store(a.limit)
	began, versions := time.Now(), w.versions()
	var ans answer
	err := w.m.cfg.Client.State(ctx, addr, w.refs, versions, a.limit, func(r io.Reader) (err error) {
		if ans, err = decodeReport(r, addr, func(ref string) bool { return asked[ref] }, &a.total); err != nil {
			err = fmt.Errorf("unreadable answer from %s: %w", addr, err)
		}
		return err
	})
	settled := err == nil && ans.settled(w.refs, versions)
	w.mu.Lock()
	delete(w.running, addr)
	w.over[addr] = settled || err == nil && time.Since(began) < maxHold/2
	w.mu.Unlock()
	if settled {
		w.fn()
	}
	return err == nil // who does not answer is asked again after a while
}

// settled is Column.settled of another node, by its answer.
func (ans answer) settled(refs []string, versions []uint64) bool {
	for i, ref := range refs {
		img, ok := ans.images[ref]
		if !ok || img.Version < versions[i] || !isSettled(img.State) {
			return false
		}
	}
	return true
}
