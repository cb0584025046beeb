package swarm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

const (
	fast = 125.0 // chunks/s: 1 MiB at 1 Gbit/s
	trip = 500 * time.Microsecond
)

// crowd makes a source and n-1 nodes that hold nothing.
func crowd(nodes, chunks int) (*simNet, []*simNode) {
	s := newSimNet(7, maxNeighbours)
	var all []*simNode
	for i := range nodes {
		all = append(all, s.add(fmt.Sprintf("n%d", i), newMemChunks(chunks, i == 0), fast, trip))
	}
	return s, all
}

func frameOf(payload []byte) chunk.Frame {
	return chunk.Frame{Encoding: chunk.Raw, Bytes: int64(len(payload)), Payload: io.NopCloser(bytes.NewReader(payload))}
}

// The zoo: n2 holds everything and behaves badly; the others must finish all the
// same, in not much more time than without it.
func TestBadPeers(t *testing.T) {
	const chunks = 64
	zoo := []struct {
		name   string
		behave func(n *simNode) func(ctx context.Context, c int) (Outgoing, error)
		within time.Duration
		bad    bool // is told as BadChunk
	}{
		{name: "silent", within: 3 * time.Second, behave: func(*simNode) func(context.Context, int) (Outgoing, error) {
			return func(ctx context.Context, _ int) (Outgoing, error) { <-ctx.Done(); return Outgoing{}, ctx.Err() }
		}},
		{name: "corrupt", bad: true, within: time.Second, behave: func(*simNode) func(context.Context, int) (Outgoing, error) {
			return func(_ context.Context, c int) (Outgoing, error) {
				p := piece(c)
				p[pieceBytes-1] ^= 1
				return Outgoing{N: c, Frame: frameOf(p), Done: func() {}}, nil
			}
		}},
		{name: "wrong chunk", bad: true, within: time.Second, behave: func(*simNode) func(context.Context, int) (Outgoing, error) {
			return func(_ context.Context, c int) (Outgoing, error) {
				c = (c + 1) % chunks
				return Outgoing{N: c, Frame: frameOf(piece(c)), Done: func() {}}, nil
			}
		}},
		{name: "no such chunk", bad: true, within: time.Second, behave: func(*simNode) func(context.Context, int) (Outgoing, error) {
			return func(_ context.Context, c int) (Outgoing, error) {
				return Outgoing{N: -5, Frame: frameOf(piece(c)), Done: func() {}}, nil
			}
		}},
		{name: "too long", within: time.Second, behave: func(*simNode) func(context.Context, int) (Outgoing, error) {
			return func(_ context.Context, c int) (Outgoing, error) {
				return Outgoing{N: c, Frame: frameOf(make([]byte, 2*pieceBytes)), Done: func() {}}, nil
			}
		}},
		{name: "busy forever", within: time.Second, behave: func(*simNode) func(context.Context, int) (Outgoing, error) {
			return func(context.Context, int) (Outgoing, error) {
				return Outgoing{}, &BusyError{RetryAfter: time.Millisecond}
			}
		}},
		{name: "crowded forever", within: time.Second, behave: func(*simNode) func(context.Context, int) (Outgoing, error) {
			return func(context.Context, int) (Outgoing, error) { return Outgoing{}, ErrCrowded }
		}},
		{name: "claims what it lacks", within: time.Second, behave: func(*simNode) func(context.Context, int) (Outgoing, error) {
			return func(context.Context, int) (Outgoing, error) { return Outgoing{}, ErrNotHeld }
		}},
		{name: "has nothing after all", within: time.Second, behave: func(*simNode) func(context.Context, int) (Outgoing, error) {
			return func(context.Context, int) (Outgoing, error) { return Outgoing{}, ErrNothing }
		}},
		{name: "fails", within: time.Second, behave: func(*simNode) func(context.Context, int) (Outgoing, error) {
			return func(context.Context, int) (Outgoing, error) { return Outgoing{}, errors.New("unexpected EOF") }
		}},
		{name: "slow", within: 3 * time.Second, behave: func(n *simNode) func(context.Context, int) (Outgoing, error) {
			n.up.rate = fast * pieceBytes / 100 // 0.8 s a chunk
			return nil
		}},
		{name: "very slow", within: 4 * time.Second, behave: func(n *simNode) func(context.Context, int) (Outgoing, error) {
			n.up.rate = fast * pieceBytes / 10000 // 10 KB/s: 80 s a chunk
			return nil
		}},
	}
	for _, z := range zoo {
		t.Run(z.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, n := crowd(5, chunks)
				defer s.close()
				n[2].chunks.have = everything(chunks)
				n[2].behave = z.behave(n[2])
				var mu sync.Mutex
				told := map[string]int{}
				for _, o := range n {
					o.observer.BadChunk = func(p, _ string, _ int) {
						mu.Lock()
						defer mu.Unlock()
						told[o.name+" of "+p]++
					}
				}
				s.run(t, t.Context())
				for _, o := range n {
					if o.done > z.within {
						t.Errorf("%s was done after %v, want %v at most", o.name, o.done, z.within)
					}
				}
				for who, k := range told {
					if !strings.HasSuffix(who, " of n2") || k > maxPerPeer {
						t.Errorf("%s: %d bad chunks", who, k)
					}
				}
				if z.bad != (len(told) > 0) {
					t.Errorf("bad chunks told: %v, want any: %v", told, z.bad)
				}
			})
		})
	}
}

