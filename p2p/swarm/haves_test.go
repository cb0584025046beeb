package swarm

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"seeder/store/chunk"
)

// listener collects what a have stream says.
type listener struct {
	mu   sync.Mutex
	at   []time.Duration
	said []Haves
	err  error
}

// listen follows up until ctx ends.
func listen(ctx context.Context, up *Upload, wg *sync.WaitGroup) *listener {
	l := &listener{}
	start := time.Now()
	wg.Go(func() {
		l.err = up.Haves(ctx, func(h Haves) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.at = append(l.at, time.Since(start))
			l.said = append(l.said, h)
			return nil
		})
	})
	return l
}

// heard is what the listener thinks is held.
func (l *listener) heard(n int) chunk.Bitmap {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := chunk.NewBitmap(n)
	for _, h := range l.said {
		copy(b, h.Map)
		for _, c := range h.New {
			b.Set(c)
		}
	}
	return b
}

// The map comes first; news goes out at once after a pause and every
// haveInterval in a burst, each chunk once, ascending.
func TestHavesAreBundled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := partial()
		up := newTestUploader(2, 2).Serve(simSeed, c)
		var wg sync.WaitGroup
		l := listen(t.Context(), up, &wg)
		synctest.Wait()
		if len(l.said) != 1 || !slices.Equal(l.said[0].Map, c.have) || l.said[0].Complete {
			t.Fatalf("at first: %v", l.said)
		}
		add := func(n int) {
			c.mu.Lock()
			c.have.Set(n)
			c.mu.Unlock()
			up.Added(n)
			up.Added(n)
		}
		const pause = time.Second + 1234*time.Microsecond
		time.Sleep(pause)
		add(60)
		synctest.Wait()
		if len(l.at) != 2 || l.at[1] != pause || !slices.Equal(l.said[1].New, []int{60}) {
			t.Errorf("after a pause: %v at %v", l.said[1], l.at[1])
		}
		for i := 99; i >= 70; i-- {
			add(i)
			time.Sleep(time.Millisecond)
		}
		for _, i := range []int{-1, 100, 5, 60} {
			up.Added(i) // no such chunk, or held from the start
		}
		settle(time.Second)
		if got := len(l.said); got != 2+6 {
			t.Errorf("%d messages for 30 chunks in 30 ms, want one every %v", got, haveInterval)
		}
		for i := 2; i < len(l.at); i++ {
			if gap := l.at[i] - l.at[i-1]; gap < haveInterval {
				t.Errorf("message %d came %v after the one before", i, gap)
			}
			if !slices.IsSorted(l.said[i].New) || l.said[i].Map != nil {
				t.Errorf("message %d: %v", i, l.said[i])
			}
		}
		for _, i := range chunksOf(everything(100).Without(c.Have())) {
			add(i)
		}
		settle(time.Second)
		if last := l.said[len(l.said)-1]; !last.Complete || l.heard(100).Count() != 100 {
			t.Errorf("at last: %v", last)
		}
		up.Close()
		wg.Wait()
		if !errors.Is(l.err, errClosed) {
			t.Errorf("closed: %v", l.err)
		}
	})
}

// tornChunks adds a chunk after the map was read and before it is used.
type tornChunks struct {
	*memChunks
	after func()
}

func (c *tornChunks) Have() chunk.Bitmap {
	b := c.memChunks.Have()
	c.after()
	return b
}

// What is added while the map is read, while it is sent, or while news is sent,
// is told.
func TestHavesLoseNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &tornChunks{memChunks: partial()}
		up := newTestUploader(2, 2).Serve(simSeed, c)
		next := 50
		add := func() {
			if next < 100 {
				c.have.Set(next)
				up.Added(next)
				next++
			}
		}
		c.after = add
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		heard := chunk.NewBitmap(100)
		err := up.Haves(ctx, func(h Haves) error {
			add()
			copy(heard, h.Map)
			for _, n := range h.New {
				heard.Set(n)
			}
			add()
			return nil
		})
		if !errors.Is(err, context.DeadlineExceeded) || next != 100 || heard.Count() != 100 {
			t.Errorf("%d of %d chunks told, %v", heard.Count(), next, err)
		}
	})
}

// Random adders and followers that come at any time: in the end all know all.
func TestHavesAgree(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 9))
			c := newMemChunks(300, false)
			up := newTestUploader(2, 2).Serve(simSeed, c)
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			var all []*listener
			for _, n := range rng.Perm(300) {
				if rng.IntN(10) == 0 {
					all = append(all, listen(ctx, up, &wg))
				}
				c.mu.Lock()
				c.have.Set(n)
				c.mu.Unlock()
				up.Added(n)
				time.Sleep(time.Duration(rng.ExpFloat64() * float64(2*ms)))
			}
			settle(time.Second)
			for i, l := range all {
				if k := l.heard(300).Count(); k != 300 || !l.said[len(l.said)-1].Complete {
					t.Errorf("seed %d: follower %d heard of %d chunks", seed, i, k)
				}
			}
			cancel()
			wg.Wait()
		})
	}
}

// maxFollowers have streams are served, and one that ends makes room.
func TestFollowersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newTestUploader(2, 2).Serve(simSeed, partial())
		var wg sync.WaitGroup
		for range maxFollowers - 1 {
			listen(t.Context(), up, &wg)
		}
		left := errors.New("the peer left")
		ctx, leave := context.WithCancelCause(t.Context())
		one := listen(ctx, up, &wg)
		synctest.Wait()
		if err := up.Haves(t.Context(), func(Haves) error { return nil }); !errors.Is(err, ErrCrowded) {
			t.Errorf("one too many: %v", err)
		}
		leave(left)
		synctest.Wait()
		if !errors.Is(one.err, left) {
			t.Errorf("left: %v", one.err)
		}
		broken := errors.New("broken pipe")
		if err := up.Haves(t.Context(), func(Haves) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("a stream that breaks: %v", err)
		}
		listen(t.Context(), up, &wg)
		synctest.Wait()
		if up.followers != maxFollowers {
			t.Errorf("%d followers", up.followers)
		}
		up.Close()
		wg.Wait()
		if up.followers != 0 {
			t.Errorf("%d followers of a closed swarm", up.followers)
		}
	})
}
