package hosts

import (
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"seeder/test/harness"
)

// nameFaults are about which host is which, and where.
var nameFaults = []fault{
	{name: "address changes", able: notTheFirst, begin: func(c *chaos, h *harness.Host) func() {
		c.moves++
		next := fmt.Sprintf("10.77.0.%d", 100+c.moves%150)
		script := "ip addr del " + h.Address + "/24 dev eth0; ip addr add " + next + "/24 dev eth0"
		if c.rng.IntN(2) == 0 { // the new one first; it goes with the old one, which is the network's first
			script = "ip addr add " + next + "/24 dev eth0; " + script
		}
		h.Sh(script)
		h.Address = next
		return func() {}
	}},
	{name: "a twin by name", hold: 8 * time.Second, begin: func(c *chaos, h *harness.Host) func() {
		return c.twin(c.spares[0], "SEEDER_NODE_NAME="+h.Name)
	}},
	{name: "a cloned data_dir", hold: 8 * time.Second, begin: func(c *chaos, h *harness.Host) func() {
		harness.Run(c.t, exec.CommandContext(c.t.Context(), "sh", "-c", fmt.Sprintf(
			"cp -r %s/. %s/ 2>/dev/null; rm -rf %[2]s/ballast*; true", h.Path(dataDir), c.spares[1].Path(dataDir)))) // some go meanwhile
		return c.twin(c.spares[1])
	}},
}

// notTheFirst leaves the host alone whose address all others have in their configuration.
func notTheFirst(c *chaos, h *harness.Host) bool { return h != c.hosts[0] }

// twin runs seeder on a spare host, as one more node, until the returned function is
// called.
func (c *chaos) twin(s *harness.Host, env ...string) (end func()) {
	s.StartSeederRaw(append([]string{harness.StoreNode, "SEEDER_LOG_LEVEL=debug", "SEEDER_GOSSIP_JOIN=" + c.hosts[0].Address}, env...)...)
	c.logs = append(c.logs, s.Seeder.Log)
	return func() {
		s.Seeder.Stop(c.t, syscall.SIGTERM)
		s.Sh("rm -rf " + dataDir + "/* /run/seeder/*")
	}
}