// A peer whose frame does not verify is not asked for a while, even when it is the
// only one; then it is, so that a fetch goes on once it is whole again.
func TestBlameLapses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := crowd(2, 8)
		defer s.close()
		var asked atomic.Int64
		whole := time.Now().Add(90 * time.Second)
		n[0].behave = func(ctx context.Context, c int) (Outgoing, error) {
			asked.Add(1)
			p := piece(c)
			if time.Now().Before(whole) {
				p = make([]byte, pieceBytes)
			}
			return Outgoing{N: c, Frame: frameOf(p), Done: func() {}}, nil
		}
		var mu sync.Mutex
		var last Progress
		n[1].observer.State = func(p Progress) { mu.Lock(); defer mu.Unlock(); last = p }
		var wg sync.WaitGroup
		defer wg.Wait()
		var err error
		wg.Go(func() { err = n[1].fetch(t.Context()) })
		for _, step := range []struct {
			after time.Duration
			asked int64 // chunks at most
		}{{firstBlame - time.Second, maxPerPeer}, {2*firstBlame - 2*time.Second, 2 * maxPerPeer}} {
			time.Sleep(step.after)
			mu.Lock()
			if got := asked.Load(); got > step.asked || last.Neighbours != 0 || !strings.Contains(last.Reason, "n0 sent damaged data") {
				t.Errorf("asked for %d chunks, at most %d; progress: %+v", got, step.asked, last)
			}
			mu.Unlock()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if err != nil || n[1].chunks.Have().Count() != 8 {
			t.Errorf("after it is whole again: %v, %d chunks", err, n[1].chunks.Have().Count())
		}
	})
}

// Nobody else is blamed for what an identity sends under their names, and one that is
// blamed is not believed under another name either.
func TestBlameIsForTheIdentity(t *testing.T) {
	t.Parallel()
	bs := blames{}
	now := time.Now()
	bs.accuse("evil", "10.0.0.9:1", now)
	honest := &known{peer: Peer{Name: "n1", Address: "10.0.0.1:1"}}
	for name, c := range map[string]struct {
		k    *known
		want bool
	}{
		"the honest one":         {honest, false},
		"its name, evil address": {&known{peer: Peer{Name: "n1", Address: "10.0.0.9:1"}}, true},
		"another address":        {&known{peer: Peer{Name: "n2", Address: "10.0.0.8:1"}, id: "evil"}, true},
	} {
		if got := !bs.of(c.k, now.Add(time.Second)).IsZero(); got != c.want {
			t.Errorf("%s: blamed %v, want %v", name, got, c.want)
		}
	}
	for range 3 * maxBlamed {
		bs.accuse(fmt.Sprint(len(bs), "-", time.Now().UnixNano()), fmt.Sprint(now), now)
	}
	if len(bs) > maxBlamed {
		t.Errorf("%d are remembered, at most %d", len(bs), maxBlamed)
	}
}

