package hosts

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"seeder/test/harness"
)

// TestAddressChanges: a host whose address changes, as with a new lease or another cable,
// is known under the new one by all within ten seconds, without a restart; also where it was
// suspended meanwhile. What it announces then reaches all, what others announce reaches it,
// and doctor finds nothing wrong. A host that has no address for a while says so, and accuses no firewall.
func TestAddressChanges(t *testing.T) {
	t.Parallel()
	n := harness.NewNetwork(t, "")
	for range 3 {
		n.AddHost(harness.Newest).StartSeeder(harness.StoreNode)
	}
	a, b, c := n.Hosts[0], n.Hosts[1], n.Hosts[2]
	addCard(b)
	a.AwaitMembers(3)
	b.AwaitMembers(3)
	pid := b.Seeder.PID
	for i, step := range []struct{ name, script, address string }{
		{"another lease", "ip addr del 10.77.0.2/24 dev eth0; ip addr add 10.77.0.22/24 dev eth0", "10.77.0.22"},
		{"the new one first", "ip addr add 10.77.0.23/24 dev eth0; ip addr del 10.77.0.22/24 dev eth0; ip addr add 10.77.0.23/24 dev eth0 2>/dev/null || true", "10.77.0.23"},
		{"renamed", "ip link set eth0 down; ip link set eth0 name lan0; ip link set lan0 up; ip addr add 10.77.0.23/24 dev lan0 2>/dev/null || true", "10.77.0.23"},
		{"no address, and the same one again", "ip addr del 10.77.0.23/24 dev lan0; sleep 15; ip addr add 10.77.0.23/24 dev lan0", "10.77.0.23"},
		{"no address, and another one", "ip addr del 10.77.0.23/24 dev lan0; sleep 15; ip addr add 10.77.0.24/24 dev lan0", "10.77.0.24"},
		{"the other card instead", "ip addr add 10.77.0.26/24 dev eth1; ip link set lan0 down", "10.77.0.26"},
		{"back, with the other one unplugged", "ip link set lan0 up; ip addr add 10.77.0.24/24 dev lan0 2>/dev/null || true; ip addr flush dev eth1; ip link set eth1 down", "10.77.0.24"},
	} {
		harness.Run(t, b.In(t.Context(), "sh", "-c", step.script))
		began := time.Now()
		for _, h := range n.Hosts {
			sees(h, b, step.address, 10*time.Second)
			h.AwaitMembers(3)
		}
		t.Logf("%s: known by all %s after the change", step.name, time.Since(began).Round(100*time.Millisecond))
		for from, h := range map[string]*harness.Host{"moved": b, "other": a} {
			ref := fmt.Sprintf("app-%s-%d:1", from, i)
			h.RunWithin(30*time.Second, "announce", "--from", harness.NewImage(t, harness.ImageSpec{Ref: ref, Says: ref, Random: 1 << 20, Seed: uint64(i)}).DockerArchive(t, n.Dir))
		}
	}
	// Suspended, and awake in another network: the others have counted it as dead by then.
	b.Seeder.Freeze()
	harness.Run(t, b.In(t.Context(), "sh", "-c", "ip addr del 10.77.0.24/24 dev lan0; ip addr add 10.77.0.25/24 dev lan0"))
	harness.Eventually(t, time.Minute, "the others see that the host is away", func() error {
		if out := a.Run("members"); !strings.Contains(out, "dead") {
			return errors.New(out)
		}
		return nil
	})
	b.Seeder.Thaw()
	for _, h := range n.Hosts {
		sees(h, b, "10.77.0.25", 10*time.Second)
		h.AwaitMembers(3)
	}
	for _, h := range n.Hosts {
		finds(h, nil)
	}
	if b.Seeder.PID != pid || c.Seeder.Log.String() == "" {
		t.Error("the daemon was restarted")
	}

	harness.Run(t, b.In(t.Context(), "ip", "addr", "flush", "dev", "lan0"))
	harness.Eventually(t, 20*time.Second, "the host says that it has no address", func() error {
		out, err := b.In(t.Context(), harness.SeederBin(t), "doctor").CombinedOutput()
		if !strings.Contains(string(out), "no address that other hosts could reach") || strings.Contains(string(out), "ufw") {
			return fmt.Errorf("%s %w", out, err)
		}
		return nil
	})
}

