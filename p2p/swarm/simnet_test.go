package swarm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// pieceBytes is the length of a simulated chunk; links are as slow as that makes
// it worth 1 MiB.
const pieceBytes = 64

// memChunks holds chunks in memory: chunk n is pieceBytes that begin with n.
type memChunks struct {
	mu     sync.Mutex
	len    int
	have   chunk.Bitmap
	wanted chunk.Bitmap
	puts   int
	failAt int // the put that fails; 0: none
}

func newMemChunks(n int, full bool) *memChunks {
	c := &memChunks{len: n, have: chunk.NewBitmap(n), wanted: everything(n)}
	if full {
		c.have = everything(n)
	}
	return c
}

func (c *memChunks) Len() int             { return c.len }
func (c *memChunks) Bytes(int) int64      { return pieceBytes }
func (c *memChunks) Wanted() chunk.Bitmap { return c.wanted.Clone() }

func (c *memChunks) Have() chunk.Bitmap {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.have.Clone()
}

func piece(n int) []byte {
	b := make([]byte, pieceBytes)
	binary.BigEndian.PutUint32(b, uint32(n))
	return b
}

func (c *memChunks) Put(_ context.Context, n int, enc chunk.Encoding, payload []byte) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.puts++
	if c.puts == c.failAt {
		return false, errors.New("no space left on device")
	}
	if enc != chunk.Raw || !bytes.Equal(payload, piece(n)) {
		return false, nil
	}
	c.have.Set(n)
	return true, nil
}

func (c *memChunks) Frame(_ context.Context, n int) (chunk.Frame, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.have.Has(n) {
		return chunk.Frame{}, fs.ErrNotExist
	}
	return chunk.Frame{Encoding: chunk.Raw, Bytes: pieceBytes, Payload: io.NopCloser(bytes.NewReader(piece(n)))}, nil
}

// simNet is a network of nodes whose links are first come, first served, and one
// image on it.
type simNet struct {
	clock   *clock
	seed    digest.Digest
	nodes   map[string]*simNode
	names   []string
	rng     *rand.Rand
	degree  int
	small   int64       // FetchConfig.Small
	carried *sync.Mutex // guards the links
}

// link is one direction of a node's connection.
type link struct {
	rate float64 // bytes/s
	free time.Time
}

type simNode struct {
	net      *simNet
	id       int32
	name     string
	rng      *rand.Rand    // its chances, whatever the others do; guarded by mu
	latency  time.Duration // one way to a node like it
	up, down *link
	uploader *Uploader
	chunks   *memChunks
	upload   *Upload
	life     atomic.Pointer[life]

	joins     time.Duration // after the start
	unplugged time.Duration // how long a dial takes to fail once it has left
	sent      atomic.Int64  // chunks
	followed  atomic.Int64  // have streams
	dups      atomic.Int64
	done      time.Duration                                      // from its start
	behave    func(ctx context.Context, n int) (Outgoing, error) // nil: as it should
	haves     func(Haves) Haves
	observer  Observer
	onHave    func(c int)

	mu   sync.Mutex
	errs map[string]int // refusals given to this node
}

var simSeed = digest.FromString("image")

// newSimNet must be called, and its close, inside a bubble of synctest.
func newSimNet(seed uint64, degree int) *simNet {
	return &simNet{
		clock: newClock(), seed: simSeed, carried: &sync.Mutex{},
		nodes: map[string]*simNode{}, degree: degree,
		rng: rand.New(rand.NewPCG(seed, 1)),
	}
}

// another is the same network as another image sees it.
func (s *simNet) another(seed digest.Digest) *simNet {
	return &simNet{
		clock: s.clock, seed: seed, carried: s.carried,
		nodes: map[string]*simNode{}, degree: s.degree,
		rng: rand.New(rand.NewPCG(s.rng.Uint64(), 2)),
	}
}

// add makes a node; rate is in chunks per second, both ways.
func (s *simNet) add(name string, chunks *memChunks, rate float64, latency time.Duration) *simNode {
	u := NewUploader(UploaderConfig{Rand: rand.NewPCG(s.rng.Uint64(), 3)})
	return s.insert(&simNode{name: name, chunks: chunks, latency: latency, uploader: u,
		up: &link{rate: rate * pieceBytes}, down: &link{rate: rate * pieceBytes}})
}

// share lets o, of another image, take part in this one with the same links and
// the same upload slots.
func (s *simNet) share(o *simNode, chunks *memChunks) *simNode {
	return s.insert(&simNode{name: o.name, chunks: chunks, latency: o.latency, uploader: o.uploader,
		up: o.up, down: o.down})
}