// A link on which one chunk takes longer than the shortest deadline is no reason
// to ask again or to give up.
func TestSlowOnlyHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := crowd(2, 6)
		defer s.close()
		n[0].up.rate = pieceBytes / 5.0 // 5 s a chunk
		s.run(t, t.Context())
		if sent := n[0].sent.Load(); sent != 6 || n[1].done > 31*time.Second {
			t.Errorf("%d chunks sent in %v, want 6 in 30 s", sent, n[1].done)
		}
	})
}

// The source goes when it has sent a part of the image: the swarm finishes if
// the others hold all of it between them, else it says who must come back, and
// finishes when that happens.
func TestSourceVanishes(t *testing.T) {
	const chunks = 100
	for _, at := range []int64{10, 50, 99, 130} {
		t.Run(fmt.Sprintf("after %d chunks", at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, n := crowd(6, chunks)
				defer s.close()
				var mu sync.Mutex
				reasons := map[string]string{}
				for _, o := range n[1:] {
					o.observer.State = func(p Progress) { mu.Lock(); reasons[o.name] = p.Reason; mu.Unlock() }
				}
				var wg sync.WaitGroup
				wg.Go(func() { s.run(t, t.Context()) })
				for n[0].sent.Load() < at && !complete(n[1:]) {
					time.Sleep(time.Millisecond)
				}
				n[0].leave()
				time.Sleep(30 * time.Second)
				mu.Lock()
				for _, o := range n[1:] {
					want := missingEverywhere(n[1:]) > 0
					if got := o.chunks.Have().Count() < chunks; got != want {
						t.Errorf("%s waits: %v, want %v", o.name, got, want)
					}
					if r := reasons[o.name]; want && !strings.HasSuffix(r, "they were on n0") {
						t.Errorf("%s says %q, not whose return it waits for", o.name, r)
					}
				}
				mu.Unlock()
				n[0].back()
				wg.Wait()
				if !complete(n[1:]) {
					t.Error("not complete after the source came back")
				}
			})
		})
	}
}

// A source that lost its power does not refuse: each try to reach it takes seconds.
// All that time the others say whose return they wait for.
func TestSourceUnplugged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const chunks = 100
		s, n := crowd(4, chunks)
		defer s.close()
		n[0].unplugged = 5 * time.Second // the transport's patience with a dial
		var mu sync.Mutex
		said := map[string]map[string]bool{}
		listen := false
		for _, o := range n[1:] {
			said[o.name] = map[string]bool{}
			o.observer.State = func(p Progress) {
				mu.Lock()
				defer mu.Unlock()
				if !listen {
					clear(said[o.name]) // but for the last one
				}
				said[o.name][p.Reason] = true
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() { s.run(t, t.Context()) })
		for n[0].sent.Load() < 40 {
			time.Sleep(time.Millisecond)
		}
		n[0].leave()
		time.Sleep(5 * time.Second)
		mu.Lock()
		listen = true
		mu.Unlock()
		time.Sleep(time.Minute)
		mu.Lock()
		for name, reasons := range said {
			for r := range reasons {
				if !strings.HasSuffix(r, "they were on n0") {
					t.Errorf("%s says %q, not whose return it waits for", name, r)
				}
			}
		}
		mu.Unlock()
		n[0].back()
		wg.Wait()
	})
}

