package exchange

import (
	"context"
	"sync"
	"time"

	"seeder/internal/wait"
)

// cause is why a member's catalog is to be pulled.
type cause int

const (
	byHint    cause = iota // a hint named it
	bySummary              // its summary is other than ours
	causes
)

const (
	// maxQueuedPulls bounds the queue; a member beyond it tells its summary again.
	maxQueuedPulls = 1024
	// firstPullPause is how long a member is left alone after a pull that brought
	// nothing, twice as long after each further one. Hints and summaries are not signed
	// by those whom they name: a member that makes them up would have all others ask one
	// as fast as it can send. Of hints the pause ends so early that a true one is not
	// held up for long.
	firstPullPause = 100 * time.Millisecond
	maxHintPause   = 2 * time.Second
	maxSumPause    = time.Minute
	// maxTries is how often a member that does not answer is asked for one hint or summary.
	// It may have got another address since it was asked first.
	maxTries = 3
)

// queue holds the members whose catalogs are to be pulled. A member stands in
// the queue once for each cause, however many hints name it.
type queue struct {
	mu     sync.Mutex
	queued map[pullKey]*queuedPull
	misses map[pullKey]miss
	turn   uint64
	wake   wait.Signal // there may be something to pull
}

// pullKey is a member and why it is asked.
type pullKey struct {
	member string
	cause  cause
}

// queuedPull is a member in the queue.
type queuedPull struct {
	turn   uint64
	due    time.Time
	tries  int         // without an answer
	needed func() bool // is it still worth it
}

// miss is how many pulls in a row brought nothing.
type miss struct {
	times int
	until time.Time // not to be asked before
}

func newQueue() *queue {
	return &queue{queued: map[pullKey]*queuedPull{}, misses: map[pullKey]miss{}, wake: wait.NewSignal()}
}

func (s *queue) add(member string, why cause, needed func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := pullKey{member, why}
	if q := s.queued[key]; q != nil {
		q.needed = func() bool { return true } // for one reason or the other
		return
	}
	if len(s.queued) >= maxQueuedPulls {
		return
	}
	s.turn++
	s.queued[key] = &queuedPull{turn: s.turn, due: s.misses[key].until, needed: needed}
	s.wake.Set()
}

// done records what a pull brought.
func (s *queue) done(member string, why cause, news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if news {
		for c := range causes {
			delete(s.misses, pullKey{member, c})
		}
		return
	}
	key, now := pullKey{member, why}, time.Now()
	longest := maxHintPause
	if why == bySummary {
		longest = maxSumPause
	}
	m := s.misses[key]
	m.until = now.Add(wait.Doubled(firstPullPause, longest, m.times))
	m.times++
	if _, known := s.misses[key]; !known && len(s.misses) >= maxQueuedPulls {
		clear(s.misses) // of members that do not exist, by far most
	}
	s.misses[key] = m
}

// again queues a pull without an answer once more, unless there were too many.
func (s *queue) again(key pullKey, q *queuedPull) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.tries++; q.tries >= maxTries || s.queued[key] != nil || len(s.queued) >= maxQueuedPulls {
		return
	}
	s.turn++
	q.turn, q.due = s.turn, s.misses[key].until
	s.queued[key] = q
	s.wake.Set()
}

// next waits for a member whose catalog has something new; nil says that ctx ended.
func (s *queue) next(ctx context.Context) (pullKey, *queuedPull) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		key, q, pause := s.take(time.Now())
		if q != nil {
			if q.needed() {
				return key, q
			}
			continue
		}
		timer.Reset(pause)
		select {
		case <-s.wake:
		case <-timer.C:
		case <-ctx.Done():
			return pullKey{}, nil
		}
	}
}

// take takes the member that has waited longest of those that are due, or says how
// long to wait for one.
func (s *queue) take(now time.Time) (key pullKey, first *queuedPull, pause time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pause = maxSumPause
	for k, q := range s.queued {
		if d := q.due.Sub(now); d > 0 {
			pause = min(pause, d)
		} else if first == nil || q.turn < first.turn {
			key, first = k, q
		}
	}
	if first != nil {
		delete(s.queued, key)
	}
	return key, first, pause
}
