package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"seeder/store/chunk"
)

// partial is 100 chunks of which the first 50 are held: anyone who has those only
// does not super-seed.
func partial() *memChunks {
	c := newMemChunks(100, false)
	for i := range 50 {
		c.have.Set(i)
	}
	return c
}

func newTestUploader(active, queue int) *Uploader {
	return NewUploader(UploaderConfig{Active: active, Queue: queue, Rand: rand.NewPCG(1, 1)})
}

// send reads o to its end, as a server does.
func send(t testing.TB, o Outgoing) {
	t.Helper()
	if p, err := io.ReadAll(o.Payload); err != nil || int64(len(p)) != o.Bytes {
		t.Fatalf("%d bytes of %d: %v", len(p), o.Bytes, err)
	}
	o.Payload.Close()
	o.Done()
}

func mustChunk(t testing.TB, up *Upload, peer string, n int) Outgoing {
	t.Helper()
	o, err := up.Chunk(t.Context(), by(peer), n)
	if err != nil || o.N != n {
		t.Fatalf("chunk %d for %s: chunk %d, %v", n, peer, o.N, err)
	}
	return o
}

func mustNext(t testing.TB, up *Upload, peer string, want chunk.Bitmap) Outgoing {
	t.Helper()
	o, err := up.Next(t.Context(), by(peer), want)
	if err != nil {
		t.Fatalf("next for %s: %v", peer, err)
	}
	return o
}

// by is an requester on a host of its own.
func by(name string) Requester { return Requester{ID: name, Host: name} }

// settle lets d pass and everything that happens until then.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// idle fails where a slot is still taken.
func idle(t testing.TB, u *Uploader) {
	t.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.active != 0 || len(u.turn) != 0 || u.slowN != 0 || len(u.slow) != 0 {
		t.Errorf("%d active, %d swarms wait, %d slow of %v", u.active, len(u.turn), u.slowN, u.slow)
	}
}

// brokenChunks fails to open what it says it holds.
type brokenChunks struct {
	*memChunks
	err error
}

func (c *brokenChunks) Frame(context.Context, int) (chunk.Frame, error) { return chunk.Frame{}, c.err }

func TestRefusals(t *testing.T) {
	io5 := errors.New("input/output error")
	cases := []struct {
		name string
		ask  func(up *Upload) error
		want error
	}{
		{"a negative chunk", func(up *Upload) error { _, err := up.Chunk(t.Context(), by("p"), -1); return err }, ErrNotHeld},
		{"a chunk beyond the last", func(up *Upload) error { _, err := up.Chunk(t.Context(), by("p"), 100); return err }, ErrNotHeld},
		{"a chunk that is not held", func(up *Upload) error { _, err := up.Chunk(t.Context(), by("p"), 50); return err }, ErrNotHeld},
		{"none wanted", func(up *Upload) error { _, err := up.Next(t.Context(), by("p"), nil); return err }, ErrNothing},
		{"none of the wanted held", func(up *Upload) error {
			_, err := up.Next(t.Context(), by("p"), bitmapOf(100, 50, 99))
			return err
		}, ErrNothing},
		{"more wanted than there is", func(up *Upload) error {
			_, err := up.Next(t.Context(), by("p"), bitmapOf(1000, 100, 101, 999))
			return err
		}, ErrNothing},
		{"all of it on its way to that peer", func(up *Upload) error {
			o := mustNext(t, up, "p", bitmapOf(100, 7))
			_, err := up.Next(t.Context(), by("p"), bitmapOf(100, 7))
			send(t, o)
			return err
		}, ErrNothing},
		{"closed", func(up *Upload) error {
			up.Close()
			up.Close()
			_, err := up.Chunk(t.Context(), by("p"), 1)
			return err
		}, ErrNotHeld},
		{"closed, the next one", func(up *Upload) error {
			up.Close()
			_, err := up.Next(t.Context(), by("p"), everything(100))
			return err
		}, ErrNotHeld},
		{"gone from disk", func(up *Upload) error {
			up.chunks = &brokenChunks{partial(), fmt.Errorf("open: %w", fs.ErrNotExist)}
			_, err := up.Chunk(t.Context(), by("p"), 1)
			return err
		}, ErrNotHeld},
		{"a broken disk", func(up *Upload) error {
			up.chunks = &brokenChunks{partial(), io5}
			_, err := up.Next(t.Context(), by("p"), everything(100))
			return err
		}, io5},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			u := newTestUploader(2, 2)
			if err := c.ask(u.Serve(simSeed, partial())); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			idle(t, u)
		})
	}
}