func complete(nodes []*simNode) bool {
	return !slices.ContainsFunc(nodes, func(n *simNode) bool { return n.chunks.Have().Count() < n.chunks.len })
}

// missingEverywhere counts the chunks that no node holds.
func missingEverywhere(nodes []*simNode) int {
	missing := everything(nodes[0].chunks.len)
	for _, n := range nodes {
		missing = missing.Without(n.chunks.Have())
	}
	return missing.Count()
}

// A node without peers waits, asks seldom, says so, and starts within a second
// once there is one.
func TestAloneThenNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := crowd(2, 4)
		defer s.close()
		n[0].leave()
		s.names = []string{"n0"}
		f := &countingFinder{Finder: n[1]}
		var reason atomic.Value
		done := make(chan error)
		go func() {
			done <- Fetch(t.Context(), FetchConfig{Seed: simSeed, Chunks: n[1].chunks, Transport: n[1], Finder: f,
				Self: "n1", Observe: Observer{State: func(p Progress) { reason.Store(p.Reason) }}})
		}()
		time.Sleep(time.Minute)
		if k := f.asked.Load(); k > 40 {
			t.Errorf("asked for peers %d times in a minute", k)
		}
		if r := reason.Load().(string); !strings.Contains(r, "connection refused") {
			t.Errorf("reason: %q", r)
		}
		n[0].back()
		back := time.Now()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if d := time.Since(back); d > 11*time.Second {
			t.Errorf("took %v after the peer came back", d)
		}
	})
}

type countingFinder struct {
	Finder
	asked atomic.Int64
}

func (f *countingFinder) Peers(ctx context.Context, seed digest.Digest, complete bool) ([]Peer, error) {
	f.asked.Add(1)
	return f.Finder.Peers(ctx, seed, complete)
}

// The first requests wait for no timer: a small image on a few nodes takes a few
// trips.
func TestSmallImageIsQuick(t *testing.T) {
	for _, nodes := range []int{2, 3, 4} {
		synctest.Test(t, func(t *testing.T) {
			s, n := crowd(nodes, 2)
			defer s.close()
			s.run(t, t.Context())
			for _, o := range n[1:] {
				if o.done > 60*time.Millisecond {
					t.Errorf("%d nodes: %s was done after %v", nodes, o.name, o.done)
				}
			}
		})
	}
}

// TestSmallImageFollowsNobody: where little is missing and a complete peer serves it, no
// have stream is opened, by as many nodes as a small cluster has.
func TestSmallImageFollowsNobody(t *testing.T) {
	for _, nodes := range []int{2, 8, 16} {
		synctest.Test(t, func(t *testing.T) {
			s, n := crowd(nodes, 20)
			defer s.close()
			s.small = 20 * pieceBytes
			for _, o := range n { // so little takes no time
				o.up.rate, o.down.rate = 100*fast*pieceBytes, 100*fast*pieceBytes
			}
			s.run(t, t.Context())
			for _, o := range n {
				if followed := o.followed.Load(); followed > 0 || o.done > smallPatience {
					t.Errorf("%d nodes: %d follow %s, which was done after %v", nodes, followed, o.name, o.done)
				}
			}
		})
	}
}

// TestSmallImageFromOthers: little is had from peers that are not complete, too, soon, where
// the complete one does not answer, has left, or refuses.
func TestSmallImageFromOthers(t *testing.T) {
	const chunks = 20
	trouble := map[string]func(*simNode){
		"silent": func(o *simNode) {
			o.behave = func(ctx context.Context, _ int) (Outgoing, error) { <-ctx.Done(); return Outgoing{}, ctx.Err() }
		},
		"gone": func(o *simNode) { o.leave() },
		"crowded": func(o *simNode) {
			o.behave = func(context.Context, int) (Outgoing, error) { return Outgoing{}, ErrCrowded }
		},
		"has lost it": func(o *simNode) {
			o.behave = func(context.Context, int) (Outgoing, error) { return Outgoing{}, ErrNotHeld }
		},
	}
	for name, cause := range trouble {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, n := crowd(3, chunks)
				defer s.close()
				s.small = chunks * pieceBytes
				for i := range chunks - 1 { // one is for n0 alone, which nobody wants
					n[1].chunks.have.Set(i)
				}
				for _, o := range n[1:] {
					o.chunks.wanted.Clear(chunks - 1)
				}
				cause(n[0])
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				s.run(t, ctx)
				if n[2].done > smallPatience+time.Second {
					t.Errorf("done after %v", n[2].done)
				}
			})
		})
	}
}

