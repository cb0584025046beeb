package swarm

import (
	"cmp"
	"context"
	"sync"
	"testing/synctest"
	"time"
)

// clock makes a simulation repeatable. Goroutines that are runnable in the same
// virtual instant run in an order that no seed decides; so whatever happens in
// the network is a step, and the clock takes one step at a time, in an order
// that depends on the simulated nodes alone, each when everything that the one
// before set off has come to rest.
type clock struct {
	began time.Time
	mu    sync.Mutex
	steps steps
	seq   uint64
	early chan struct{} // a step was added before all others
	stop  chan struct{}
	ended bool
}

// kind orders the steps of one path and instant.
type kind int8

const (
	kindJoin kind = iota
	kindFind
	kindTrip
	kindSent
	kindArrived
	kindHave
	kindBroken
	kindPut
)

// stepKey says which of the steps of one instant is first. Two steps with equal
// keys are alike, so that their order does not matter.
type stepKey struct {
	at       int64 // nanoseconds since the clock began
	to, from int32
	kind     kind
	chunk    int32
}

func (a *stepKey) compare(b *stepKey) int {
	if a.at != b.at {
		return cmp.Compare(a.at, b.at)
	}
	return cmp.Or(int(a.to-b.to), int(a.from-b.from), int(a.kind-b.kind), int(a.chunk-b.chunk))
}

type step struct {
	stepKey
	seq  uint64
	do   func()
	dead bool
}

func (s *step) before(o *step) bool {
	c := s.compare(&o.stepKey)
	return c < 0 || c == 0 && s.seq < o.seq
}

// steps is a heap, the next step first. (container/heap takes twice the time,
// which at N = 1,000 is a tenth of it all.)
type steps []*step

func (h *steps) push(s *step) {
	*h = append(*h, s)
	q, i := *h, len(*h)-1
	for i > 0 && s.before(q[(i-1)/4]) {
		q[i] = q[(i-1)/4]
		i = (i - 1) / 4
	}
	q[i] = s
}

func (h *steps) pop() *step {
	q := *h
	top, s := q[0], q[len(q)-1]
	q[len(q)-1] = nil
	q = q[:len(q)-1]
	*h = q
	for i := 0; len(q) > 0; {
		least := 4*i + 1
		if least >= len(q) {
			q[i] = s
			break
		}
		for c := least + 1; c < min(4*i+5, len(q)); c++ {
			if q[c].before(q[least]) {
				least = c
			}
		}
		if s.before(q[least]) {
			q[i] = s
			break
		}
		q[i] = q[least]
		i = least
	}
	return top
}

func newClock() *clock {
	c := &clock{began: time.Now(), early: make(chan struct{}, 1), stop: make(chan struct{})}
	go c.run()
	return c
}

// end releases everything that waits, without order.
func (c *clock) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	close(c.stop)
	for _, s := range c.steps {
		if !s.dead {
			go s.do()
		}
	}
	c.steps = nil
}

// plan adds a step, d from now. do must not wait for another one.
func (c *clock) plan(k stepKey, d time.Duration, do func()) *step {
	k.at = int64(time.Since(c.began) + max(d, 0))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	s := &step{stepKey: k, seq: c.seq, do: do}
	if c.ended {
		go do()
		return s
	}
	c.steps.push(s)
	if c.steps[0] == s {
		select {
		case c.early <- struct{}{}:
		default:
		}
	}
	return s
}

// sleep waits until d from now and then for the step's turn. When ctx ends before
// that, it returns its cause, which is a step as well.
func (c *clock) sleep(ctx context.Context, k stepKey, d time.Duration) error {
	turn := make(chan struct{})
	s := c.plan(k, d, func() { close(turn) })
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	s.dead = true
	c.mu.Unlock()
	ended := make(chan struct{})
	c.plan(k, 0, func() { close(ended) })
	<-ended
	return context.Cause(ctx)
}

func (c *clock) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		c.mu.Lock()
		for len(c.steps) > 0 && c.steps[0].dead {
			c.steps.pop()
		}
		wait := time.Hour
		if len(c.steps) > 0 {
			wait = time.Duration(c.steps[0].at) - time.Since(c.began)
		}
		c.mu.Unlock()
		if wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-c.early:
			case <-c.stop:
				return
			}
			continue
		}
		// The timers of this instant come first, then what they set off, which may be
		// a step that is to be taken before the one just seen.
		synctest.Wait()
		c.mu.Lock()
		var s *step
		if len(c.steps) > 0 && c.steps[0].at <= int64(time.Since(c.began)) {
			s = c.steps.pop()
		}
		c.mu.Unlock()
		if s != nil && !s.dead {
			s.do()
		}
		select {
		case <-c.stop:
			return
		default:
		}
	}
}