// What did not reach its peer does not count as served; and Done counts once.
func TestDoneOnce(t *testing.T) {
	u := newTestUploader(2, 2)
	up := u.Serve(simSeed, partial())
	all := everything(100)
	o := mustNext(t, up, "a", all)
	if _, err := o.Payload.Read(make([]byte, 10)); err != nil || o.N != 0 {
		t.Fatal(o.N, err)
	}
	other := mustNext(t, up, "b", all)
	o.Done()
	o.Done()
	o.Done()
	if u.holds.n != 0 {
		t.Error("a chunk that did not arrive tells how long one takes")
	}
	if u.active != 1 || up.served[0] != 0 || len(up.out) != 1 || up.requesters["a"].pending != 0 {
		t.Errorf("%d active, chunk 0 served %d times, %d on their way, %d pending",
			u.active, up.served[0], len(up.out), up.requesters["a"].pending)
	}
	if again := mustNext(t, up, "c", all); again.N != 0 {
		t.Errorf("chunk %d was handed out, not the one that did not arrive", again.N)
	} else {
		send(t, again)
		again.Done()
	}
	send(t, other)
	idle(t, u)
	if up.served[0] != 1 || up.served[1] != 1 {
		t.Errorf("served %v", up.served[:3])
	}
}

// A super-seed hands out the least served chunk, lowest offset first.
func TestLeastServed(t *testing.T) {
	up := newTestUploader(2, 2).Serve(simSeed, newMemChunks(5, true))
	var order []int
	for i := range 12 {
		o := mustNext(t, up, fmt.Sprint("p", i), everything(5))
		order = append(order, o.N)
		send(t, o)
	}
	if want := []int{0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1}; !slices.Equal(order, want) {
		t.Errorf("handed out %v, want %v", order, want)
	}
	if o := mustNext(t, up, "q", bitmapOf(5, 0, 1)); o.N != 0 {
		t.Errorf("of 0 and 1, served alike, %d went", o.N)
	}
	if o := mustNext(t, up, "r", bitmapOf(5, 0, 1, 3)); o.N != 3 {
		t.Errorf("of 0, 1 and 3, the last served least, %d went", o.N)
	}
}

// Queue requests of a swarm wait, one for each peer while others wait; the rest
// is told when to come back.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newTestUploader(2, 2)
		up := u.Serve(simSeed, partial())
		first := []Outgoing{mustChunk(t, up, "a", 1), mustChunk(t, up, "b", 1)}
		var mu sync.Mutex
		var order []string
		wait := func(peer string) {
			go func() {
				o := mustChunk(t, up, peer, 2)
				mu.Lock()
				order = append(order, peer)
				mu.Unlock()
				time.Sleep(time.Millisecond)
				send(t, o)
			}()
			synctest.Wait()
		}
		wait("c")
		var busy *BusyError
		if _, err := up.Chunk(t.Context(), by("c"), 3); !errors.As(err, &busy) {
			t.Errorf("a second place in the queue while others wait: %v", err)
		}
		wait("d")
		retries := map[time.Duration]bool{}
		for i := range 100 {
			_, err := up.Chunk(t.Context(), by(fmt.Sprint("e", i)), 4)
			if !errors.As(err, &busy) {
				t.Fatalf("the third of a queue of two: %v", err)
			}
			retries[busy.RetryAfter] = true
			if busy.RetryAfter < firstRetry/2 || busy.RetryAfter > firstRetry*3/2 {
				t.Errorf("retry after %v", busy.RetryAfter)
			}
		}
		if len(retries) < 50 {
			t.Errorf("100 peers come back at %d different times", len(retries))
		}
		if up.requesters["e0"].pending != 0 {
			t.Error("who was refused still counts as waiting")
		}
		if _, err := up.Next(t.Context(), by("f"), bitmapOf(100, 99)); !errors.Is(err, ErrNothing) {
			t.Errorf("what is not here is worth no wait: %v", err)
		}
		for _, o := range first {
			send(t, o)
			synctest.Wait()
		}
		settle(time.Second)
		if !slices.Equal(order, []string{"c", "d"}) {
			t.Errorf("served %v, want first come, first served", order)
		}
		idle(t, u)
	})
}