func (s *simNet) insert(n *simNode) *simNode {
	n.net, n.id = s, int32(len(s.names))
	n.rng = rand.New(rand.NewPCG(s.rng.Uint64(), 4))
	n.upload = n.uploader.Serve(s.seed, n.chunks)
	n.back()
	s.nodes[n.name] = n
	s.names = append(s.names, n.name)
	return n
}

// life is from when a node comes until it leaves.
type life struct {
	ctx context.Context
	end context.CancelFunc
}

func (n *simNode) back() {
	ctx, end := context.WithCancel(context.Background())
	n.life.Store(&life{ctx, end})
}

func (n *simNode) leave()                 { n.life.Load().end() }
func (n *simNode) alive() context.Context { return n.life.Load().ctx }

// leaveAfter lets n leave d from now.
func (n *simNode) leaveAfter(d time.Duration) {
	n.net.clock.plan(stepKey{to: n.id, from: n.id, kind: kindJoin}, d, n.leave)
}

func (n *simNode) peer() Peer {
	return Peer{Name: n.name, Address: n.name + ":7951", Complete: n.chunks.Have().Count() == n.chunks.len}
}

// trip is how long a message takes between n and o.
func (n *simNode) trip(o *simNode) time.Duration { return (n.latency + o.latency) / 2 }

// pause waits for a step of n about o.
func (n *simNode) pause(ctx context.Context, k kind, o *simNode, chunk int, d time.Duration) error {
	return n.net.clock.sleep(ctx, stepKey{to: n.id, from: o.id, kind: k, chunk: int32(chunk)}, d)
}

// staged are the chunks of a node that verifies in no time.
type staged struct {
	*memChunks
	node *simNode
}

func (c *staged) Put(ctx context.Context, n int, enc chunk.Encoding, payload []byte) (bool, error) {
	if err := c.node.pause(ctx, kindPut, c.node, n, 0); err != nil {
		return false, err
	}
	return c.memChunks.Put(ctx, n, enc, payload)
}

// fetch runs the engine of n until it is complete.
func (n *simNode) fetch(ctx context.Context) error {
	n.mu.Lock()
	src := rand.NewPCG(n.rng.Uint64(), 5)
	n.mu.Unlock()
	o := n.observer
	o.Have = func(c int) {
		n.upload.Added(c)
		if n.onHave != nil {
			n.onHave(c)
		}
	}
	o.Duplicate = func(string, int64) { n.dups.Add(1) }
	return Fetch(ctx, FetchConfig{Seed: n.net.seed, Chunks: &staged{n.chunks, n}, Transport: n, Finder: n,
		Self: n.name, Small: n.net.small, Rand: src, Observe: o})
}

// Peers implements Finder: what owners and member lists come to.
func (n *simNode) Peers(ctx context.Context, seed digest.Digest, complete bool) ([]Peer, error) {
	if err := n.pause(ctx, kindFind, n, 0, 4*n.latency); err != nil {
		return nil, err
	}
	s := n.net
	n.mu.Lock()
	order := n.rng.Perm(len(s.names))
	n.mu.Unlock()
	out := []Peer{}
	if n.name != s.names[0] {
		out = append(out, s.nodes[s.names[0]].peer())
	}
	for _, i := range order {
		if len(out) < s.degree && s.names[i] != n.name && i != 0 && s.nodes[s.names[i]].alive().Err() == nil {
			out = append(out, s.nodes[s.names[i]].peer())
		}
	}
	return out, nil
}

var errGone = errors.New("connection refused")