// TestEqualNames: two hosts of one name, and two of one identity, are seen by all at once,
// with what to do; the second of them announces nothing, and says why. With another name
// or identity all is well.
func TestEqualNames(t *testing.T) {
	t.Parallel()
	n := harness.NewNetwork(t, "")
	a, b, c, d := n.AddHost(harness.Newest), n.AddHost(harness.Newest), n.AddHost(harness.Newest), n.AddHost(harness.Newest)
	a.StartSeeder(harness.StoreNode)
	b.StartSeeder(harness.StoreNode, "SEEDER_NODE_NAME=node")
	a.AwaitMembers(2)
	c.StartSeeder(harness.StoreNode, "SEEDER_NODE_NAME=node")
	hosts := []*harness.Host{a, b, c}
	told := func(texts ...string) {
		t.Helper()
		for _, h := range hosts {
			for _, args := range [][]string{{"status"}, {"doctor"}} {
				harness.Eventually(t, 10*time.Second, fmt.Sprintf("%s says it in %s", h.Name, args), func() error {
					out, _ := h.In(t.Context(), append([]string{harness.SeederBin(t)}, args...)...).CombinedOutput()
					for _, text := range texts {
						if !strings.Contains(string(out), text) {
							return fmt.Errorf("no %q in %s", text, out)
						}
					}
					if strings.Contains(string(out), "ufw") {
						return fmt.Errorf("a firewall is accused: %s", out)
					}
					return nil
				})
			}
			if h.Metric("seeder_conflicts") != 1 {
				t.Errorf("%s counts %v conflicts", h.Name, h.Metric("seeder_conflicts"))
			}
			page := harness.Run(t, h.In(t.Context(), "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:7952/"))
			if !strings.Contains(page, texts[0]) {
				t.Errorf("the page of %s does not have %q", h.Name, texts[0])
			}
		}
	}
	told("two hosts have the node name node", "10.77.0.2:7950 and 10.77.0.3:7950", "node_name")
	for _, h := range []*harness.Host{a, b} {
		if out := h.Run("members"); !strings.Contains(out, "node (10.77.0.3:7950)") {
			t.Errorf("members of %s: %s", h.Name, out)
		}
	}
	archive := harness.NewImage(t, harness.ImageSpec{Ref: "app:1", Says: "hello", Random: 1 << 20, Seed: 1}).DockerArchive(t, n.Dir)
	if err := c.Try(nil, "announce", "--from", archive); err == nil || !strings.Contains(err.Error(), "two hosts have the node name") || !strings.Contains(err.Error(), "node_name") {
		t.Errorf("the second announces: %v", err)
	}
	for _, h := range []*harness.Host{b, c} {
		out, err := h.In(t.Context(), "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:7952/readyz").CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Errorf("%s is ready: %s", h.Name, out)
		}
	}
	if out := harness.Run(t, a.In(t.Context(), "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:7952/readyz")); !strings.Contains(out, "ok") {
		t.Errorf("the third host is not ready: %s", out)
	}
	c.Seeder.Stop(t, 15)
	c.StartSeeder(harness.StoreNode, "SEEDER_NODE_NAME=h3")
	a.AwaitMembers(3)
	for _, h := range hosts {
		finds(h, nil)
	}

	// A copy of the identity.
	harness.Run(t, d.In(t.Context(), "mkdir", "-p", "/var/lib/seeder"))
	harness.Run(t, exec.CommandContext(t.Context(), "cp", b.Path("/var/lib/seeder/identity"), d.Path("/var/lib/seeder/identity")))
	d.StartSeeder(harness.StoreNode)
	hosts = append(hosts, d)
	told("node (10.77.0.2:7950) and h4 (10.77.0.4:7950) have the same identity", "rm /var/lib/seeder/identity")
	if err := d.Try(nil, "announce", "--from", archive); err == nil || !strings.Contains(err.Error(), "have the same identity") {
		t.Errorf("the copy announces: %v", err)
	}
	d.Seeder.Stop(t, 15)
	harness.Run(t, d.In(t.Context(), "rm", "/var/lib/seeder/identity"))
	d.StartSeeder(harness.StoreNode)
	a.AwaitMembers(4)
	for _, h := range hosts {
		finds(h, nil)
	}
	d.Run("announce", "--from", archive)
}
