package matrix

import (
	"context"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// silenceKept is how long it counts that a member has not answered: nobody may ask again.
const silenceKept = time.Minute

// silences is which members have not answered although they had askTimeout for it. It is
// safe for concurrent use.
type silences struct {
	mu sync.Mutex
	at map[string]silence // by address
}

type silence struct {
	since time.Time // the first question without an answer
	asked time.Time // the last one
}

// note records how a question that was asked at a time ended.
func (s *silences) note(addr string, asked time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetOld()
	if err == nil {
		delete(s.at, addr)
		return
	}
	since := asked
	if before, ok := s.at[addr]; ok {
		since = before.since
	}
	s.at[addr] = silence{since: since, asked: asked}
}

// since is when the member at addr was first asked without an answer; ok is false where it
// has answered, or has not been asked for a while.
func (s *silences) since(addr string) (t time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetOld()
	last, ok := s.at[addr]
	return last.since, ok
}

func (s *silences) forgetOld() {
	maps.DeleteFunc(s.at, func(_ string, last silence) bool { return time.Since(last.asked) > silenceKept })
}

// Run gives the members that AskMembers could not wait for their full time to answer,
// until ctx ends.
func (m *Matrix) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case slow := <-m.slow:
			a := m.newAsking([]string{noImage})
			var group errgroup.Group
			group.SetLimit(maxAsks)
			for addr, names := range slow {
				group.Go(func() error {
					a.askAt(ctx, addr, names)
					return nil
				})
			}
			_ = group.Wait() // askAt notes the errors
		}
	}
}
