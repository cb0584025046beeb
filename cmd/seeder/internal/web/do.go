package web

import (
	"strings"

	"seeder/cmd/seeder/internal/cli"
	"seeder/p2p/report"
)

// doAbout is the command that helps a node which is not ready, "" where there is nothing to
// do but wait. It says where to run it: on n, or on each of several nodes.
func doAbout(n report.NodeState, ref string, nodes int) string {
	on := "  # on " + n.Name
	if nodes > 1 {
		on = "  # on each of these"
	}
	switch n.State {
	case blocked:
		_, fix, _ := strings.Cut(n.Reason, ": ")
		return strings.TrimSpace(fix + on)
	case report.Unreachable:
		if n.Away {
			return "systemctl status seeder" + on
		}
		return "seeder doctor" + on
	case report.Failed:
		if strings.Contains(n.Reason, "no space left") {
			return "k3s crictl rmi --prune" + on
		}
		return "seeder doctor" + on
	case report.Waiting:
		for _, c := range []struct{ reason, command string }{
			{"waiting for containerd", "systemctl status k3s k3s-agent" + on},
			{"the disk of", "k3s crictl rmi --prune" + on},
			{"no reachable member has", "seeder announce " + cli.ShortRef(ref) + "  # on a host that has it"},
			{"has not heard of", "seeder doctor" + on},
		} {
			if strings.Contains(n.Reason, c.reason) {
				return c.command
			}
		}
	}
	return ""
}
