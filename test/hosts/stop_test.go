package hosts

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"seeder/test/harness"
)

// hang stops a daemon as it is: its sockets accept and nothing answers, until
// goOn.
func hang(d *harness.Daemon, t *testing.T) (goOn func()) {
	t.Helper()
	if err := syscall.Kill(d.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn = func() { // nsenter stops and goes on with its child
		syscall.Kill(d.Cmd.Process.Pid, syscall.SIGCONT)
		syscall.Kill(d.PID, syscall.SIGCONT)
	}
	t.Cleanup(goOn)
	return goOn
}

// leaves tells the seeder of h to end: it does within ten seconds, and the others
// hear that it left.
func leaves(h *harness.Host, others ...*harness.Host) {
	h.T.Helper()
	began := time.Now()
	syscall.Kill(h.Seeder.PID, syscall.SIGTERM)
	code := h.Seeder.Wait(h.T, 15*time.Second)
	h.T.Logf("%s ended after %s", h.Name, time.Since(began).Round(time.Millisecond))
	if log := h.Seeder.Log.String(); code != 0 || time.Since(began) > 10*time.Second || strings.Contains(log, "level=ERROR") {
		h.T.Errorf("%s ended after %s with exit code %d:\n%s", h.Name, time.Since(began), code, h.Seeder.Log.Tail(10))
	}
	for _, o := range others {
		harness.Eventually(h.T, 5*time.Second, o.Name+" says that "+h.Name+" has left", func() error {
			if s := o.MemberState(h); s != "left" {
				return fmt.Errorf("%s", s)
			}
			return nil
		})
	}
}

// TestGracefulStop: a host that sends and a host that receives, whose containerd
// hangs, end in time and leave the cluster; nothing that had arrived is fetched
// again.
func TestGracefulStop(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 3, "40mbit")
	a, b, c := n.Hosts[0], n.Hosts[1], n.Hosts[2]
	const size = 24 << 20
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Random: size, Seed: 1})
	a.Run("announce", "--detach", harness.ShortName)
	var before float64
	harness.Eventually(t, 30*time.Second, "a third has arrived", func() error {
		if before = b.Metric("seeder_chunk_bytes_total"); before < size/3 {
			return fmt.Errorf("%.0f bytes", before)
		}
		return nil
	})
	leaves(a, b, c)
	goOn := hang(b.Containerd, t)
	leaves(b, c)
	goOn()
	a.StartSeeder("SEEDER_GOSSIP_JOIN=" + c.Address)
	b.StartSeeder("SEEDER_GOSSIP_JOIN=" + c.Address)
	for _, h := range n.Hosts {
		h.Ready("hello")
	}
	received := b.Metric("seeder_wire_received_bytes_total")
	t.Logf("before the end %.1f MB of chunks, after it %.1f MB on the wire, of %.1f MB", before/1e6, received/1e6, size/1e6)
	if received > size-before+4<<20 {
		t.Errorf("%.0f bytes came after the restart: what was verified before was fetched again", received)
	}
}

// TestStopWhileAnnouncing: an announcement that hangs in containerd does not hold
// up the end, nor does a host that is being joined and says nothing.
func TestStopWhileAnnouncing(t *testing.T) {
	n := harness.NewNetwork(t, "")
	a, b := n.AddHost(harness.Newest), n.AddHost(harness.Newest)
	a.StartContainerd()
	a.StartSeeder()
	b.StartSeeder("SEEDER_CONTAINERD_ADDRESS=embedded")
	a.AwaitMembers(2)
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Random: 1 << 20, Seed: 1})
	hang(a.Containerd, t)
	looking := a.Start(nil, harness.SeederBin(t), "announce", harness.ShortName) // asks what containerd has first
	preparing := a.Start(nil, harness.SeederBin(t), "announce", harness.ShortName, "--from", "containerd")
	harness.Eventually(t, 10*time.Second, "the announcement is being prepared", func() error {
		if log := preparing.Log.String(); !strings.Contains(log, "preparing") {
			return fmt.Errorf("%q", log)
		}
		return nil
	})
	leaves(a, b)
	for _, command := range []*harness.Daemon{looking, preparing} {
		if code := command.Wait(t, 5*time.Second); code != 4 {
			t.Errorf("the command ended with exit code %d, want 4 (the daemon is not reachable):\n%s", code, command.Log.Tail(5))
		}
	}
}
