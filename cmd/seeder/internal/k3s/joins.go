package k3s

import (
	"log/slog"
	"slices"

	"seeder/cmd/seeder/internal/config"
)

// Joins are the hosts to join now: gossip.join, else the servers that the k3s agent
// of this host knows below root. From is where the latter come from. A node on
// loopback addresses can reach none of them.
func Joins(cfg config.Config, root string) (hosts []string, from string) {
	if len(cfg.Gossip.Join) > 0 || config.IsLoopback(cfg.Gossip.Bind) {
		return slices.Clone(cfg.Gossip.Join), ""
	}
	return k3sServers(root)
}

// FollowJoins asks for the hosts to join anew each time, and says when they are others.
// One goroutine calls what it returns.
func FollowJoins(cfg config.Config, log *slog.Logger) func() []string {
	var last []string
	return func() []string {
		hosts, from := Joins(cfg, "/")
		if !slices.Equal(hosts, last) && from != "" {
			log.Info("servers to join", "hosts", hosts, "source", from)
		}
		last = hosts
		return hosts
	}
}