// target is the node behind p, one trip away, and a context that ends when
// either end goes.
func (n *simNode) target(ctx context.Context, p Peer, chunk int) (*simNode, context.Context, func(), error) {
	o := n.net.nodes[p.Name]
	if o == nil {
		return nil, nil, nil, errGone
	}
	if err := n.pause(ctx, kindTrip, o, chunk, n.trip(o)); err != nil {
		return nil, nil, nil, err
	}
	if o.alive().Err() != nil {
		if err := n.pause(ctx, kindTrip, o, chunk, o.unplugged); err != nil {
			return nil, nil, nil, err
		}
		return nil, nil, nil, errGone
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(o.alive(), cancel)
	return o, ctx, func() { stop(); cancel() }, nil
}

// FollowHaves implements Transport: messages arrive in order, a trip later.
func (n *simNode) FollowHaves(ctx context.Context, p Peer, _ digest.Digest, _ int, fn func(Haves)) error {
	o, ctx, end, err := n.target(ctx, p, -2)
	if err != nil {
		return err
	}
	defer end()
	o.followed.Add(1)
	err = o.upload.Haves(ctx, func(h Haves) error {
		if o.haves != nil {
			h = o.haves(h)
		}
		n.net.clock.plan(stepKey{to: n.id, from: o.id, kind: kindHave}, n.trip(o), func() {
			if ctx.Err() == nil {
				fn(h)
			}
		})
		return nil
	})
	if perr := n.pause(ctx, kindBroken, o, 0, n.trip(o)); perr != nil && o.alive().Err() == nil {
		return perr
	}
	if o.alive().Err() != nil {
		return errGone
	}
	return err
}

// Chunk implements Transport.
func (n *simNode) Chunk(ctx context.Context, p Peer, _ digest.Digest, c int, buf Buffer) (Reply, error) {
	return n.get(ctx, p, c, buf, func(ctx context.Context, o *simNode) (Outgoing, error) {
		if o.behave != nil {
			return o.behave(ctx, c)
		}
		return o.upload.Chunk(ctx, by(n.name), c)
	})
}

// Next implements Transport.
func (n *simNode) Next(ctx context.Context, p Peer, _ digest.Digest, want chunk.Bitmap, buf Buffer) (Reply, error) {
	return n.get(ctx, p, -1, buf, func(ctx context.Context, o *simNode) (Outgoing, error) {
		if o.behave != nil {
			return o.behave(ctx, want.Last())
		}
		return o.upload.Next(ctx, by(n.name), want)
	})
}

func (n *simNode) get(ctx context.Context, p Peer, chunk int, buf Buffer, ask func(context.Context, *simNode) (Outgoing, error)) (Reply, error) {
	o, ctx, end, err := n.target(ctx, p, chunk)
	if err != nil {
		return Reply{}, err
	}
	defer end()
	out, err := ask(ctx, o)
	if err != nil {
		n.refused(err)
		if perr := n.pause(ctx, kindArrived, o, chunk, n.trip(o)); perr != nil {
			return Reply{}, perr
		}
		return Reply{}, err
	}
	left, arrived := n.net.carry(o, n, out.Bytes)
	err = n.pause(ctx, kindSent, o, out.N, time.Until(left))
	payload, rerr := io.ReadAll(out.Payload)
	if err != nil {
		payload = nil
	}
	out.Payload.Close()
	out.Done()
	if err = errors.Join(err, rerr); err != nil {
		return Reply{}, err
	}
	o.sent.Add(1)
	if err := n.pause(ctx, kindArrived, o, out.N, time.Until(arrived)); err != nil {
		return Reply{}, err
	}
	lent := buf(out.N, int64(len(payload)))
	if lent == nil {
		return Reply{}, fmt.Errorf("frame of %d bytes is too long", len(payload))
	}
	return Reply{Chunk: out.N, Encoding: out.Encoding, Payload: append(lent.Payload[:0], payload...), Trip: 2 * n.trip(o)}, nil
}

// refused counts a refusal by its kind.
func (n *simNode) refused(err error) {
	var busy *BusyError
	kind := err.Error()
	if errors.As(err, &busy) {
		kind = "busy"
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.errs == nil {
		n.errs = map[string]int{}
	}
	n.errs[kind]++
}

// carry books bytes on the uplink of from and the downlink of to and returns
// when they have left the one and come over the other.
func (s *simNet) carry(from, to *simNode, bytes int64) (left, arrived time.Time) {
	s.carried.Lock()
	defer s.carried.Unlock()
	now := time.Now()
	start := latest(now, from.up.free)
	left = start.Add(time.Duration(float64(bytes) / from.up.rate * 1e9))
	from.up.free = left
	// The downlink is taken for what the bytes need of it, not for as long as a
	// slow uplink takes to send them: other transfers fill the gaps.
	to.down.free = latest(now, to.down.free).Add(time.Duration(float64(bytes) / to.down.rate * 1e9))
	return left, latest(left, to.down.free).Add(from.trip(to))
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// run lets every node that lacks something fetch, all at once but those who join
// later, waits, and reports those that failed.
func (s *simNet) run(t testing.TB, ctx context.Context) {
	t.Helper()
	var wg sync.WaitGroup
	for _, name := range s.names {
		n := s.nodes[name]
		if n.joins > 0 {
			n.leave()
		}
		wg.Go(func() {
			if n.joins > 0 {
				n.pause(ctx, kindJoin, n, 0, n.joins)
				n.back()
			}
			start := time.Now()
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(n.alive(), cancel)()
			err := n.fetch(ctx)
			if err != nil && n.alive().Err() == nil {
				t.Errorf("%s: %v", n.name, err)
			}
			n.done = time.Since(start)
		})
	}
	wg.Wait()
}

// close ends every node, and the clock.
func (s *simNet) close() {
	s.closeNodes()
	s.clock.end()
}

func (s *simNet) closeNodes() {
	for _, n := range s.nodes {
		n.leave()
		n.upload.Close()
	}
}
