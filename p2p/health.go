package p2p

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"seeder/p2p/report"
)

// healthInterval is how often containerd is asked whether it is there. It costs
// one small request on a unix socket.
const healthInterval = 2 * time.Second

// health is whether the image store answers, as it was asked last.
type health struct {
	store     Keeper
	events    *events
	recovered func() // wakes who waits for the store
	log       *slog.Logger

	mu    sync.Mutex
	last  report.ContainerdStatus
	asked bool
	slow  atomic.Bool // has not answered the last question in time
}

// Status is the last answer.
func (h *health) Status() report.ContainerdStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// down is why the image store does not answer, empty while it does.
func (h *health) down() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.asked || h.last.OK {
		return ""
	}
	return h.last.Reason
}

// stillDown is why the image store does not answer, asked anew where it seemed to: one
// cause is said once.
func (h *health) stillDown(ctx context.Context) string {
	if h.down() == "" && ctx.Err() == nil {
		h.ask(ctx)
	}
	return h.down()
}

// set records an answer and reports whether it differs from the last one.
func (h *health) set(s report.ContainerdStatus) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = !h.asked || h.last.OK != s.OK
	if s.Since = h.last.Since; changed {
		s.Since = time.Now()
	}
	h.last, h.asked = s, true
	return changed
}

// awayAfter is how long containerd has to be silent until what it holds counts as not
// ready: a busy one misses a question now and then.
const awayAfter = 3 * healthInterval

// Away is why containerd does not answer, empty while it does or has only just stopped.
func (h *health) Away(now time.Time) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.asked || h.last.OK || now.Sub(h.last.Since) < awayAfter {
		return ""
	}
	return h.last.Reason
}

// watch keeps h current, says once when containerd goes and when it
// comes, and wakes the converge loop when it is back.
func (h *health) watch(ctx context.Context, beat func()) {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	for {
		beat()
		h.ask(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *health) ask(ctx context.Context) {
	askCtx, cancel := context.WithTimeout(ctx, healthInterval)
	defer cancel()
	address, version, err := h.store.Health(askCtx)
	if ctx.Err() != nil {
		return
	}
	if err != nil && askCtx.Err() != nil && h.slow.CompareAndSwap(false, true) && h.Status().OK {
		return // it is busy; the next question tells whether it hangs
	}
	if err == nil {
		h.slow.Store(false)
	}
	s := report.ContainerdStatus{Address: address, Version: version, OK: err == nil}
	if err != nil {
		s.Reason = err.Error()
	}
	if !h.set(s) {
		return
	}
	if err != nil {
		h.log.Warn("waiting for containerd", "address", address, "err", err)
		h.events.add(report.Event{Time: time.Now(), Kind: report.EventDown, Reason: s.Reason})
		return
	}
	h.log.Info("containerd answers", "address", address, "version", version)
	h.events.add(report.Event{Time: time.Now(), Kind: report.EventUp})
	h.recovered()
}
