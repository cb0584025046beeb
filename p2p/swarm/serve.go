package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// Served is one swarm as a node serves it to its peers. It is safe for concurrent use.
type Served interface {
	// Len is the number of chunks.
	Len() int
	// Haves calls fn with the whole map of what is held, then with each change,
	// never concurrently, until ctx ends, fn fails, or the swarm is closed. It
	// returns ErrCrowded at once where enough peers follow already.
	Haves(ctx context.Context, fn func(Haves) error) error
	// Chunk opens chunk n for by. It may wait in a short queue. Errors:
	// ErrNotHeld, ErrCrowded, *BusyError, ctx.
	Chunk(ctx context.Context, by Requester, n int) (Outgoing, error)
	// Next opens one of the chunks in want for by, of this node's choice.
	// Errors: ErrNothing, ErrCrowded, *BusyError, ctx.
	Next(ctx context.Context, by Requester, want chunk.Bitmap) (Outgoing, error)
}

// Outgoing is a chunk that is about to be sent. Anyone who got it reads and closes
// Payload and then calls Done, once, whether or not that went well: Done frees
// the upload slot.
type Outgoing struct {
	N int
	chunk.Frame
	Done func()
}

const (
	// haveInterval is the least time between two messages of a have stream. News
	// goes out at once after a pause and at most this late otherwise (simulated:
	// HAVE every 10 ms 1.08, 20 ms 1.09, 100 ms 1.16 × the optimum).
	haveInterval = 5 * time.Millisecond
	// maxFollowers bounds the have streams of one swarm. A peer follows at most
	// 32 others, chosen at random, so that few are followed by twice as many;
	// those who find a node crowded follow another.
	maxFollowers = 64
	// requesterIdle is how long a complete node keeps the place of an requester that does
	// not ask.
	requesterIdle = 3 * time.Second
)

// Upload is a swarm that this node serves. It implements Served.
type Upload struct {
	uploader *Uploader
	seed     digest.Digest
	chunks   Chunks

	waiters []*waiter // guarded by uploader.mu

	mu         sync.Mutex
	log        []int         // chunks added since Serve, each once
	logged     chunk.Bitmap  // the set of log
	changed    chan struct{} // closed and replaced when log grows
	closed     chan struct{}
	followers  int
	complete   bool                 // every chunk was held when last looked at
	served     []uint32             // how often each chunk was handed out
	out        map[outKey]int       // chunks on their way
	requesters map[string]requester // by id
	lost       map[string]time.Time // hosts that asked for what they had, and until when they come last
}

var _ Served = (*Upload)(nil)

func newUpload(u *Uploader, seed digest.Digest, c Chunks) *Upload {
	return &Upload{
		uploader: u, seed: seed, chunks: c,
		logged:     chunk.NewBitmap(c.Len()),
		changed:    make(chan struct{}),
		closed:     make(chan struct{}),
		served:     make([]uint32, c.Len()),
		out:        map[outKey]int{},
		requesters: map[string]requester{},
		lost:       map[string]time.Time{},
	}
}

// Len implements Served.
func (u *Upload) Len() int { return len(u.served) }

// Added says that chunk n is held from now on; the followers hear of it.
func (u *Upload) Added(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n < 0 || n >= u.Len() || u.logged.Has(n) {
		return
	}
	u.logged.Set(n)
	u.log = append(u.log, n)
	close(u.changed)
	u.changed = make(chan struct{})
}

// Close ends the have streams and refuses further requests; chunks on their way
// out are finished. Again does nothing.
func (u *Upload) Close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	select {
	case <-u.closed:
	default:
		close(u.closed)
	}
}

// errClosed ends the have streams of a closed swarm.
var errClosed = errors.New("swarm is not served any more")

// isComplete reports whether every chunk is held: then this node super-seeds.
// What was complete stays so until a chunk turns out to be gone (lost).
func (u *Upload) isComplete() bool {
	u.mu.Lock()
	done := u.complete
	u.mu.Unlock()
	if done {
		return true
	}
	done = u.chunks.Have().Count() == u.Len()
	u.mu.Lock()
	u.complete = done
	u.mu.Unlock()
	return done
}

