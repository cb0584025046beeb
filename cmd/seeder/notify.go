package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p"
)

const statusInterval = 5 * time.Second

// notify tells systemd something; without systemd it does nothing.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Debug("notify systemd", "err", err)
	}
}

// notifyStatus keeps the status line of `systemctl status` true until ctx ends.
func notifyStatus(ctx context.Context, log *slog.Logger, c control.Cluster) {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	last := ""
	for {
		if line := statusLine(c.Status(ctx)); line != last {
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

func statusLine(s p2p.Status) string {
	line := term.Plural(s.Members, "member") + ", nothing announced"
	if s.Images.Total > 0 {
		line = fmt.Sprintf("%s, %d of %s ready", term.Plural(s.Members, "member"), s.Images.Ready, term.Plural(s.Images.Total, "image"))
	}
	if !s.Containerd.OK && s.Containerd.Reason != "" {
		line = "waiting for containerd: " + term.Clean(s.Containerd.Reason) + "; " + line
	}
	return line
}
