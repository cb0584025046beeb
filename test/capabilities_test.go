package test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestNoCapabilities: a daemon of root that has no capability, and can get none,
// announces from a real containerd, fetches and imports.
func TestNoCapabilities(t *testing.T) {
	n := newNetwork(t, "")
	for range 2 {
		h := n.addHost(newest)
		h.startContainerd()
		h.write("/etc/seeder/secret", secret+"\n", 0o600)
		h.seeder = h.start([]string{"SEEDER_GOSSIP_JOIN=" + n.hosts[0].address},
			"setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", seederBin(t), "daemon")
	}
	a, b := n.hosts[0], n.hosts[1]
	a.awaitMembers(2)
	for _, h := range n.hosts {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.seeder.pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, set := range []string{"Inh", "Prm", "Eff", "Bnd", "Amb"} {
			if want := "Cap" + set + ":\t0000000000000000\n"; !strings.Contains(string(status), want) {
				t.Fatalf("%s: no %q in %s", h.name, want, status)
			}
		}
	}
	a.importImage(imageSpec{ref: short, says: "hello", payload: 4 << 20, seed: 1})
	a.run("announce", short)
	b.ready("hello")
	a.run("withdraw", short, "--purge")
	for _, h := range n.hosts {
		h.seeder.stop(t, syscall.SIGTERM)
		if log := h.seeder.log.String(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "permitted") || strings.Contains(log, "permission denied") {
			t.Errorf("%s complained:\n%s", h.name, log)
		}
	}
}
