package test

import (
	"path/filepath"
	"strings"
	"testing"

	"seeder/p2p"
)

// TestNoConfiguration: on hosts that k3s has made a server and an agent of, seeder
// needs no configuration at all: the secret comes from the cluster's token, the
// agent joins the servers that it knows.
func TestNoConfiguration(t *testing.T) {
	n := newNetwork(t, "")
	const password = "0123456789abcdef0123456789abcdef"
	for i := range 2 {
		h := n.addHost(newest)
		files := map[string]string{"/var/lib/rancher/k3s/server/token": "K10" + strings.Repeat("a1", 32) + "::server:" + password + "\n"}
		if i > 0 {
			files = map[string]string{
				"/etc/systemd/system/k3s-agent.service.env":                   "K3S_TOKEN='" + password + "'\nK3S_URL='https://10.77.0.1:6443'\n",
				"/var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json": `{"ServerURL":"https://10.77.0.1:6443","ServerAddresses":["10.77.0.1:6443"]}`,
			}
		}
		for path, content := range files {
			run(t, h.in(t.Context(), "mkdir", "-p", filepath.Dir(path)))
			h.write(path, content, 0o600)
		}
		h.startContainerd()
		h.seeder = h.start(nil, seederBin(t), "daemon")
	}
	a, b := n.hosts[0], n.hosts[1]
	a.awaitMembers(2)
	a.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	a.run("announce", short)
	b.inState(b, p2p.Ready, "")
	for _, h := range n.hosts {
		if log := h.seeder.log.String(); strings.Contains(log, password) || strings.Contains(log, "level=WARN") {
			t.Errorf("%s: %s", h.name, log)
		}
	}
	if out := b.run("config", "show"); !strings.Contains(out, "the token in /etc/systemd/system/k3s-agent.service.env") || strings.Contains(out, password) {
		t.Error(out)
	}
}
