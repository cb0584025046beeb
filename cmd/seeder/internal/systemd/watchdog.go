package systemd

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"seeder/cmd/seeder/internal/control"
	"seeder/p2p/report"
)

// Watchdog tells systemd that the daemon works, for as long as it does. systemd ends
// a daemon that says nothing for WatchdogSec with SIGABRT, at which the Go runtime
// prints every goroutine to the journal, and starts it again.
//
// What has to work is what a restart fixes: the process gets to run; the loops of the
// node make turns; and over the control socket, as any command has it, the daemon
// answers with its status, for which the locks of catalog, gossip and swarms must
// come free. What a restart does not fix counts for nothing: containerd that is away
// or hangs, members that are silent, images that fail, a full disk. A node waits for
// these and says so.
//
// WatchdogSec is three minutes, so that a machine that stands still for one or two (an
// overloaded virtual machine, a disk that hangs) kills no healthy daemon. A daemon that
// runs and fails its checks does not wait for that: it has itself ended after stuckFor.
type Watchdog struct {
	every   time.Duration
	check   func(ctx context.Context) error
	feed    func()
	trigger func() // has systemd end the daemon as if WatchdogSec were over
	log     *slog.Logger
}

const (
	// checkEvery is how often the daemon is checked where WatchdogSec allows for more.
	checkEvery = 20 * time.Second
	// stuckFor is how long the checks fail before the daemon gives up: the time of
	// checks that came on time, since a machine that stood still makes one fail.
	stuckFor = time.Minute
)

// NewWatchdog is nil where systemd expects nothing. stuck is why a loop of the node makes no
// turns; socket is the control socket.
func NewWatchdog(stuck func() error, socket string, log *slog.Logger) *Watchdog {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("failed to notify systemd's watchdog", "err", err)
	}
	if err != nil || limit == 0 {
		return nil
	}
	return &Watchdog{every: min(limit/3, checkEvery), log: log, check: healthCheck(stuck, socket),
		feed:    func() { Notify(log, daemon.SdNotifyWatchdog) },
		trigger: func() { Notify(log, "WATCHDOG=trigger") }}
}

// healthCheck is what the daemon is asked.
func healthCheck(stuck func() error, socket string) func(context.Context) error {
	c := control.Dial(socket)
	return func(ctx context.Context) error {
		if err := stuck(); err != nil {
			return err
		}
		var out report.Status
		if err := c.Get(ctx, "/v1/status", nil, &out); err != nil {
			return fmt.Errorf("the daemon does not answer itself: %w", err)
		}
		return nil
	}
}

// Run checks and feeds until ctx ends.
func (w *Watchdog) Run(ctx context.Context) {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	var failing time.Duration // for how long, in checks that came on time
	last := time.Now()
	for {
		now := time.Now()
		if now.Sub(last) > 2*w.every {
			failing = 0
		}
		last = now
		checkCtx, cancel := context.WithTimeout(ctx, w.every)
		err := w.check(checkCtx)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			w.log.Error("health check failed; systemd restarts the daemon unless it recovers", "err", err)
			if failing += w.every; failing > stuckFor {
				w.trigger()
			}
		default:
			failing = 0
			w.feed()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
