package test

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestAddressChanges: a host whose address changes, as with a new lease or another cable,
// is known under the new one by all within ten seconds, without a restart. What it
// announces then reaches all, what others announce reaches it, and doctor finds nothing
// wrong. A host that has no address for a while says so, and accuses no firewall.
func TestAddressChanges(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "")
	for range 3 {
		n.addHost(newest).startSeeder(storeNode)
	}
	a, b, c := n.hosts[0], n.hosts[1], n.hosts[2]
	a.awaitMembers(3)
	b.awaitMembers(3)
	pid := b.seeder.pid
	for i, step := range []struct{ name, script, address string }{
		{"another lease", "ip addr del 10.77.0.2/24 dev eth0; ip addr add 10.77.0.22/24 dev eth0", "10.77.0.22"},
		{"the new one first", "ip addr add 10.77.0.23/24 dev eth0; ip addr del 10.77.0.22/24 dev eth0; ip addr add 10.77.0.23/24 dev eth0 2>/dev/null || true", "10.77.0.23"},
		{"renamed", "ip link set eth0 down; ip link set eth0 name lan0; ip link set lan0 up; ip addr add 10.77.0.23/24 dev lan0 2>/dev/null || true", "10.77.0.23"},
		{"no address, and the same one again", "ip addr del 10.77.0.23/24 dev lan0; sleep 15; ip addr add 10.77.0.23/24 dev lan0", "10.77.0.23"},
		{"no address, and another one", "ip addr del 10.77.0.23/24 dev lan0; sleep 15; ip addr add 10.77.0.24/24 dev lan0", "10.77.0.24"},
	} {
		run(t, b.in(t.Context(), "sh", "-c", step.script))
		began := time.Now()
		for _, h := range n.hosts {
			h.sees(b, step.address, 10*time.Second)
			h.awaitMembers(3)
		}
		t.Logf("%s: known by all %s after the change", step.name, time.Since(began).Round(100*time.Millisecond))
		for from, h := range map[string]*host{"moved": b, "other": a} {
			ref := fmt.Sprintf("app-%s-%d:1", from, i)
			h.runWithin(30*time.Second, "announce", "--from", newImage(t, imageSpec{ref: ref, says: ref, random: 1 << 20, seed: uint64(i)}).dockerArchive(t, n.dir))
		}
	}
	for _, h := range n.hosts {
		h.finds(nil)
	}
	if b.seeder.pid != pid || c.seeder.log.String() == "" {
		t.Error("the daemon was restarted")
	}

	run(t, b.in(t.Context(), "ip", "addr", "flush", "dev", "lan0"))
	eventually(t, 20*time.Second, "the host says that it has no address", func() error {
		out, err := b.in(t.Context(), seederBin(t), "doctor").CombinedOutput()
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
	n := newNetwork(t, "")
	a, b, c, d := n.addHost(newest), n.addHost(newest), n.addHost(newest), n.addHost(newest)
	a.startSeeder(storeNode)
	b.startSeeder(storeNode, "SEEDER_NODE_NAME=node")
	a.awaitMembers(2)
	c.startSeeder(storeNode, "SEEDER_NODE_NAME=node")
	hosts := []*host{a, b, c}
	told := func(texts ...string) {
		t.Helper()
		for _, h := range hosts {
			for _, args := range [][]string{{"status"}, {"doctor"}} {
				eventually(t, 10*time.Second, fmt.Sprintf("%s says it in %s", h.name, args), func() error {
					out, _ := h.in(t.Context(), append([]string{seederBin(t)}, args...)...).CombinedOutput()
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
			if h.metric("seeder_conflicts") != 1 {
				t.Errorf("%s counts %v conflicts", h.name, h.metric("seeder_conflicts"))
			}
			page := run(t, h.in(t.Context(), "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:7952/"))
			if !strings.Contains(page, texts[0]) {
				t.Errorf("the page of %s does not have %q", h.name, texts[0])
			}
		}
	}
	told("two hosts have the node name node", "10.77.0.2:7950 and 10.77.0.3:7950", "node_name")
	for _, h := range []*host{a, b} {
		if out := h.run("members"); !strings.Contains(out, "node (10.77.0.3:7950)") {
			t.Errorf("members of %s: %s", h.name, out)
		}
	}
	archive := newImage(t, imageSpec{ref: "app:1", says: "hello", random: 1 << 20, seed: 1}).dockerArchive(t, n.dir)
	if err := c.try(nil, "announce", "--from", archive); err == nil || !strings.Contains(err.Error(), "two hosts have the node name") || !strings.Contains(err.Error(), "node_name") {
		t.Errorf("the second announces: %v", err)
	}
	for _, h := range []*host{b, c} {
		out, err := h.in(t.Context(), "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:7952/readyz").CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Errorf("%s is ready: %s", h.name, out)
		}
	}
	if out := run(t, a.in(t.Context(), "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:7952/readyz")); !strings.Contains(out, "ok") {
		t.Errorf("the third host is not ready: %s", out)
	}
	c.seeder.stop(t, 15)
	c.startSeeder(storeNode, "SEEDER_NODE_NAME=h3")
	a.awaitMembers(3)
	for _, h := range hosts {
		h.finds(nil)
	}

	// A copy of the identity.
	run(t, d.in(t.Context(), "mkdir", "-p", "/var/lib/seeder"))
	run(t, exec.CommandContext(t.Context(), "cp", b.path("/var/lib/seeder/identity"), d.path("/var/lib/seeder/identity")))
	d.startSeeder(storeNode)
	hosts = append(hosts, d)
	told("node (10.77.0.2:7950) and h4 (10.77.0.4:7950) have the same identity", "rm /var/lib/seeder/identity")
	if err := d.try(nil, "announce", "--from", archive); err == nil || !strings.Contains(err.Error(), "have the same identity") {
		t.Errorf("the copy announces: %v", err)
	}
	d.seeder.stop(t, 15)
	run(t, d.in(t.Context(), "rm", "/var/lib/seeder/identity"))
	d.startSeeder(storeNode)
	a.awaitMembers(4)
	for _, h := range hosts {
		h.finds(nil)
	}
	d.run("announce", "--from", archive)
}
