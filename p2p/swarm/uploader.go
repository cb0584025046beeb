package swarm

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// UploaderConfig bounds what a node serves. Zero values mean the defaults.
type UploaderConfig struct {
	// Active is how many chunks are on their way out at once, over all swarms; 2:
	// one fills the link while the next one is opened.
	Active int
	// Queue is how many requests of one swarm wait for that; 2. More makes
	// receivers wait at one peer for what another could send (simulated at
	// N = 1,000: queue 2 1.07, 4 1.14 × the optimum).
	Queue int
	// Requesters is how many peers a complete node serves in one swarm; 32
	// (simulated: 4 1.12, 16 1.07, 64 1.07, everybody 1.09 × the optimum).
	Requesters int
	Rand       rand.Source // spreads retry times; a random one
	// Sent is told of each chunk of so many raw bytes that a peer took whole. It may
	// be nil, is called by many goroutines and must not block.
	Sent func(seed digest.Digest, rawBytes int64)
}

const (
	// maxSlow bounds the chunks on their way to peers so slow that they do not
	// count as active any more.
	maxSlow = 32
	// slowBytesPerSec is the rate below which a peer is slow while there is no
	// median to compare it with.
	slowBytesPerSec = 64 << 10
	// aloneQueue is how many requests of a peer wait that alone asks: they delay
	// nobody, and a far one needs many under way to fill the link. It is farRequests.
	aloneQueue = 12
	// firstRetry is what a busy node says before it knows how long a chunk takes.
	firstRetry = 20 * time.Millisecond
	minRetry   = 2 * time.Millisecond
	maxRetry   = 5 * time.Second
)

// Uploader shares this node's upload slots over all the swarms it serves: the
// swarms that wait take turns, and in each one the first come is the first
// served. It is safe for concurrent use.
type Uploader struct {
	cfg UploaderConfig

	mu     sync.Mutex
	rng    *rand.Rand
	active int
	slow   map[string]int // slow slots by id
	slowBy map[string]int // and by host
	slowN  int
	turn   []*Upload // swarms with waiters, next turn first
	holds  durations // how long a slot was held
}

// NewUploader returns an uploader without swarms.
func NewUploader(cfg UploaderConfig) *Uploader {
	if cfg.Active <= 0 {
		cfg.Active = 2
	}
	if cfg.Queue <= 0 {
		cfg.Queue = 2
	}
	if cfg.Requesters <= 0 {
		cfg.Requesters = 32
	}
	return &Uploader{cfg: cfg, rng: newRand(cfg.Rand), slow: map[string]int{}, slowBy: map[string]int{}}
}

// Uploads counts the chunks that are on their way out.
func (u *Uploader) Uploads() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.active + u.slowN
}

// Serve starts to serve c as the swarm of seed; Close of the result ends that.
func (u *Uploader) Serve(seed digest.Digest, c Chunks) *Upload {
	return newUpload(u, seed, c)
}

// slot is the right to send one chunk, from acquire until release.
type slot struct {
	u     *Uploader
	by    Requester
	since time.Time
	timer *time.Timer
	slow  bool
	freed bool
}

// waiter is a request in a swarm's queue.
type waiter struct {
	ready   chan struct{} // closed when granted
	granted bool
}

// acquire waits in the queue of up for a slot. It returns a *BusyError at once
// where the queue is full, where the peer is still busy with a chunk that it
// takes too slowly, or its host with a few, where it has had more than others, and where it asks again while
// others wait: the first copies of a chunk should go to different peers.
func (u *Uploader) acquire(ctx context.Context, up *Upload, by Requester, where place) (*slot, error) {
	u.mu.Lock()
	if u.slow[by.ID] > 0 || u.slowBy[by.Host] >= maxSlowPerHost {
		defer u.mu.Unlock()
		return nil, &BusyError{RetryAfter: time.Second}
	}
	if u.active < u.cfg.Active && len(u.turn) == 0 {
		u.active++
		u.mu.Unlock()
		return u.newSlot(by), nil
	}
	queue := u.cfg.Queue
	switch {
	case where == alone:
		queue = aloneQueue
	case where == last, where == again && len(up.waiters) > 0:
		queue = 0
	}
	if len(up.waiters) >= queue {
		defer u.mu.Unlock()
		return nil, &BusyError{RetryAfter: u.retryAfter()}
	}
	w := &waiter{ready: make(chan struct{})}
	if len(up.waiters) == 0 {
		u.turn = append(u.turn, up)
	}
	up.waiters = append(up.waiters, w)
	u.mu.Unlock()

	select {
	case <-w.ready:
		return u.newSlot(by), nil
	case <-ctx.Done():
		u.abandon(up, w)
		return nil, context.Cause(ctx)
	}
}

