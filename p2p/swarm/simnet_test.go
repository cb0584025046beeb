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
)

// pieceBytes is the length of a simulated chunk; links are as slow as that makes
// it worth 1 MiB.
const pieceBytes = 64

// memChunks holds chunks in memory: chunk n is pieceBytes that begin with n.
type memChunks struct {
	mu     sync.Mutex
	len    int
	have   Bitmap
	wanted Bitmap
	puts   int
	failAt int // the put that fails; 0: none
}

func newMemChunks(n int, full bool) *memChunks {
	c := &memChunks{len: n, have: NewBitmap(n), wanted: everything(n)}
	if full {
		c.have = everything(n)
	}
	return c
}

func (c *memChunks) Len() int        { return c.len }
func (c *memChunks) Bytes(int) int64 { return pieceBytes }
func (c *memChunks) Wanted() Bitmap  { return c.wanted.Clone() }

func (c *memChunks) Have() Bitmap {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.have.Clone()
}

func piece(n int) []byte {
	b := make([]byte, pieceBytes)
	binary.BigEndian.PutUint32(b, uint32(n))
	return b
}

func (c *memChunks) Put(_ context.Context, n int, enc Encoding, payload []byte) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.puts++
	if c.puts == c.failAt {
		return false, errors.New("no space left on device")
	}
	if enc != Raw || !bytes.Equal(payload, piece(n)) {
		return false, nil
	}
	c.have.Set(n)
	return true, nil
}

func (c *memChunks) Frame(_ context.Context, n int) (Frame, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.have.Has(n) {
		return Frame{}, fs.ErrNotExist
	}
	return Frame{Encoding: Raw, Bytes: pieceBytes, Payload: io.NopCloser(bytes.NewReader(piece(n)))}, nil
}

// simNet is a network of nodes whose links are first come, first served.
type simNet struct {
	mu      sync.Mutex
	nodes   map[string]*simNode
	names   []string
	rng     *rand.Rand
	degree  int
	tracker *Tracker
}

// link is one direction of a node's connection.
type link struct {
	rate float64 // bytes/s
	free time.Time
}

type simNode struct {
	net      *simNet
	name     string
	latency  time.Duration // one way, half of it at each end
	up, down link
	chunks   *memChunks
	upload   *Upload
	life     atomic.Pointer[life]

	sent     atomic.Int64 // chunks
	dups     atomic.Int64
	done     time.Duration
	behave   func(ctx context.Context, n int) (Outgoing, error) // nil: as it should
	haves    func(Haves) Haves
	observer Observer
	onHave   func(c int)

	mu   sync.Mutex
	errs map[string]int // refusals given to this node
}

var simSeed = digest.FromString("image")

func newSimNet(seed uint64, degree int) *simNet {
	return &simNet{
		nodes: map[string]*simNode{}, degree: degree,
		rng:     rand.New(rand.NewPCG(seed, 1)),
		tracker: NewTracker(TrackerConfig{Rand: rand.NewPCG(seed, 2)}),
	}
}

