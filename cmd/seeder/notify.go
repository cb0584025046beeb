package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/show"
)

const statusInterval = 5 * time.Second

// notify tells systemd something; without systemd it does nothing.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Debug("failed to notify systemd", "err", err)
	}
}

// notifyStatus keeps the status line of `systemctl status` true until ctx ends.
func notifyStatus(ctx context.Context, log *slog.Logger, c control.Cluster) {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	last := ""
	for {
		if line := show.StatusLine(c.Status(ctx)); line != last {
			notify(log, "STATUS="+line)
			last = line
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
