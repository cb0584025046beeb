package hosts

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"seeder/test/harness"
)

// TestNoCapabilities: a daemon of root that has no capability, and can get none,
// announces from a real containerd, fetches and imports.
func TestNoCapabilities(t *testing.T) {
	n := harness.NewNetwork(t, "")
	for range 2 {
		h := n.AddHost(harness.Newest)
		h.StartContainerd()
		h.Write("/etc/seeder/secret", harness.Secret+"\n", 0o600)
		h.Seeder = h.Start([]string{"SEEDER_GOSSIP_JOIN=" + n.Hosts[0].Address},
			"setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", harness.SeederBin(t), "daemon")
	}
	a, b := n.Hosts[0], n.Hosts[1]
	a.AwaitMembers(2)
	for _, h := range n.Hosts {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.Seeder.PID))
		if err != nil {
			t.Fatal(err)
		}
		for _, set := range []string{"Inh", "Prm", "Eff", "Bnd", "Amb"} {
			if want := "Cap" + set + ":\t0000000000000000\n"; !strings.Contains(string(status), want) {
				t.Fatalf("%s: no %q in %s", h.Name, want, status)
			}
		}
	}
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 4 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	b.Ready("hello")
	a.Run("withdraw", harness.ShortName, "--purge")
	for _, h := range n.Hosts {
		h.Seeder.Stop(t, syscall.SIGTERM)
		if log := h.Seeder.Log.String(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "permitted") || strings.Contains(log, "permission denied") {
			t.Errorf("%s complained:\n%s", h.Name, log)
		}
	}
}