// newSlot is a slot that is already counted as active; its time starts now.
func (u *Uploader) newSlot(by Requester) *slot {
	return &slot{u: u, by: by, since: time.Now()}
}

// abandon takes w out of the queue, or gives its slot on if it was granted.
func (u *Uploader) abandon(up *Upload, w *waiter) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if w.granted {
		u.active--
		u.grant()
		return
	}
	for i, o := range up.waiters {
		if o == w {
			up.waiters = append(up.waiters[:i], up.waiters[i+1:]...)
			break
		}
	}
	if len(up.waiters) > 0 {
		return
	}
	for i, o := range u.turn {
		if o == up {
			u.turn = append(u.turn[:i], u.turn[i+1:]...)
			break
		}
	}
}

// grant gives free slots to the swarms that wait, one each in turn, so that two
// images share the uplink evenly however many ask for either. mu is held.
func (u *Uploader) grant() {
	for u.active < u.cfg.Active && len(u.turn) > 0 {
		up := u.turn[0]
		u.turn = u.turn[1:]
		w := up.waiters[0]
		up.waiters = up.waiters[1:]
		if len(up.waiters) > 0 {
			u.turn = append(u.turn, up)
		}
		u.active++
		w.granted = true
		close(w.ready)
	}
}

// chunkTime is about how long a chunk holds its slot.
func (u *Uploader) chunkTime() time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.hold()
}

func (u *Uploader) hold() time.Duration {
	if hold := u.holds.median(); hold > 0 {
		return hold
	}
	return firstRetry
}

// retryAfter spreads the next attempts over 0.5 … 1.5 × the time one chunk
// takes (facts: an uploader says when, since 1.4-4.3 answers per chunk are
// "busy"). mu is held.
func (u *Uploader) retryAfter() time.Duration {
	d := time.Duration((0.5 + u.rng.Float64()) * float64(u.hold()))
	return min(max(d, minRetry), maxRetry)
}

// watch gives the place of a slot to others once its peer takes bytes too slowly,
// so that two slow peers do not stop an uploader. The chunk itself continues.
func (s *slot) watch(bytes int64) {
	u := s.u
	u.mu.Lock()
	defer u.mu.Unlock()
	limit := time.Second + time.Duration(float64(bytes)/slowBytesPerSec*float64(time.Second))
	if u.holds.enough() {
		limit = max(time.Second, 4*u.holds.median())
	}
	s.timer = time.AfterFunc(limit, s.overdue)
}

func (s *slot) overdue() {
	u := s.u
	u.mu.Lock()
	defer u.mu.Unlock()
	if s.freed || u.slowN >= maxSlow {
		return
	}
	s.slow = true
	u.slow[s.by.ID]++
	u.slowBy[s.by.Host]++
	u.slowN++
	u.active--
	u.grant()
}

// release frees the slot. A second call does nothing. sent says that the payload was
// read to its end, so that its time tells something about the link.
func (s *slot) release(sent bool) {
	u := s.u
	u.mu.Lock()
	defer u.mu.Unlock()
	if s.freed {
		return
	}
	s.freed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	if sent {
		u.holds.add(time.Since(s.since))
	}
	if !s.slow {
		u.active--
		u.grant()
		return
	}
	u.slowN--
	if u.slow[s.by.ID]--; u.slow[s.by.ID] == 0 {
		delete(u.slow, s.by.ID)
	}
	if u.slowBy[s.by.Host]--; u.slowBy[s.by.Host] == 0 {
		delete(u.slowBy, s.by.Host)
	}
}
