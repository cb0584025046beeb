package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"seeder/test/harness"
)

// TestBootedK3s: the host that the tests boot is one of k3s as far as seeder can see, by what
// was read off a real k3s v1.36.3: modes, links, ports, whose child containerd is, and what
// a stop leaves. seeder keeps the pins of images that k3s imports from agent/images where k3s
// takes its own away.
func TestBootedK3s(t *testing.T) {
	harness.NeedSystemd(t)
	n := harness.NewNetwork(t, "")
	server, agent := n.AddMachine(), n.AddMachine()
	for _, m := range []*harness.Machine{server, agent} {
		m.Boot()
	}
	packages := builtPackages(t, "../../bin/packages", "amd64", "x86_64")
	for _, m := range []*harness.Machine{server, agent} {
		m.AwaitBoot()
		hand(m, packages)
	}
	const images = "/var/lib/rancher/k3s/agent/images"
	agent.Op("mkdir -p " + images)
	img := harness.NewImage(t, harness.ImageSpec{Ref: harness.FullName, Says: "hello", Payload: 1 << 20, Seed: 1})
	archive := img.DockerArchive(t, filepath.Join(agent.Dir, "rancher", "k3s", "agent", "images"))
	for _, m := range []*harness.Machine{server, agent} {
		m.InstallK3s()
	}
	looksLikeK3s(server, "k3s", map[string]string{
		"stat -c %a /var/lib/rancher/k3s/server /var/lib/rancher/k3s/server/token": "700\n600\n",
		"readlink /var/lib/rancher/k3s/server/node-token":                          "/var/lib/rancher/k3s/server/token\n",
		"readlink /var/lib/rancher/k3s/server/agent-token":                         "/var/lib/rancher/k3s/server/token\n",
		"ss -Hltn 'sport = :6443' | wc -l":                                         "1\n",
	})
	looksLikeK3s(agent, "k3s-agent", map[string]string{
		"stat -c %a " + harness.K3sBalancer:                                                          "644\n",
		"ls -d /var/lib/rancher/k3s/server 2>/dev/null; :":                                           "",
		"stat -c %a /etc/systemd/system/k3s-agent.service /etc/systemd/system/k3s-agent.service.env": "644\n600\n",
	})

	for _, m := range []*harness.Machine{server, agent} {
		m.Op("dpkg -i " + inHost(packages.deb) + " && systemctl enable --now seeder")
	}
	server.AwaitMembers(2)
	byK3s := pinsOf(agent)
	for _, name := range []string{harness.FullName, "docker.io/library/k3s-dashboard@sha256:"} {
		if !strings.Contains(byK3s, name) {
			t.Fatalf("k3s has not imported and pinned %s:\n%s", name, byK3s)
		}
	}
	agent.Op("seeder announce " + harness.ShortName)
	server.Ready("hello")
	if err := os.Remove(archive); err != nil {
		t.Fatal(err)
	}
	agent.Op("systemctl restart k3s-agent")
	harness.Eventually(t, time.Minute, "both names are pinned by seeder alone", func() error {
		if left := agent.Op("k3s ctr images ls -q 'labels.\"io.cattle.k3s.pinned\"' 2>/dev/null"); left != "" {
			return fmt.Errorf("k3s has its label on %s", left)
		}
		if now := pinsOf(agent); now != byK3s {
			return errors.New(now)
		}
		return nil
	})
}

// pinsOf lists the names that are pinned on a machine.
func pinsOf(m *harness.Machine) string {
	m.T.Helper()
	return m.Op("k3s ctr images ls -q 'labels.\"io.cri-containerd.pinned\"==pinned' 2>/dev/null | LC_ALL=C sort")
}

// looksLikeK3s compares what commands print on a machine of k3s with unit, and stops and
// starts it.
func looksLikeK3s(m *harness.Machine, unit string, more map[string]string) {
	m.T.Helper()
	const containerd = "$(grep -lx containerd /proc/[0-9]*/comm | sed s/comm//)"
	more["stat -c %a /var/lib/rancher/k3s/agent /var/lib/rancher/k3s/agent/etc"] = "755\n755\n"
	more["stat -c %a /run/k3s /run/k3s/containerd "+harness.Socket] = "711\n711\n660\n"
	more["awk '/^PPid:/ { print $2 }' "+containerd+"status"] = m.Show(unit, "MainPID") + "\n"
	more["tr '\\0' ' ' <"+containerd+"cmdline"] = "containerd -c /var/lib/rancher/k3s/agent/etc/containerd/config.toml "
	more["journalctl -u "+unit+" | grep -c 'containerd successfully booted'; :"] = "0\n"
	more["grep -c 'containerd successfully booted' /var/lib/rancher/k3s/agent/containerd/containerd.log"] = "1\n"
	more["ss -Hltn '( sport = :6444 or sport = :10010 ) and src 127.0.0.1' | wc -l"] = "2\n"
	for command, want := range more {
		if got, err := m.TryOp(command); got != want {
			m.T.Errorf("%s on %s printed %q (%v), want %q", command, m.Name, got, err, want)
		}
	}
	// A stop ends containerd with k3s and leaves the file of its socket.
	m.Op("systemctl stop " + unit)
	harness.Eventually(m.T, 10*time.Second, "containerd has ended with k3s on "+m.Name, func() error {
		if out, err := m.TryOp("grep -lx containerd /proc/[0-9]*/comm"); err == nil {
			return errors.New(out)
		}
		return nil
	})
	m.Op("test -S " + harness.Socket + " && systemctl start " + unit)
	m.AwaitCRI()
}
