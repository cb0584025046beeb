package systemd

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/show"
)

// What systemd is told, see sd_notify(3). Status is followed by a line for people.
const (
	Ready    = daemon.SdNotifyReady
	Stopping = daemon.SdNotifyStopping
	Status   = "STATUS="
)

const statusInterval = 5 * time.Second

// Notify tells systemd a state; without systemd it does nothing.
func Notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Debug("failed to notify systemd", "err", err)
	}
}

// FollowStatus keeps the status line of `systemctl status` true until ctx ends.
func FollowStatus(ctx context.Context, log *slog.Logger, c control.Cluster) {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	last := ""
	for {
		if line := show.StatusLine(c.Status(ctx)); line != last {
			Notify(log, Status+line)
			last = line
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
