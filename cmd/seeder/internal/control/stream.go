//go:build linux

package control

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"seeder/cmd/seeder/internal/cli"
)

// stream writes events as they come.
type stream struct {
	mu    sync.Mutex
	enc   *json.Encoder
	flush func() error
	quit  chan struct{} // ends the heartbeat
	beats sync.WaitGroup
}

func newStream(w http.ResponseWriter) *stream {
	w.Header().Set("Content-Type", "application/x-ndjson")
	s := &stream{enc: json.NewEncoder(w), flush: http.NewResponseController(w).Flush, quit: make(chan struct{})}
	s.beats.Go(s.heartbeat)
	return s
}

// heartbeat tells the command every few seconds that the daemon is there, also while
// there is nothing to tell, until end.
func (s *stream) heartbeat() {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.quit:
			return
		case <-tick.C:
			if s.emit(Event{Event: eventAlive}) != nil {
				return // nobody listens: the next event tells
			}
		}
	}
}

func (s *stream) emit(e Event) error {
	e.Time = time.Now().UTC()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.enc.Encode(e); err != nil {
		return err
	}
	return s.flush()
}

// end is the last event. Whether it arrives is up to the client, which may have
// gone for good reason.
func (s *stream) end(err error) {
	close(s.quit)
	s.beats.Wait()
	last := Event{Event: EventDone}
	switch {
	case errors.Is(err, context.Canceled): // by the client, which does not read this, or by Close
		last = Event{Event: EventError, Error: "the daemon is stopping; seeding continues once it runs again", Code: cli.ExitNoDaemon}
	case err != nil:
		_, code := refusal(err)
		last = Event{Event: EventError, Error: err.Error(), Code: code}
	}
	_ = s.emit(last)
}
