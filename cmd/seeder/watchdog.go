package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"seeder/cmd/seeder/internal/control"
	"seeder/p2p/report"
)

// watchdog tells systemd that the daemon works, for as long as it does. systemd ends
// a daemon that says nothing for WatchdogSec with SIGABRT, at which the Go runtime
// prints every goroutine to the journal, and starts it again.
//
// What has to work is what a restart mends: the process gets to run; the loops of the
// node come by; and over the control socket, as any command has it, the daemon
// answers with its status, for which the locks of catalog, gossip and swarms must
// come free. What a restart does not mend counts for nothing: containerd that is away
// or hangs, members that are silent, images that fail, a full disk. A node waits for
// these and says so.
type watchdog struct {
	every time.Duration // a third of WatchdogSec: one or two failures are forgiven
	check func(ctx context.Context) error
	feed  func()
	log   *slog.Logger
}

// newWatchdog is nil where systemd expects nothing.
func newWatchdog(stuck func() error, socket string, log *slog.Logger) *watchdog {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog is not fed", "err", err)
	}
	if err != nil || limit == 0 {
		return nil
	}
	return &watchdog{every: limit / 3, log: log, check: healthCheck(stuck, socket),
		feed: func() { notify(log, daemon.SdNotifyWatchdog) }}
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

// run checks and feeds until ctx ends.
func (w *watchdog) run(ctx context.Context) {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for {
		checkCtx, cancel := context.WithTimeout(ctx, w.every)
		err := w.check(checkCtx)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			w.log.Error("the health check fails; unless that ends systemd restarts the daemon", "err", err)
		default:
			w.feed()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
