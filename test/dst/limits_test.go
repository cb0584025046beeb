package dst

import (
	"io"
	"runtime"
	"time"
)

// The bounds of one node and its store, which hold at every look (invariant 8).
const (
	// cacheBytes is the bound of the cache of frames, low enough to be reached.
	cacheBytes = 6 << 20
	// cacheGrace is how long the cache may hold more than its bound, which falls at once when
	// a disk fills: it is polled every 5 s (store/cache.go).
	cacheGrace = 11 * time.Second
	// minFreeBytes is what the disk keeps free of images.
	minFreeBytes = 8 << 20
	// maxFiles of one machine, those of machines that have just crashed among them.
	maxFiles = 48
	// maxHeapBytes of one machine.
	maxHeapBytes = 48 << 20
	// limitSlackBytes is what may pass besides what a rate allows: the burst of the limiter
	// and the pieces of chunks that were on their way, or in a buffer, when it was set.
	limitSlackBytes = 2 << 20
)

// limit is what `seeder reload` set last on one life of a machine.
type limit struct {
	store          *faultyStore
	since          time.Time
	up, down       int64 // bytes per second
	sent, received int64 // at that time
}

// reload is `seeder reload` with other limits, which are low for a while.
func reload(c *cluster, m *machine, e Event) (func(), bool) {
	if !m.up {
		return nil, false
	}
	n, l := m.node, &limit{store: m.store, since: time.Now(), up: int64(64<<10 + e.Arg%(1<<20)), down: int64(64<<10 + e.Arg>>8%(1<<20))}
	l.sent, l.received = m.store.moved()
	n.SetLimits(l.up, l.down)
	m.limit = l
	return func() {
		c.rate(m)
		if m.limit == l {
			m.limit = nil
			n.SetLimits(0, 0)
		}
	}, true
}

// rate holds a machine to the limits of its transfers.
func (c *cluster) rate(m *machine) {
	l := m.limit
	if l == nil || l.store != m.store {
		return
	}
	c.result.Limited++
	sent, received := l.store.moved()
	seconds := time.Since(l.since).Seconds()
	for _, d := range []struct {
		what         string
		bytes, limit int64
	}{{"sent", sent - l.sent, l.up}, {"received", received - l.received, l.down}} {
		if d.bytes > limitSlackBytes+int64(seconds*float64(d.limit)) {
			c.violation("%s has %s %d bytes in %.1f s with a limit of %d a second", m.name, d.what, d.bytes, seconds, d.limit)
		}
	}
}

// bounds holds all machines to their limits.
func (c *cluster) bounds() {
	for _, m := range c.running() {
		c.rate(m)
		held, most := m.store.Cache()
		switch {
		case held <= most+maxFrame:
			m.over = time.Time{}
		case m.over.Before(m.since): // of its life before
			m.over = time.Now()
		case time.Since(m.over) > cacheGrace:
			c.violation("%s keeps %d bytes of frames since %s ago, its bound is %d", m.name, held, time.Since(m.over), most)
		}
	}
	if c.result.Looks%20 != 0 { // what follows costs
		return
	}
	machines := len(c.machines) + c.zombieMachines
	files := len(openFiles(c.base))
	c.result.MaxFiles = max(c.result.MaxFiles, files/machines)
	if files > maxFiles*machines {
		c.violation("%d files are open for %d machines", files, machines)
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	c.result.MaxHeap = max(c.result.MaxHeap, int64(mem.HeapAlloc)/int64(machines))
	if int64(mem.HeapAlloc) > maxHeapBytes*int64(machines) {
		c.violation("%d bytes of memory are in use for %d machines", mem.HeapAlloc, machines)
	}
}

// maxFrame is the largest frame of the images here.
const maxFrame = 512 << 10

// moved is how many bytes of chunks the node has sent and received.
func (s *faultyStore) moved() (sent, received int64) {
	return s.sent.Load(), s.received.Load()
}

// metered counts what the sender reads of a frame.
type metered struct {
	io.ReadCloser
	store *faultyStore
}

func (r *metered) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.store.sent.Add(int64(n)) // the store may be locked: garbled reads under its mutex
	return n, err
}
