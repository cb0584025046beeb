package test

import (
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// nameFaults are about which host is which, and where.
var nameFaults = []fault{
	{name: "address changes", able: notTheFirst, begin: func(c *chaos, h *host) func() {
		c.moves++
		next := fmt.Sprintf("10.77.0.%d", 100+c.moves%150)
		script := "ip addr del " + h.address + "/24 dev eth0; ip addr add " + next + "/24 dev eth0"
		if c.rng.IntN(2) == 0 { // the new one first; it goes with the old one, which is the network's first
			script = "ip addr add " + next + "/24 dev eth0; " + script
		}
		h.sh(script)
		h.address = next
		return func() {}
	}},
	{name: "a twin by name", hold: 8 * time.Second, begin: func(c *chaos, h *host) func() {
		return c.twin("SEEDER_NODE_NAME=" + h.name)
	}},
	{name: "a cloned data_dir", hold: 8 * time.Second, begin: func(c *chaos, h *host) func() {
		run(c.t, exec.CommandContext(c.t.Context(), "sh", "-c", fmt.Sprintf(
			"cp -r %s/. %s/ 2>/dev/null; rm -rf %[2]s/ballast*; true", h.path(dataDir), c.spare.path(dataDir)))) // some go meanwhile
		return c.twin()
	}},
}

// notTheFirst leaves the host alone whose address all others have in their configuration.
func notTheFirst(c *chaos, h *host) bool { return h != c.hosts[0] }

// twin runs seeder on the spare host, as one more node, until the returned function is
// called.
func (c *chaos) twin(env ...string) (end func()) {
	s := c.spare
	s.startSeederRaw(append([]string{storeNode, "SEEDER_LOG_LEVEL=debug", "SEEDER_GOSSIP_JOIN=" + c.hosts[0].address}, env...)...)
	c.logs = append(c.logs, s.seeder.log)
	return func() {
		s.seeder.stop(c.t, syscall.SIGTERM)
		s.sh("rm -rf " + dataDir + "/* /run/seeder/*")
	}
}
