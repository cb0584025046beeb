package swarm

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestHold: what is held back is not asked for. It is fetched once it is not, and is not
// missing any more once it has come by other means; what was under way is not lost.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const chunks, back = 32, 16
		s, n := crowd(2, chunks)
		defer s.close()
		got, twice := map[int]bool{}, 0
		hold := NewHold()
		half := everything(chunks)
		for i := range back {
			half.Clear(i)
		}
		hold.Set(half)
		observe := Observer{
			Received:  func(c int, _ string, _, _ int64) { got[c] = true },
			Duplicate: func(string, int64) { twice++ },
		}
		for _, x := range n {
			x.upload = x.uploader.Serve(s.seed, x.chunks)
		}
		done := make(chan error, 1)
		go func() {
			done <- Fetch(t.Context(), FetchConfig{Seed: simSeed, Chunks: n[1].chunks, Transport: n[1], Finder: n[1],
				Self: n[1].name, Hold: hold, Observe: observe})
		}()
		wait := func(what string) {
			time.Sleep(3 * time.Second) // virtual: all that is asked for has come
			synctest.Wait()
			select {
			case err := <-done:
				t.Fatalf("%s: the fetch has ended: %v", what, err)
			default:
			}
		}
		wait("half is held back")
		if len(got) != back || n[1].chunks.Have().Count() != back {
			t.Errorf("%d chunks came while %d of %d are held back", len(got), chunks-back, chunks)
		}
		for c := back; c < chunks-4; c++ { // by other means
			if ok, err := n[1].chunks.Put(t.Context(), c, 0, piece(c)); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		hold.Set(nil)
		start := time.Now()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if len(got) != back+4 || twice > 0 || n[1].chunks.Have().Count() != chunks {
			t.Errorf("%d chunks came, %d twice, %d are here", len(got), twice, n[1].chunks.Have().Count())
		}
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("it took %s until the rest was asked for and here", took)
		}
	})
}

// TestHoldEnds: a fetch ends at once when the last chunks have come by other means.
func TestHoldEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := crowd(2, 4)
		defer s.close()
		for _, x := range n {
			x.upload = x.uploader.Serve(s.seed, x.chunks)
		}
		hold := NewHold()
		hold.Set(everything(4))
		done := make(chan error, 1)
		go func() {
			done <- Fetch(t.Context(), FetchConfig{Seed: simSeed, Chunks: n[1].chunks, Transport: n[1], Finder: n[1],
				Self: n[1].name, Hold: hold, Observe: Observer{Received: func(int, string, int64, int64) { t.Error("a chunk came from a peer") }}})
		}()
		time.Sleep(1100 * time.Millisecond)
		for c := range 4 {
			if ok, err := n[1].chunks.Put(t.Context(), c, 0, piece(c)); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		start := time.Now()
		hold.Set(nil)
		if err := <-done; err != nil || time.Since(start) > 10*time.Millisecond {
			t.Errorf("it ended %s later: %v", time.Since(start), err)
		}
	})
}