// Only what is wanted and missing is fetched.
func TestFetchesOnlyWhatIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := crowd(2, 100)
		defer s.close()
		for i := range 100 {
			if i%2 == 1 {
				n[1].chunks.wanted.Clear(i)
			} else if i < 50 {
				n[1].chunks.have.Set(i)
			}
		}
		s.run(t, t.Context())
		if got := n[0].sent.Load(); got != 25 {
			t.Errorf("%d chunks sent, want 25", got)
		}
		if !n[1].chunks.have.Contains(n[1].chunks.wanted) {
			t.Error("not all that is wanted is held")
		}
	})
}

func TestNothingMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := crowd(2, 100)
		defer s.close()
		if err := n[0].fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// A disk that is full ends the fetch with that error.
func TestStagingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := crowd(2, 100)
		defer s.close()
		n[1].chunks.failAt = 10
		err := n[1].fetch(t.Context())
		if err == nil || !strings.Contains(err.Error(), "stage chunk") || !strings.Contains(err.Error(), "no space") {
			t.Errorf("err = %v", err)
		}
	})
}

// A fetch that is cancelled returns at once, with the cause.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := crowd(3, 1000)
		defer s.close()
		newer := errors.New("a newer version is announced")
		ctx, cancel := context.WithCancelCause(t.Context())
		start := time.Now()
		time.AfterFunc(time.Second, func() { cancel(newer) })
		if err := n[1].fetch(ctx); !errors.Is(err, newer) || time.Since(start) > time.Second+10*time.Millisecond {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// Who comes late finds complete peers only and gets the image in file order from
// several of them, none of it twice.
func TestLateJoiner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := crowd(6, 128)
		defer s.close()
		for _, o := range n[:5] {
			o.chunks.have = everything(128)
			o.up.rate /= 4
		}
		inOrder, next := 0, 0
		n[5].onHave = func(c int) {
			if c < next+8 {
				inOrder++
			}
			for n[5].chunks.Have().Has(next) {
				next++
			}
		}
		s.run(t, t.Context())
		if n[5].dups.Load() > 2 || inOrder < 120 {
			t.Errorf("%d duplicates, %d of 128 in order", n[5].dups.Load(), inOrder)
		}
		if limit := 1200 * time.Millisecond; n[5].done > limit { // 128 chunks at 125/s are 1.02 s
			t.Errorf("took %v, want at most %v", n[5].done, limit)
		}
	})
}

// A tenth of the nodes is slow and one in twenty leaves midway: those that stay
// finish.
func TestTroubledCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes, chunks = 40, 128
		s, n := crowd(nodes, chunks)
		defer s.close()
		for i := 3; i < nodes; i += 10 {
			n[i].up.rate /= 10
		}
		for _, i := range []int{5, 25} {
			time.AfterFunc(500*time.Millisecond, n[i].leave)
		}
		s.run(t, t.Context())
		var last time.Duration
		for _, o := range n {
			last = max(last, o.done)
			if o.alive().Err() == nil && o.chunks.Have().Count() < chunks {
				t.Errorf("%s is not complete", o.name)
			}
		}
		t.Logf("last of %d after %v", nodes, last)
		if last > 2500*time.Millisecond { // 1.06 s is the optimum without any trouble
			t.Errorf("last node after %v", last)
		}
	})
}
