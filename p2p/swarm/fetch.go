package swarm

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"
)

// Observer are optional hooks of a fetch, called from its goroutines.
type Observer struct {
	Have     func(n int)
	Received func(peer string, rawBytes, wireBytes int64)
	BadChunk func(peer string, n int)
	State    func(Progress)
}

// Progress is where a fetch stands.
type Progress struct {
	Peers, Neighbours int
	Reason            string
}

// FetchConfig is what a fetch needs.
type FetchConfig struct {
	Seed      digest.Digest
	Chunks    Chunks
	Transport Transport
	Finder    Finder
	Self      string
	Log       *slog.Logger
	Observe   Observer
}

type fev struct {
	peer  string
	haves *Haves
	gone  error
	n     int
	done  bool
	err   error
	bad   bool
	next  bool
}

type nb struct {
	peer  Peer
	have  Bitmap
	full  bool
	busy  bool
	until time.Time
	dead  bool
}

// Fetch: interim engine.
func Fetch(ctx context.Context, cfg FetchConfig) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n := cfg.Chunks.Len()
	want := cfg.Chunks.Wanted().Without(cfg.Chunks.Have())
	inflight := NewBitmap(n)
	nbs := map[string]*nb{}
	evs := make(chan fev)
	send := func(e fev) {
		select {
		case evs <- e:
		case <-ctx.Done():
		}
	}
	peersCh := make(chan []Peer)
	go func() {
		d := 50 * time.Millisecond
		for {
			ps, _ := cfg.Finder.Peers(ctx, cfg.Seed, false)
			select {
			case peersCh <- ps:
			case <-ctx.Done():
				return
			}
			select {
			case <-time.After(d):
			case <-ctx.Done():
				return
			}
			d = min(2*d, 3*time.Second)
		}
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	active := 0
	for want.Count() > 0 {
		now := time.Now()
		for name, b := range nbs {
			if active >= 4 || b.busy || b.dead || b.have == nil || now.Before(b.until) {
				continue
			}
			w := want.Without(inflight)
			for i := range w {
				w[i] &= b.have[i]
			}
			if w.Count() == 0 {
				continue
			}
			pick := 0
			for !w.Has(pick) {
				pick++
			}
			b.busy = true
			active++
			if !b.full {
				inflight.Set(pick)
			}
			full := b.full
			go func() {
				buf := make([]byte, MaxFrameBytes)
				var r Reply
				var err error
				if full {
					r, err = cfg.Transport.Next(ctx, b.peer, cfg.Seed, w, buf)
				} else {
					r, err = cfg.Transport.Chunk(ctx, b.peer, cfg.Seed, pick, buf)
				}
				e := fev{peer: name, n: pick, err: err, done: true, next: full}
				if err == nil {
					e.n = r.Chunk
					var ok bool
					ok, e.err = cfg.Chunks.Put(ctx, r.Chunk, r.Encoding, r.Payload)
					e.bad = !ok && e.err == nil
					if ok && cfg.Observe.Received != nil {
						cfg.Observe.Received(name, cfg.Chunks.Bytes(r.Chunk), int64(len(r.Payload)))
					}
				}
				send(e)
			}()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		case ps := <-peersCh:
			for _, p := range ps {
				if nbs[p.Name] != nil {
					continue
				}
				b := &nb{peer: p}
				nbs[p.Name] = b
				go func() {
					err := cfg.Transport.FollowHaves(ctx, p, cfg.Seed, n, func(h Haves) { send(fev{peer: p.Name, haves: &h}) })
					send(fev{peer: p.Name, gone: err})
				}()
			}
		case e := <-evs:
			b := nbs[e.peer]
			switch {
			case b == nil:
			case e.haves != nil:
				if e.haves.Map != nil {
					b.have = e.haves.Map.Clone()
				}
				for _, c := range e.haves.New {
					b.have.Set(c)
				}
				b.full = b.have.Count() == n
			case e.gone != nil:
				delete(nbs, e.peer)
				if b.busy {
					active--
				}
			case e.done:
				active--
				b.busy = false
				if !e.next {
					inflight.Clear(e.n)
				}
				var busy *BusyError
				switch {
				case e.bad:
					b.dead = true
					if cfg.Observe.BadChunk != nil {
						cfg.Observe.BadChunk(e.peer, e.n)
					}
				case errors.As(e.err, &busy):
					b.until = time.Now().Add(busy.RetryAfter)
				case e.err != nil:
					b.until = time.Now().Add(500 * time.Millisecond)
				default:
					want.Clear(e.n)
					if cfg.Observe.Have != nil {
						cfg.Observe.Have(e.n)
					}
				}
			}
		}
	}
	return nil
}