// The retry time follows the time that a chunk takes, within bounds.
func TestRetryAfterIsBounded(t *testing.T) {
	for hold, want := range map[time.Duration][2]time.Duration{
		0:                {10 * ms, 30 * ms},
		time.Microsecond: {minRetry, minRetry},
		100 * ms:         {50 * ms, 150 * ms},
		time.Hour:        {maxRetry, maxRetry},
	} {
		u := newTestUploader(1, 1)
		u.holds.add(hold)
		for range 100 {
			if got := u.retryAfter(); got < want[0] || got > want[1] {
				t.Errorf("a chunk takes %v, retry after %v, want %v", hold, got, want)
			}
		}
	}
}

// Anyone who gives up waiting frees its place; a slot that came too late goes on.
func TestGiveUpWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newTestUploader(1, 2)
		up := u.Serve(simSeed, partial())
		o := mustChunk(t, up, "a", 1)
		gone := errors.New("the peer hung up")
		for i := range 10 {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Millisecond, func() { cancel(gone) })
			if _, err := up.Chunk(ctx, by(fmt.Sprint("b", i)), 1); !errors.Is(err, gone) {
				t.Fatalf("given up: %v", err)
			}
		}
		if len(up.waiters) != 0 || up.requesters["b0"].pending != 0 {
			t.Errorf("%d wait, b0 has %d pending", len(up.waiters), up.requesters["b0"].pending)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		go up.Chunk(ctx, by("b"), 1)
		synctest.Wait()
		go func() { send(t, mustChunk(t, up, "c", 1)) }()
		synctest.Wait()
		cancel(gone)
		synctest.Wait()
		send(t, o)
		synctest.Wait()
		if up.served[1] != 2 {
			t.Errorf("%d served, want the one behind who gave up too", up.served[1])
		}
		idle(t, u)

		// Granted and cancelled in the same instant.
		w, next := &waiter{ready: make(chan struct{})}, &waiter{ready: make(chan struct{})}
		u.active, u.turn, up.waiters = 1, []*Upload{up}, []*waiter{w, next}
		u.active--
		u.grant()
		u.abandon(up, w)
		if !next.granted || u.active != 1 {
			t.Errorf("the slot was not given on: %v, %d active", next.granted, u.active)
		}
	})
}

// Swarms that wait take turns, however many ask for either.
func TestSwarmsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newTestUploader(1, 8)
		a, b := u.Serve(simSeed, partial()), u.Serve(simSeed, partial())
		o := mustChunk(t, a, "x", 1)
		var mu sync.Mutex
		order := ""
		wait := func(up *Upload, name string, peers int) {
			for i := range peers {
				go func() {
					o := mustChunk(t, up, fmt.Sprint(name, i), 1)
					mu.Lock()
					order += name
					mu.Unlock()
					time.Sleep(time.Millisecond)
					send(t, o)
				}()
				synctest.Wait()
			}
		}
		wait(a, "a", 6)
		wait(b, "b", 3)
		send(t, o)
		settle(time.Second)
		if order != "abababaaa" {
			t.Errorf("served in the order %s", order)
		}
		idle(t, u)
	})
}

// A peer that takes its chunk too slowly holds no slot, only its own chunk; and
// no more than maxSlow of them are borne.
func TestSlowPeerLendsItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newTestUploader(1, 2)
		up := u.Serve(simSeed, partial())
		start := time.Now()
		var slow []Outgoing
		for i := range maxSlow + 1 {
			slow = append(slow, mustChunk(t, up, fmt.Sprint("p", i), 1))
		}
		if d := time.Since(start); d < maxSlow*time.Second || d > maxSlow*1100*ms {
			t.Errorf("%d slots were lent after %v", maxSlow, d)
		}
		var busy *BusyError
		if _, err := up.Chunk(t.Context(), by("p0"), 2); !errors.As(err, &busy) || busy.RetryAfter != time.Second {
			t.Errorf("a second chunk for a slow peer: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := up.Chunk(ctx, by("q"), 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one slow peer too many: %v", err)
		}
		for _, o := range slow {
			send(t, o)
			o.Done()
		}
		idle(t, u)
		send(t, mustChunk(t, up, "p0", 2))
	})
}

// On a link where chunks take long, long is not slow.
func TestSlowIsRelative(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newTestUploader(1, 2)
		up := u.Serve(simSeed, partial())
		for i := range 4 {
			o := mustChunk(t, up, fmt.Sprint("p", i), 1)
			time.Sleep(900 * ms)
			send(t, o)
		}
		start := time.Now()
		o := mustChunk(t, up, "slow", 1)
		next := mustChunk(t, up, "next", 1)
		if d := time.Since(start); d != 3600*ms {
			t.Errorf("the slot was lent after %v, want 4 × the median", d)
		}
		send(t, o)
		send(t, next)
		idle(t, u)
	})
}

