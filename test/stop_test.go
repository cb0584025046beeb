package test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"seeder/p2p/report"
)

// hang stops a daemon as it is: its sockets accept and nothing answers, until
// goOn.
func (d *daemon) hang(t *testing.T) (goOn func()) {
	t.Helper()
	if err := syscall.Kill(d.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn = func() { // nsenter stops and goes on with its child
		syscall.Kill(d.cmd.Process.Pid, syscall.SIGCONT)
		syscall.Kill(d.pid, syscall.SIGCONT)
	}
	t.Cleanup(goOn)
	return goOn
}

// memberState is what h says of another member.
func (h *host) memberState(of *host) string {
	var out report.Members
	if err := h.try(&out, "members"); err != nil {
		return err.Error()
	}
	for _, m := range out.Members {
		if m.Name == of.name {
			return m.State
		}
	}
	return "unknown"
}

// leaves tells the seeder of h to end: it does within ten seconds, and the others
// hear that it left.
func (h *host) leaves(others ...*host) {
	h.t.Helper()
	began := time.Now()
	syscall.Kill(h.seeder.pid, syscall.SIGTERM)
	code := h.seeder.wait(h.t, 15*time.Second)
	h.t.Logf("%s ended after %s", h.name, time.Since(began).Round(time.Millisecond))
	if log := h.seeder.log.String(); code != 0 || time.Since(began) > 10*time.Second || strings.Contains(log, "level=ERROR") {
		h.t.Errorf("%s ended after %s with exit code %d:\n%s", h.name, time.Since(began), code, h.seeder.log.tail(10))
	}
	for _, o := range others {
		eventually(h.t, 5*time.Second, o.name+" says that "+h.name+" has left", func() error {
			if s := o.memberState(h); s != "left" {
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
	n := cluster(t, newest, 3, "40mbit")
	a, b, c := n.hosts[0], n.hosts[1], n.hosts[2]
	const size = 24 << 20
	a.importImage(imageSpec{ref: short, says: "hello", random: size, seed: 1})
	a.run("announce", "--detach", short)
	var before float64
	eventually(t, 30*time.Second, "a third has arrived", func() error {
		if before = b.metric("seeder_chunk_bytes_total"); before < size/3 {
			return fmt.Errorf("%.0f bytes", before)
		}
		return nil
	})
	a.leaves(b, c)
	goOn := b.containerd.hang(t)
	b.leaves(c)
	goOn()
	a.startSeeder("SEEDER_GOSSIP_JOIN=" + c.address)
	b.startSeeder("SEEDER_GOSSIP_JOIN=" + c.address)
	for _, h := range n.hosts {
		h.ready("hello")
	}
	received := b.metric("seeder_wire_received_bytes_total")
	t.Logf("before the end %.1f MB of chunks, after it %.1f MB on the wire, of %.1f MB", before/1e6, received/1e6, size/1e6)
	if received > size-before+4<<20 {
		t.Errorf("%.0f bytes came after the restart: what was verified before was fetched again", received)
	}
}

// TestStopWhileAnnouncing: an announcement that hangs in containerd does not hold
// up the end, nor does a host that is being joined and says nothing.
func TestStopWhileAnnouncing(t *testing.T) {
	n := newNetwork(t, "")
	a, b := n.addHost(newest), n.addHost(newest)
	a.startContainerd()
	a.startSeeder()
	b.startSeeder("SEEDER_CONTAINERD_ADDRESS=embedded")
	a.awaitMembers(2)
	a.importImage(imageSpec{ref: short, says: "hello", random: 1 << 20, seed: 1})
	a.containerd.hang(t)
	looking := a.start(nil, seederBin(t), "announce", short) // asks what containerd has first
	preparing := a.start(nil, seederBin(t), "announce", short, "--from", "containerd")
	eventually(t, 10*time.Second, "the announcement is being prepared", func() error {
		if log := preparing.log.String(); !strings.Contains(log, "preparing") {
			return fmt.Errorf("%q", log)
		}
		return nil
	})
	a.leaves(b)
	for _, command := range []*daemon{looking, preparing} {
		if code := command.wait(t, 5*time.Second); code != 4 {
			t.Errorf("the command ended with exit code %d, want 4 (the daemon is not reachable):\n%s", code, command.log.tail(5))
		}
	}
}
