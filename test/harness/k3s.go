package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// K3sPassword is that of the cluster's token.
	K3sPassword = "0123456789abcdef0123456789abcdef"
	// K3sToken is the content of the server's token, as k3s makes it: a hash of the
	// cluster's CA, a user and the password. Agents are told the same.
	K3sToken = "K10a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1::server:" + K3sPassword

	k3sData = "/var/lib/rancher/k3s"
	// K3sBalancer is where an agent keeps the servers that it knows.
	K3sBalancer = k3sData + "/agent/etc/k3s-agent-load-balancer.json"
)

// k3sUnit is what the installer of k3s 1.36 writes for `k3s ROLE --node-label=seeder=test`.
const k3sUnit = `[Unit]
Description=Lightweight Kubernetes
Documentation=https://k3s.io
Wants=network-online.target
After=network-online.target

[Install]
WantedBy=multi-user.target

[Service]
Type=notify
EnvironmentFile=-/etc/default/%%N
EnvironmentFile=-/etc/sysconfig/%%N
EnvironmentFile=-/etc/systemd/system/%[1]s.service.env
KillMode=process
Delegate=yes
User=root
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s
ExecStartPre=-/sbin/modprobe br_netfilter
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/local/bin/k3s \
    %[2]s \
	'--node-label=seeder=test' \

`

// k3sProgram stands in for k3s: its containerd is a child that dies with it and logs to a
// file, while shims stay; it takes the ports that k3s takes on 127.0.0.1, and imports
// agent/images at its start, as k3s does: two names for each image, both with k3s's label
// and pinned, after the pins of the run before were cleared.
const k3sProgram = `#!/bin/sh
data=` + k3sData + ` sock=` + Socket + `
PATH=` + k3sBin + `:$PATH
ctr="ctr -a $sock -n k8s.io"
case $1 in
ctr) shift; exec $ctr "$@" ;;
server) ports="6443 6444" ;;
agent) ports=6444 ;;
*) echo "this k3s has no $1" >&2; exit 1 ;;
esac
umask 022
mkdir -p $data/agent/containerd $data/agent/images /run/k3s
mkdir -p $(dirname $sock)
chmod 711 /run/k3s $(dirname $sock)
setpriv --pdeathsig KILL containerd -c $data/agent/etc/containerd/config.toml >>$data/agent/containerd/containerd.log 2>&1 &
containerd=$!
for port in $ports; do
	setpriv --pdeathsig KILL busybox httpd -f -p 127.0.0.1:$port -h /run/k3s &
done
until $ctr version >/dev/null 2>&1; do
	kill -0 $containerd || exit 1
	sleep 0.1
done
pins="io.cattle.k3s.pinned io.cri-containerd.pinned"
for name in $($ctr images ls -q 'labels."io.cattle.k3s.pinned"'); do
	$ctr images label $name $(printf '%s= ' $pins) >/dev/null
done
for archive in $data/agent/images/*.tar; do
	[ -e "$archive" ] || continue
	$ctr images import "$archive" >/dev/null
	for name in $(tar -xOf "$archive" manifest.json | sed 's/.*"RepoTags":\["\([^"]*\)".*/\1/'); do
		digest=$($ctr images ls "name==$name" | tail -1 | grep -o 'sha256:[0-9a-f]*' | head -1)
		$ctr images tag --force $name ${name%:*}@$digest >/dev/null
		for n in $name ${name%:*}@$digest; do
			$ctr images label $n $(printf '%s=pinned ' $pins) >/dev/null
		done
	done
done
systemd-notify --ready
wait $containerd
`

// k3sContainerd is the configuration that k3s writes for its containerd.
const k3sContainerd = `version = 3
imports = ["` + k3sData + `/agent/etc/containerd/config-v3.toml.d/*.toml"]
root = "` + k3sData + `/agent/containerd"
state = "/run/k3s/containerd"

[grpc]
  address = "` + Socket + `"

[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = "127.0.0.1"
  stream_server_port = "10010"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = true

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "` + k3sData + `/agent/etc/containerd/certs.d"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "rancher/mirrored-pause:3.6"
`

// k3sEtcd is the part of its etcd's configuration that names the members: a server that
// began a cluster names itself.
const k3sEtcd = `advertise-client-urls: https://%[2]s:2379
client-transport-security:
  cert-file: ` + k3sData + `/server/tls/etcd/server-client.crt
  client-cert-auth: true
data-dir: ` + k3sData + `/server/db/etcd
election-timeout: 5000
heartbeat-interval: 500
initial-advertise-peer-urls: https://%[2]s:2380
initial-cluster: %[1]s-57187dd6=https://%[2]s:2380
initial-cluster-state: new
listen-peer-urls: https://127.0.0.1:2380,https://%[2]s:2380
name: %[1]s-57187dd6
`

// WriteK3s makes a host look as k3s leaves it: a server, or where servers are given an agent
// that joined them. Files, links and modes are those of a real one, but for what they name.
func (h *Host) WriteK3s(servers ...*Host) {
	h.T.Helper()
	const units = "/etc/systemd/system/"
	h.Sh("umask 022; mkdir -p " + k3sData + "/server/db/etcd " + k3sData + "/agent/etc/containerd " + units)
	if len(servers) > 0 {
		h.Sh("rm -r " + k3sData + "/server")
		h.Write(units+"k3s-agent.service", fmt.Sprintf(k3sUnit, "k3s-agent", "agent"), 0o644)
		h.Write(units+"k3s-agent.service.env", "K3S_TOKEN='"+K3sToken+"'\nK3S_URL='https://"+servers[0].Address+":6443'\n", 0o600)
		h.Write(K3sBalancer, K3sServers(servers...), 0o644)
		return
	}
	h.Write(units+"k3s.service", fmt.Sprintf(k3sUnit, "k3s", "server"), 0o644)
	h.Write(units+"k3s.service.env", "", 0o600)
	h.Write(k3sData+"/server/token", K3sToken+"\n", 0o600)
	h.Write(k3sData+"/server/db/etcd/config", fmt.Sprintf(k3sEtcd, h.Name, h.Address), 0o600)
	h.Sh(fmt.Sprintf("cd %[1]s/server && chmod 700 . && ln -s %[1]s/server/token node-token && ln -s %[1]s/server/token agent-token", k3sData))
}

// K3sServers is the list of servers as an agent keeps it.
func K3sServers(servers ...*Host) string {
	var list []string
	for _, s := range servers {
		list = append(list, fmt.Sprintf("    %q", s.Address+":6443"))
	}
	return fmt.Sprintf("{\n  \"ServerURL\": %q,\n  \"ServerAddresses\": [\n%s\n  ]\n}", "https://"+servers[0].Address+":6443", strings.Join(list, ",\n"))
}

// InstallK3s makes a server of the first host and agents of the others, and starts it.
func (m *Machine) InstallK3s() {
	m.T.Helper()
	unit := "k3s"
	if server := m.Net.Hosts[0]; m.Host != server {
		unit = "k3s-agent"
		m.WriteK3s(server)
	} else {
		m.WriteK3s()
	}
	m.Write("/usr/local/bin/k3s", k3sProgram, 0o755)
	m.Write(k3sData+"/agent/etc/containerd/config.toml", k3sContainerd, 0o600)
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
