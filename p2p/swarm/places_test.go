package swarm

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// takesAll has an requester take every chunk from a super-seed, and returns how long that
// took. It tries again after each refusal, as a fetch does.
func takesAll(t *testing.T, up *Upload, a Requester) time.Duration {
	t.Helper()
	began := time.Now()
	want := everything(up.Len())
	for want.Count() > 0 {
		out, err := up.Next(t.Context(), a, want)
		if err != nil {
			if time.Since(began) > time.Minute {
				t.Errorf("%s has not had %d chunks: %v", a.ID, want.Count(), err)
				return time.Since(began)
			}
			time.Sleep(time.Second)
			continue
		}
		want.Clear(out.N)
		send(t, out)
	}
	return time.Since(began)
}

// A member makes up identities, which take a chunk again and again so as to keep their
// places at a super-seed, or take one slowly: an honest requester gets its place, and its
// chunks in seconds.
func TestMadeUpIdentities(t *testing.T) {
	for name, attack := range map[string]struct {
		host func(i int) string
		take func(o Outgoing)
	}{
		"of one host":             {func(int) string { return "evil" }, func(o Outgoing) { o.Payload.Close(); o.Done() }},
		"of one host, to the end": {func(int) string { return "evil" }, nil},
		"of many hosts":           {func(i int) string { return fmt.Sprint("evil", i) }, nil},
		"of one host, slowly":     {func(int) string { return "evil" }, func(o Outgoing) { time.Sleep(30 * time.Second); o.Payload.Close(); o.Done() }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := newTestUploader(2, 2).Serve(simSeed, newMemChunks(100, true))
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{}, 40)
				for i := range cap(ended) {
					go func() {
						defer func() { ended <- struct{}{} }()
						for ctx.Err() == nil {
							o, err := up.Chunk(ctx, Requester{ID: fmt.Sprint("id", i), Host: attack.host(i)}, 0)
							switch {
							case err != nil:
							case attack.take == nil:
								send(t, o)
							default:
								attack.take(o)
							}
							time.Sleep(time.Second)
						}
					}()
				}
				time.Sleep(10 * time.Second)
				if took := takesAll(t, up, by("honest")); took > 20*time.Second {
					t.Errorf("an honest requester had everything after %v", took)
				}
				cancel()
				for range cap(ended) {
					<-ended
				}
			})
		})
	}
}

// A few chunks may be asked for again, since some are lost on the way; and who has a
// place keeps it while it takes what is new.
func TestRepeatsAreForgiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newTestUploader(2, 2).Serve(simSeed, newMemChunks(100, true))
		for i := range 32 {
			for n := range 1 + repeatsAllowed {
				send(t, mustChunk(t, up, fmt.Sprint("p", i), n/(1+repeatsAllowed)))
			}
			send(t, mustChunk(t, up, fmt.Sprint("p", i), 1))
		}
		if _, err := up.Chunk(t.Context(), by("late"), 5); !errors.Is(err, ErrCrowded) {
			t.Errorf("the 33rd requester: %v", err)
		}
		for range 2 {
			send(t, mustChunk(t, up, "p7", 1))
		}
		send(t, mustChunk(t, up, "late", 5))
		if _, err := up.Chunk(t.Context(), by("p7"), 9); !errors.Is(err, ErrCrowded) {
			t.Errorf("who asked for the same again and again: %v", err)
		}
		for i := range 2 * maxLost {
			up.mu.Lock()
			up.lost[fmt.Sprint(i)] = time.Now().Add(time.Duration(i) * time.Second)
			up.requesters["x"] = requester{host: fmt.Sprint("x", i), got: everything(100), repeats: repeatsAllowed}
			up.granted("x", 1, time.Now())
			up.mu.Unlock()
		}
		if len(up.lost) > 2*maxLost {
			t.Errorf("%d hosts are remembered", len(up.lost))
		}
	})
}

// TestSlowHost: a host that takes its chunks slowly gets no third one under another
// identity, until one of the two has ended.
func TestSlowHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newTestUploader(8, 8)
		up := u.Serve(simSeed, partial())
		evil := func(i int) Requester { return Requester{ID: fmt.Sprint("id", i), Host: "evil"} }
		var slow []Outgoing
		for i := range 2 {
			o, err := up.Chunk(t.Context(), evil(i), 1)
			if err != nil {
				t.Fatal(err)
			}
			slow = append(slow, o)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		var busy *BusyError
		if o, err := up.Chunk(t.Context(), evil(2), 1); !errors.As(err, &busy) {
			t.Errorf("a third chunk for a slow host: %v", err)
			if err == nil {
				slow = append(slow, o)
			}
		}
		send(t, mustChunk(t, up, "honest", 1))
		for _, o := range slow {
			send(t, o)
			o.Done()
		}
		idle(t, u)
		o, err := up.Chunk(t.Context(), evil(2), 1)
		if err != nil {
			t.Fatalf("after the two have ended: %v", err)
		}
		send(t, o)
	})
}