// A complete node takes 32 requesters and keeps their places while they ask.
func TestCrowded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newTestUploader(2, 2).Serve(simSeed, newMemChunks(100, true))
		all := everything(100)
		for i := range 32 {
			send(t, mustNext(t, up, fmt.Sprint("p", i), all))
		}
		for range 3 {
			if _, err := up.Next(t.Context(), by("late"), all); !errors.Is(err, ErrCrowded) {
				t.Fatalf("the 33rd requester: %v", err)
			}
			if _, err := up.Chunk(t.Context(), by("late"), 5); !errors.Is(err, ErrCrowded) {
				t.Fatalf("the 33rd requester: %v", err)
			}
		}
		held := mustNext(t, up, "p0", all)
		time.Sleep(requesterIdle)
		for i := 1; i < 31; i++ { // p0 waits for its chunk, p31 has gone
			send(t, mustNext(t, up, fmt.Sprint("p", i), all))
		}
		if _, err := up.Next(t.Context(), by("late"), all); !errors.Is(err, ErrCrowded) {
			t.Fatalf("before a place is free: %v", err)
		}
		time.Sleep(time.Millisecond)
		send(t, mustNext(t, up, "late", all))
		if _, err := up.Next(t.Context(), by("p31"), all); !errors.Is(err, ErrCrowded) {
			t.Fatalf("who lost its place: %v", err)
		}
		send(t, held)
	})
}

// Who does not super-seed takes everybody, and does not remember them forever.
func TestPartialIsNotCrowded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newTestUploader(2, 2).Serve(simSeed, partial())
		for i := range 2000 {
			send(t, mustChunk(t, up, fmt.Sprint("p", i), i%50))
			time.Sleep(100 * ms)
		}
		if len(up.requesters) > 4*32+1 {
			t.Errorf("%d requesters are remembered", len(up.requesters))
		}
	})
}

// A super-seed lets the one that had more wait for those who ask too, but not for
// those who have stopped, and never while a slot is free: far peers take too long to
// come back.
func TestSuperSeedIsEven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newTestUploader(2, 2).Serve(simSeed, newMemChunks(100, true))
		all := everything(100)
		send(t, mustNext(t, up, "a", all))
		send(t, mustNext(t, up, "a", all))
		send(t, mustNext(t, up, "b", all)) // starts where a was
		send(t, mustNext(t, up, "b", all)) // has had more, and nobody else wants the slot
		taken := []Outgoing{mustNext(t, up, "c", all), mustNext(t, up, "c", all)}
		var busy *BusyError
		if _, err := up.Next(t.Context(), by("b"), all); !errors.As(err, &busy) || busy.RetryAfter > time.Second {
			t.Errorf("b has had more than a: %v", err)
		}
		if up.requesters["b"].pending != 0 {
			t.Error("who was told to wait counts as waiting here")
		}
		waits := func(peer string) {
			t.Helper()
			ended := make(chan struct{})
			go func() { defer close(ended); send(t, mustNext(t, up, peer, all)) }()
			synctest.Wait()
			select {
			case <-ended:
				t.Errorf("%s got a slot where none is free", peer)
			default:
			}
			t.Cleanup(func() { <-ended })
		}
		waits("a")
		settle(200 * ms) // nobody asks any more, and the slots are not lent yet
		waits("b")
		for _, o := range taken {
			send(t, o)
		}
	})
}

// A node that was complete and has lost a chunk looks again.
func TestLosesAChunk(t *testing.T) {
	c := newMemChunks(4, true)
	up := newTestUploader(2, 2).Serve(simSeed, c)
	send(t, mustNext(t, up, "a", everything(4)))
	if !up.isComplete() {
		t.Fatal("not complete")
	}
	up.chunks = &brokenChunks{c, fs.ErrNotExist}
	if _, err := up.Chunk(t.Context(), by("b"), 3); !errors.Is(err, ErrNotHeld) {
		t.Fatal(err)
	}
	c.have.Clear(3)
	if up.isComplete() {
		t.Error("still complete")
	}
}

// A closed swarm finishes what is on its way.
func TestCloseFinishesUploads(t *testing.T) {
	u := newTestUploader(2, 2)
	up := u.Serve(simSeed, partial())
	o := mustChunk(t, up, "a", 1)
	up.Close()
	send(t, o)
	idle(t, u)
	if err := up.Haves(t.Context(), func(Haves) error { return nil }); err == nil || !strings.Contains(err.Error(), "not served") {
		t.Errorf("a have stream of a closed swarm: %v", err)
	}
}
