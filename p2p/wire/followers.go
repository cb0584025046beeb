package wire

import (
	"context"
	"net/http"
	"sync"
	"time"

	"seeder/p2p/swarm"
)

// haves writes a have stream until the peer goes, the swarm closes or the server
// does.
func (s *Server) haves(w http.ResponseWriter, r *http.Request) {
	sw, _, err := s.swarmOf(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	st := &haveStream{w: w, ctl: http.NewResponseController(w), n: sw.Len()}
	var wg sync.WaitGroup
	wg.Go(func() { st.keepAlive(ctx, cancel) })
	err = sw.Haves(ctx, st.send)
	cancel()
	wg.Wait()
	if err != nil && !st.begun {
		s.refuse(w, r, err)
	}
}

// haveStream serialises what Haves and the keep-alive write.
type haveStream struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	ctl   *http.ResponseController
	n     int
	begun bool
	buf   []byte
}

func (st *haveStream) send(h swarm.Haves) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.begun = true
	st.buf = appendHaves(st.buf[:0], h, st.n)
	return st.flush()
}

func (st *haveStream) flush() error {
	if err := st.ctl.SetWriteDeadline(time.Now().Add(writeStall)); err != nil {
		return err
	}
	if _, err := st.w.Write(st.buf); err != nil {
		return err
	}
	return st.ctl.Flush()
}

func (st *haveStream) keepAlive(ctx context.Context, cancel func()) {
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		st.mu.Lock()
		var err error
		if st.begun {
			st.buf = appendMessage(st.buf[:0], haveKeepAlive, nil)
			err = st.flush()
		}
		st.mu.Unlock()
		if err != nil {
			cancel()
			return
		}
	}
}
