package systemd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/control/controltest"
	"seeder/p2p/report"
)

// TestWatchdog: it is fed while the check passes, and not while the check fails or
// hangs; it goes on after either.
func TestWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fed, triggered atomic.Int32
		var check atomic.Pointer[func(context.Context) error]
		set := func(f func(context.Context) error) { check.Store(&f) }
		healthy := func(context.Context) error { return nil }
		set(healthy)
		w := &Watchdog{every: 20 * time.Second, log: slog.New(slog.DiscardHandler), feed: func() { fed.Add(1) }, trigger: func() { triggered.Add(1) },
			check: func(ctx context.Context) error { return (*check.Load())(ctx) }}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { w.Run(ctx); close(done) }()
		within := func(what string, want int32) {
			t.Helper()
			before := fed.Load()
			time.Sleep(2 * time.Minute)
			if got := fed.Load() - before; got != want {
				t.Errorf("%s: fed %d times in two minutes, want %d", what, got, want)
			}
		}
		time.Sleep(time.Second) // off the beat
		if fed.Load() != 1 {
			t.Errorf("fed %d times at the start, want once", fed.Load())
		}
		within("healthy", 6)
		failures := 3
		set(func(context.Context) error { // for a minute, as after the machine stood still
			if failures--; failures >= 0 {
				return errors.New("not yet")
			}
			return nil
		})
		within("for a minute", 3)
		if n := triggered.Load(); n != 0 {
			t.Errorf("ended %d times for failures of a minute", n)
		}
		set(func(context.Context) error { time.Sleep(50 * time.Second); return errors.New("late") })
		within("standing still", 0)
		if n := triggered.Load(); n != 0 {
			t.Errorf("ended %d times for checks that came late", n)
		}
		set(healthy)
		time.Sleep(time.Minute)
		set(func(context.Context) error { return errors.New("the loop is stuck") })
		within("broken", 0)
		if triggered.Load() == 0 {
			t.Error("a daemon that fails its checks is not ended")
		}
		set(healthy)
		within("fixed", 6)
		set(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		within("hanging", 0)
		set(healthy)
		within("going on", 6)
		cancel()
		<-done
	})
}

// slowNode answers for its status when it is told to.
type slowNode struct {
	controltest.Node
	answer chan struct{}
}

func (s *slowNode) Status(ctx context.Context) report.Status {
	<-s.answer
	return s.Node.Status(ctx)
}

// TestHealthCheck: a daemon whose containerd is away is healthy; one that does not
// answer, whose socket is gone, or whose loop is stuck is not.
func TestHealthCheck(t *testing.T) {
	nd := &slowNode{answer: make(chan struct{})}
	socket := filepath.Join(t.TempDir(), "s")
	c := control.NewServer(socket, nd, nd, nd, slog.New(slog.DiscardHandler))
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	var stuck error
	check := healthCheck(func() error { return stuck }, socket)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := check(ctx); err == nil {
		t.Error("healthy while the status does not come")
	}
	close(nd.answer)
	if err := check(t.Context()); err != nil {
		t.Errorf("with containerd away: %v", err)
	}
	stuck = errors.New("the sync loop")
	if err := check(t.Context()); !errors.Is(err, stuck) {
		t.Errorf("with a stuck loop: %v", err)
	}
	stuck = nil
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := check(t.Context()); err == nil || !strings.Contains(err.Error(), "itself") {
		t.Errorf("healthy without a socket: %v", err)
	}
}

// TestWatchdogInterval: the interval is a third of what systemd says to this process.
func TestWatchdogInterval(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	t.Setenv("WATCHDOG_USEC", "60000000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	if w := NewWatchdog(func() error { return nil }, "s", log); w == nil || w.every != 20*time.Second {
		t.Errorf("%+v, want every 20 s", w)
	}
	t.Setenv("WATCHDOG_PID", "1")
	if w := NewWatchdog(func() error { return nil }, "s", log); w != nil {
		t.Errorf("%+v for another process", w)
	}
	t.Setenv("WATCHDOG_USEC", "")
	if w := NewWatchdog(func() error { return nil }, "s", log); w != nil {
		t.Errorf("%+v without a watchdog", w)
	}
}