// Haves implements Served.
func (u *Upload) Haves(ctx context.Context, fn func(Haves) error) error {
	u.mu.Lock()
	if u.followers >= maxFollowers {
		u.mu.Unlock()
		return ErrCrowded
	}
	u.followers++
	pos := len(u.log)
	u.mu.Unlock()
	defer func() {
		u.mu.Lock()
		u.followers--
		u.mu.Unlock()
	}()

	// Read after pos was taken: what comes between is told twice, never not.
	held := chunk.NewBitmap(u.Len())
	copy(held, u.chunks.Have())
	if err := fn(Haves{Map: held.Clone(), Complete: held.Count() == u.Len()}); err != nil {
		return err
	}
	for last := time.Now(); ; {
		news, changed := u.since(&pos, held)
		if len(news) > 0 {
			last = time.Now()
			if err := fn(Haves{New: news, Complete: held.Count() == u.Len()}); err != nil {
				return err
			}
		}
		if err := u.wait(ctx, changed, 0); err != nil {
			return err
		}
		if gap := haveInterval - time.Since(last); gap > 0 {
			if err := u.wait(ctx, nil, gap); err != nil {
				return err
			}
		}
	}
}

// wait waits for changed, or for d where that is positive, and ends early with
// an error when ctx or the swarm does.
func (u *Upload) wait(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	var pause <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		pause = t.C
	}
	select {
	case <-changed:
	case <-pause:
	case <-u.closed:
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// since returns what the log has after pos and held lacks, ascending, adds it to
// held, and moves pos on.
func (u *Upload) since(pos *int, held chunk.Bitmap) (news []int, changed <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, n := range u.log[*pos:] {
		if !held.Has(n) {
			held.Set(n)
			news = append(news, n)
		}
	}
	*pos = len(u.log)
	slices.Sort(news)
	return news, u.changed
}

// Chunk implements Served.
func (u *Upload) Chunk(ctx context.Context, by Requester, n int) (Outgoing, error) {
	if n < 0 || n >= u.Len() || !u.chunks.Have().Has(n) {
		return Outgoing{}, ErrNotHeld
	}
	return u.serve(ctx, by, func() int { return n })
}

// Next implements Served.
func (u *Upload) Next(ctx context.Context, by Requester, want chunk.Bitmap) (Outgoing, error) {
	if !u.hasAny(want) {
		return Outgoing{}, ErrNothing
	}
	return u.serve(ctx, by, func() int { return u.leastServed(by.ID, want) })
}

func (u *Upload) hasAny(want chunk.Bitmap) bool {
	for i, w := range u.chunks.Have() {
		if i < len(want) && w&want[i] != 0 {
			return true
		}
	}
	return false
}

// serve admits by, waits for a slot, and opens the chunk that choose names
// then (-1: none any more).
func (u *Upload) serve(ctx context.Context, by Requester, choose func() int) (Outgoing, error) {
	peer := by.ID
	place, err := u.admit(by, time.Now())
	if err != nil {
		return Outgoing{}, err
	}
	if u.hadMore(peer, time.Now()) {
		place = last
	}
	s, err := u.uploader.acquire(ctx, u, by, place)
	if err != nil {
		u.leave(peer)
		return Outgoing{}, err
	}
	u.mu.Lock()
	n := choose()
	if n >= 0 {
		u.served[n]++
		u.out[outKey{peer, n}]++
		u.granted(peer, n, time.Now())
	}
	u.mu.Unlock()
	if n < 0 {
		s.release(false)
		u.leave(peer)
		return Outgoing{}, ErrNothing
	}
	f, err := u.chunks.Frame(ctx, n)
	if err != nil {
		s.release(false)
		u.ended(peer, n, false)
		if errors.Is(err, fs.ErrNotExist) {
			return Outgoing{}, fmt.Errorf("chunk %d: %w", n, ErrNotHeld)
		}
		return Outgoing{}, fmt.Errorf("open chunk %d of %s: %w", n, u.seed, err)
	}
	s.watch(f.Bytes)
	body := &counted{ReadCloser: f.Payload, left: f.Bytes}
	f.Payload = body
	return Outgoing{N: n, Frame: f, Done: sync.OnceFunc(func() {
		// In this order: the next holder of the slot sees what has become of this chunk.
		sent := body.left <= 0
		u.ended(peer, n, sent)
		s.release(sent)
		if told := u.uploader.cfg.Sent; sent && told != nil {
			told(u.seed, u.chunks.Bytes(n))
		}
	})}, nil
}

// counted counts the bytes that are still to be read: a payload that was not
// read to its end did not reach its peer. Read and Done never run at once.
type counted struct {
	io.ReadCloser
	left int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.left -= int64(n)
	return n, err
}

// outKey is a chunk on its way to a peer.
type outKey struct {
	peer  string
	chunk int
}

// leastServed is how a super-seed chooses (Bharambe 2006: a seed that sends each
// block once fixes the weak case of rarest-first): the least served chunk, ties
// by lowest offset, so that what is handed out is in file order and unpacking
// overlaps with arrival. It skips what is on its way to that peer already. mu is
// held.
func (u *Upload) leastServed(peer string, want chunk.Bitmap) int {
	have := u.chunks.Have()
	best := -1
	want.Both(have, func(n int) bool {
		if n >= u.Len() || (best >= 0 && u.served[n] >= u.served[best]) {
			return true
		}
		if u.out[outKey{peer, n}] == 0 {
			best = n
		}
		return best < 0 || u.served[best] > 0
	})
	return best
}

// admit gives peer a place among the requesters. A complete node takes only so many
// (simulated at N = 1,000: 32 requesters 1.07, everybody 1.09 × the optimum, and
// without super-seeding 1.24): what it sends goes to few, who pass it on.
func (u *Upload) admit(by Requester, now time.Time) (place, error) {
	peer := by.ID
	crowdable := u.isComplete()
	u.mu.Lock()
	defer u.mu.Unlock()
	select {
	case <-u.closed:
		return 0, ErrNotHeld
	default:
	}
	a, known := u.requesters[peer]
	if !known && crowdable && !u.makePlace(by.Host, now) {
		return 0, ErrCrowded
	}
	if !known && !crowdable && len(u.requesters) > 4*u.uploader.cfg.Requesters {
		u.expireAskers(now)
	}
	if !known {
		a.host, a.grants = by.Host, u.fewestGrants()
	}
	a.last = now
	a.pending++
	u.requesters[peer] = a
	for p, o := range u.requesters {
		if p != peer && (o.pending > 0 || now.Sub(o.last) < aloneAfter) {
			if a.pending > 1 {
				return again, nil
			}
			return first, nil
		}
	}
	return alone, nil
}

// place is how a request stands to the others of its swarm.
type place int

const (
	first place = iota // the only one of its peer that is served or waits
	again              // one more of its peer
	alone              // nobody else has asked lately
	last               // of a peer that has had more than others who ask too
)

// aloneAfter is for how long somebody who asked keeps the others from being alone:
// a few trips to far peers.
const aloneAfter = time.Second

// hadMore reports whether peer has had more from this super-seed than others who ask
// too: it does not wait here then, so that it is they who come next. Anyone who was just
// served asks again at once while the others wait for their retry time, so that
// without this rule as few requesters as there are places would get everything (simulated:
// a source asked by 4 peers 1.12 × the optimum, by 32 1.07). A slot that is free it
// gets anyway (simulated, means of three: where it is refused that too, 64 nodes
// with trips of 1 ms 1.055 and of 50 ms 1.45, four of these 1.57; else 1.047, 1.29,
// 1.28: far peers come back late, and the uplink waits for them).
func (u *Upload) hadMore(peer string, now time.Time) bool {
	recent := 4 * u.uploader.chunkTime()
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.complete {
		return false
	}
	a, byHost := u.requesters[peer], u.hostGrants()
	for p, o := range u.requesters {
		fewer := byHost[o.host] < byHost[a.host] || o.host == a.host
		if p != peer && fewer && o.grants < a.grants && (o.pending == 0 && now.Sub(o.last) < recent) {
			return true
		}
	}
	return false
}

// expireAskers frees the places of those who stopped asking. mu is held.
func (u *Upload) expireAskers(now time.Time) {
	for p, a := range u.requesters {
		if a.pending == 0 && now.Sub(a.last) > requesterIdle {
			delete(u.requesters, p)
		}
	}
}

// fewestGrants is where a new requester starts: it is owed nothing from before.
func (u *Upload) fewestGrants() int {
	fewest := -1
	for _, a := range u.requesters {
		if fewest < 0 || a.grants < fewest {
			fewest = a.grants
		}
	}
	return max(fewest, 0)
}

// leave ends one request of an requester.
func (u *Upload) leave(peer string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.left(peer)
}

func (u *Upload) left(peer string) {
	if a, ok := u.requesters[peer]; ok {
		a.pending = max(0, a.pending-1)
		a.last = time.Now()
		u.requesters[peer] = a
	}
}

// ended ends an upload. What did not arrive does not count as served, and a
// chunk that could not be opened makes this node read again what it holds.
func (u *Upload) ended(peer string, n int, sent bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	key := outKey{peer, n}
	if u.out[key]--; u.out[key] <= 0 {
		delete(u.out, key)
	}
	if !sent {
		u.served[n]--
		u.complete = false
	} else {
		u.took(peer, n)
	}
	u.left(peer)
}