// add makes a node; rate is in chunks per second, both ways.
func (s *simNet) add(name string, chunks *memChunks, rate float64, latency time.Duration) *simNode {
	n := &simNode{net: s, name: name, chunks: chunks, latency: latency,
		up: link{rate: rate * pieceBytes}, down: link{rate: rate * pieceBytes}}
	u := NewUploader(UploaderConfig{Rand: rand.NewPCG(s.rng.Uint64(), 3)})
	n.upload = u.Serve(simSeed, chunks)
	n.back()
	s.nodes[name] = n
	s.names = append(s.names, name)
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

func (n *simNode) peer() Peer {
	return Peer{Name: n.name, Address: n.name + ":7951", Complete: n.chunks.Have().Count() == n.chunks.len}
}

// fetch runs the engine of n until it is complete.
func (n *simNode) fetch(ctx context.Context) error {
	n.net.mu.Lock()
	src := rand.NewPCG(n.net.rng.Uint64(), 4)
	n.net.mu.Unlock()
	o := n.observer
	o.Have = func(c int) {
		n.upload.Added(c)
		if n.onHave != nil {
			n.onHave(c)
		}
	}
	o.Duplicate = func(string, int64) { n.dups.Add(1) }
	return Fetch(ctx, FetchConfig{Seed: simSeed, Chunks: n.chunks, Transport: n, Finder: n, Self: n.name,
		Rand: src, Observe: o})
}

// Peers implements Finder: what owners and member lists come to.
func (n *simNode) Peers(ctx context.Context, seed digest.Digest, complete bool) ([]Peer, error) {
	time.Sleep(4 * n.latency)
	s := n.net
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []Peer{}
	if n.name != s.names[0] {
		out = append(out, s.nodes[s.names[0]].peer())
	}
	for _, i := range s.rng.Perm(len(s.names)) {
		if len(out) < s.degree && s.names[i] != n.name && i != 0 && s.nodes[s.names[i]].alive().Err() == nil {
			out = append(out, s.nodes[s.names[i]].peer())
		}
	}
	return out, nil
}

var errGone = errors.New("connection refused")

// target is the node behind p, one trip away, and a context that ends when
// either end goes.
func (n *simNode) target(ctx context.Context, p Peer) (*simNode, context.Context, func(), error) {
	if err := sleep(ctx, n.latency); err != nil {
		return nil, nil, nil, err
	}
	n.net.mu.Lock()
	o := n.net.nodes[p.Name]
	n.net.mu.Unlock()
	if o == nil || o.alive().Err() != nil {
		return nil, nil, nil, errGone
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(o.alive(), cancel)
	return o, ctx, func() { stop(); cancel() }, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// FollowHaves implements Transport: messages arrive in order, latency later.
func (n *simNode) FollowHaves(ctx context.Context, p Peer, _ digest.Digest, _ int, fn func(Haves)) error {
	o, ctx, end, err := n.target(ctx, p)
	if err != nil {
		return err
	}
	defer end()
	type message struct {
		at time.Time
		h  Haves
	}
	line := make(chan message, 4096)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var serveErr error
	wg.Go(func() {
		defer close(line)
		serveErr = o.upload.Haves(ctx, func(h Haves) error {
			if o.haves != nil {
				h = o.haves(h)
			}
			select {
			case line <- message{time.Now().Add(n.latency), h}:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	for m := range line {
		if err := sleep(ctx, time.Until(m.at)); err != nil {
			return err
		}
		fn(m.h)
	}
	if serveErr == nil || o.alive().Err() != nil {
		return errGone
	}
	return serveErr
}

// Chunk implements Transport.
func (n *simNode) Chunk(ctx context.Context, p Peer, _ digest.Digest, c int, buf []byte) (Reply, error) {
	return n.get(ctx, p, buf, func(ctx context.Context, o *simNode) (Outgoing, error) {
		if o.behave != nil {
			return o.behave(ctx, c)
		}
		return o.upload.Chunk(ctx, n.name, c)
	})
}

// Next implements Transport.
func (n *simNode) Next(ctx context.Context, p Peer, _ digest.Digest, want Bitmap, buf []byte) (Reply, error) {
	return n.get(ctx, p, buf, func(ctx context.Context, o *simNode) (Outgoing, error) {
		if o.behave != nil {
			return o.behave(ctx, want.last())
		}
		return o.upload.Next(ctx, n.name, want)
	})
}

func (n *simNode) get(ctx context.Context, p Peer, buf []byte, ask func(context.Context, *simNode) (Outgoing, error)) (Reply, error) {
	o, ctx, end, err := n.target(ctx, p)
	if err != nil {
		return Reply{}, err
	}
	defer end()
	out, err := ask(ctx, o)
	if err != nil {
		n.refused(err)
		if serr := sleep(ctx, n.latency); serr != nil {
			return Reply{}, serr
		}
		return Reply{}, err
	}
	left, arrived := n.net.carry(o, n, out.Bytes)
	err = sleep(ctx, time.Until(left))
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
	if err := sleep(ctx, time.Until(arrived)); err != nil {
		return Reply{}, err
	}
	if len(payload) > cap(buf) {
		return Reply{}, fmt.Errorf("frame of %d bytes, at most %d", len(payload), cap(buf))
	}
	return Reply{Chunk: out.N, Encoding: out.Encoding, Payload: append(buf, payload...)}, nil
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
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	start := latest(now, from.up.free)
	left = start.Add(time.Duration(float64(bytes) / from.up.rate * 1e9))
	from.up.free = left
	// The downlink is taken for what the bytes need of it, not for as long as a
	// slow uplink takes to send them: other transfers fill the gaps.
	to.down.free = latest(now, to.down.free).Add(time.Duration(float64(bytes) / to.down.rate * 1e9))
	return left, latest(left, to.down.free).Add(to.latency)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// run lets every node that lacks something fetch at once, waits, and reports
// those that failed.
func (s *simNet) run(t testing.TB, ctx context.Context) {
	t.Helper()
	start := time.Now()
	var wg sync.WaitGroup
	for _, name := range s.names {
		n := s.nodes[name]
		wg.Go(func() {
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

// close ends every node.
func (s *simNet) close() {
	for _, n := range s.nodes {
		n.leave()
		n.upload.Close()
	}
}
