package test

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"seeder/p2p/report"
)

// k3sFiles are what k3s leaves on a server, or on an agent that has joined servers.
func k3sFiles(role string, servers ...*host) map[string]string {
	if role == "server" {
		return map[string]string{
			"/etc/systemd/system/k3s.service":    "[Service]\nExecStart=/usr/local/bin/k3s \\\n    server \\\n",
			"/var/lib/rancher/k3s/server/token":  "K10" + strings.Repeat("a1", 32) + "::server:" + k3sPassword + "\n",
			"/var/lib/rancher/k3s/agent/etc/pad": "",
		}
	}
	return map[string]string{
		"/etc/systemd/system/k3s-agent.service":     "[Service]\nExecStart=/usr/local/bin/k3s \\\n    agent \\\n",
		"/etc/systemd/system/k3s-agent.service.env": "K3S_TOKEN='" + k3sPassword + "'\nK3S_URL='https://" + servers[0].address + ":6443'\n",
		balancerFile: balancer(servers...),
	}
}

const balancerFile = "/var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json"

// balancer is the list of servers as an agent keeps it.
func balancer(servers ...*host) string {
	var addresses []string
	for _, s := range servers {
		addresses = append(addresses, `"`+s.address+`:6443"`)
	}
	return fmt.Sprintf(`{"ServerURL":"https://%s:6443","ServerAddresses":[%s]}`, servers[0].address, strings.Join(addresses, ","))
}

// addK3s adds a host that k3s has made a server or an agent of, with seeder as it is
// installed: without any configuration.
func (n *network) addK3s(files map[string]string) *host {
	h := n.addHost(newest)
	for path, content := range files {
		run(n.t, h.in(n.t.Context(), "mkdir", "-p", filepath.Dir(path)))
		h.write(path, content, 0o600)
	}
	h.startContainerd()
	h.seeder = h.start(nil, seederBin(n.t), "daemon")
	return h
}

// TestNoConfiguration: on hosts that k3s has made servers and agents of, seeder needs no
// configuration at all: the secret comes from the cluster's token, the agents join the
// servers that they know, and follow their list of them while they run. A token that is
// rotated is noticed, and changes nothing by itself.
func TestNoConfiguration(t *testing.T) {
	t.Parallel() // it waits most of the time
	n := newNetwork(t, "")
	server := n.addK3s(k3sFiles("server"))
	agent := n.addK3s(k3sFiles("agent", server))
	other := n.addK3s(k3sFiles("agent", server))
	server.awaitMembers(3)
	server.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	server.run("announce", short)
	for _, h := range []*host{agent, other} {
		h.inState(h, report.Ready, "")
	}
	for _, h := range n.hosts {
		if log := h.seeder.log.String(); strings.Contains(log, k3sPassword) || strings.Contains(log, "level=WARN") {
			t.Errorf("%s: %s", h.name, log)
		}
	}
	out := agent.run("config", "show")
	for _, want := range []string{
		"the token in /etc/systemd/system/k3s-agent.service.env", sockPath, "auto: k3s agent, by /etc/systemd/system/k3s-agent.service",
		"overlayfs", "that of CRI", server.address, "the servers in " + balancerFile,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("config show has no %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, k3sPassword) {
		t.Error("config show tells the token")
	}

	// Another server, which knows nobody: it is there once an agent hears of it.
	second := n.addK3s(k3sFiles("server"))
	second.awaitMembers(1)
	agent.write(balancerFile, balancer(server, second), 0o600)
	other.write("/etc/systemd/system/k3s-agent.service.env", "K3S_TOKEN='"+strings.Repeat("f", 32)+"'\n", 0o600)
	eventually(t, time.Minute, "the new server is a member, and has the image", func() error {
		cells, err := second.states(short)
		if c := cells[second.name]; err != nil || len(cells) != 4 || c.State != report.Ready {
			return fmt.Errorf("%d hosts, %s (%s): %v", len(cells), c.State, c.Reason, err)
		}
		return nil
	})
	if log := agent.seeder.log.String(); !strings.Contains(log, "servers to join") || !strings.Contains(log, second.address) {
		t.Errorf("the agent does not say that it knows another server: %s", log)
	}
	eventually(t, time.Minute, "the rotated token is noticed", func() error {
		if got := other.metric("seeder_secret_changed"); got != 1 {
			return fmt.Errorf("seeder_secret_changed is %v", got)
		}
		return nil
	})
	if log := other.seeder.log.String(); !strings.Contains(log, "has a different one") || server.metric("seeder_secret_changed") != 0 {
		t.Errorf("the rotated token: %s", log)
	}
	other.awaitMembers(4)
}

// TestReadiness: /readyz says that containerd is away, and that it is back.
func TestReadiness(t *testing.T) {
	t.Parallel() // it waits most of the time
	n := newNetwork(t, "")
	h := n.addK3s(k3sFiles("server"))
	answers := func(want ...string) {
		t.Helper()
		eventually(t, 30*time.Second, fmt.Sprintf("/readyz says %q", want), func() error {
			out, err := h.in(t.Context(), "sh", "-c", `printf 'GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n' | busybox nc 127.0.0.1 7952`).Output()
			for _, w := range want {
				if !strings.Contains(string(out), w) {
					return fmt.Errorf("%q %v", out, err)
				}
			}
			return nil
		})
	}
	answers("200 OK", "\r\n\r\nok\n")
	h.containerd.stop(t, syscall.SIGKILL)
	answers("503", "this host waits for containerd: ")
	h.startContainerd()
	answers("200 OK", "\r\n\r\nok\n")
	if got := h.metric("seeder_containerd_up"); got != 1 {
		t.Errorf("seeder_containerd_up is %v", got)
	}
}
