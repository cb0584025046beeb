package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// K3sPassword is that of the cluster's token.
const K3sPassword = "0123456789abcdef0123456789abcdef"

// k3sUnit is what k3s's installer writes, as far as it matters here.
const k3sUnit = `[Unit]
Description=Lightweight Kubernetes
Wants=network-online.target
After=network-online.target

[Install]
WantedBy=multi-user.target

[Service]
Type=notify
EnvironmentFile=-/etc/default/%%N
EnvironmentFile=-/etc/systemd/system/%[1]s.service.env
KillMode=process
Delegate=yes
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s
ExecStart=/usr/local/bin/k3s %[2]s
`

// InstallK3s makes a host look as k3s leaves it, a server on the first one and agents
// on the others, and starts it: the program runs the containerd that it would run.
func (m *Machine) InstallK3s() {
	m.T.Helper()
	const data = "/var/lib/rancher/k3s"
	unit, role := "k3s-agent", "agent"
	if m.Host == m.Net.Hosts[0] {
		unit, role = "k3s", "server"
	}
	files := map[string]string{
		"/usr/local/bin/k3s": fmt.Sprintf("#!/bin/sh\nPATH=%s:$PATH exec containerd -c %s/agent/etc/containerd/config.toml\n", k3sBin, data),
		data + "/agent/etc/containerd/config.toml": fmt.Sprintf("version = 2\nroot = %q\nstate = %q\n[grpc]\n  address = %q\n",
			data+"/agent/containerd", "/run/k3s/containerd", Socket),
		"/etc/systemd/system/" + unit + ".service": fmt.Sprintf(k3sUnit, unit, role),
	}
	if role == "server" {
		files[data+"/server/token"] = "K10" + strings.Repeat("a1", 32) + "::server:" + K3sPassword + "\n"
		files["/etc/systemd/system/k3s.service.env"] = ""
	} else {
		files["/etc/systemd/system/k3s-agent.service.env"] = "K3S_TOKEN='" + K3sPassword + "'\nK3S_URL='https://10.77.0.1:6443'\n"
		files[data+"/agent/etc/k3s-agent-load-balancer.json"] = `{"ServerURL":"https://10.77.0.1:6443","ServerAddresses":["10.77.0.1:6443"]}`
	}
	for path, content := range files {
		mode := os.FileMode(0o600)
		if strings.HasSuffix(path, "/k3s") {
			mode = 0o755
		}
		m.Op("mkdir -p " + filepath.Dir(path))
		m.Write(path, content, mode)
	}
	if role == "server" {
		m.Op(fmt.Sprintf("cd %s/server && chmod 700 . && ln -s token node-token && ln -s token agent-token", data))
	}
	m.Op("systemctl daemon-reload && systemctl enable --now " + unit)
	m.AwaitCRI()
}

// AwaitCRI waits for the host's containerd.
func (m *Machine) AwaitCRI() {
	m.T.Helper()
	Eventually(m.T, 60*time.Second, "CRI answers on "+m.Name, func() error {
		_, err := m.ImageStatus("none:latest")
		return err
	})
}

// K3sImport is `k3s ctr images import` of a file that was copied to the machine.
func (m *Machine) K3sImport(spec ImageSpec) {
	m.T.Helper()
	archive := NewImage(m.T, spec).DockerArchive(m.T, filepath.Join(m.Dir, "rancher"))
	defer os.Remove(archive)
	m.Ctr("images", "import", "/var/lib/rancher/"+filepath.Base(archive))
}
