package k3s

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/config/configtest"
	"seeder/cmd/seeder/internal/k3s/k3stest"
)

// TestFindK3s: what a host is, by its unit before what is left of others.
func TestFindK3s(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		files            map[string]string
		want, role, from string
	}{
		"nothing":              {nil, "", "", ""},
		"plain containerd":     {map[string]string{PlainSocket: ""}, "", "", ""},
		"server":               {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns}, "k3s", "server", k3stest.ServerUnit},
		"agent":                {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns}, "k3s", "agent", k3stest.AgentUnit},
		"agent in /usr":        {map[string]string{"/usr/lib/systemd/system/k3s-agent.service": k3stest.AgentRuns}, "k3s", "agent", "/usr/lib/systemd/system/k3s-agent.service"},
		"server by hand":       {map[string]string{"/var/lib/rancher/k3s/server/token": "", "/var/lib/rancher/k3s/agent/x": ""}, "k3s", "server", "/var/lib/rancher/k3s/server"},
		"agent by hand":        {map[string]string{"/var/lib/rancher/k3s/agent/x": ""}, "k3s", "agent", "/var/lib/rancher/k3s/agent"},
		"agent, once a server": {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, "/var/lib/rancher/k3s/server/token": ""}, "k3s", "agent", k3stest.AgentUnit},
		"both units":           {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, k3stest.ServerUnit: k3stest.ServerRuns}, "k3s", "", k3stest.ServerUnit},
		"rke2 server":          {map[string]string{"/usr/local/lib/systemd/system/rke2-server.service": "ExecStart=/usr/local/bin/rke2 server\n"}, "rke2", "server", "/usr/local/lib/systemd/system/rke2-server.service"},
		"rke2 agent by hand":   {map[string]string{"/var/lib/rancher/rke2/agent/x": ""}, "rke2", "agent", "/var/lib/rancher/rke2/agent"},
		"another k3s unit":     {map[string]string{"/etc/systemd/system/k3s-backup.service": "ExecStart=/usr/local/bin/k3s etcd-snapshot save\n"}, "", "", ""},
		"configured only":      {map[string]string{"/etc/rancher/k3s/config.yaml": "token: x\n"}, "k3s", "", "/etc/rancher/k3s/config.yaml"},
	} {
		root := k3stest.HostWith(t, tc.files)
		h, ok := Find(root)
		if from := strings.TrimPrefix(h.from, root); ok != (tc.want != "") || h.name != tc.want || h.role != tc.role || from != tc.from {
			t.Errorf("%s: %v %q, role %q, by %s", name, ok, h.name, h.role, from)
		}
	}
}

// TestFindSocket: the containerd of the kubelet, and no other that happens to be there.
func TestFindSocket(t *testing.T) {
	t.Parallel()
	const own = "/run/own/containerd.sock"
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
		why   string // of the choice, or of the error
	}{
		"k3s":                       {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, Socket: ""}, Socket, "k3s agent, by "},
		"k3s beside a Docker":       {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns, Socket: "", PlainSocket: ""}, Socket, "k3s server, by "},
		"k3s that is not there yet": {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, PlainSocket: ""}, "", "no socket at " + Socket},
		"k3s by hand":               {map[string]string{"/var/lib/rancher/k3s/agent/x": "", Socket: "", PlainSocket: ""}, Socket, "k3s agent, by "},
		"rke2":                      {map[string]string{"/usr/lib/systemd/system/rke2-agent.service": "ExecStart=/usr/bin/rke2 agent\n", Socket: "", PlainSocket: ""}, Socket, "rke2 agent, by "},
		"plain":                     {map[string]string{PlainSocket: ""}, PlainSocket, "no k3s"},
		"both sockets, no k3s":      {map[string]string{PlainSocket: "", Socket: ""}, Socket, "no k3s"},
		"none":                      {nil, "", "is k3s running?"},
		"docker in the unit":        {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns + "    --docker --tls-san x\n", PlainSocket: ""}, "", "runs its pods in Docker (docker in "},
		"docker in the config":      {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, "/etc/rancher/k3s/config.yaml": "docker: true\n", Socket: ""}, "", "containerd.address to embedded"},
		"docker is off":             {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns + "    --docker=false\n", Socket: ""}, Socket, "k3s agent"},
		"containerd of its own":     {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns + "    --container-runtime-endpoint unix://" + own + "\n", own: "", Socket: ""}, own, "container-runtime-endpoint in "},
		"that, configured":          {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, "/etc/rancher/k3s/config.yaml": "container-runtime-endpoint: " + own + "\n", own: ""}, own, "config.yaml"},
	} {
		socket, why, err := FindSocket(k3stest.HostWith(t, tc.files))
		if err != nil {
			socket, why = "", err.Error()
		}
		if socket != tc.want || !strings.Contains(why, tc.why) {
			t.Errorf("%s: %q, since %s; want %q, since %s", name, socket, why, tc.want, tc.why)
		}
	}
}

// TestServersToJoin: agents know the servers by the list that they keep, or the one
// that they were told to join; servers by the one that they joined.
func TestServersToJoin(t *testing.T) {
	t.Parallel()
	const balancer = "/var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json"
	const etcd = "/var/lib/rancher/k3s/server/db/etcd/config"
	const members = "name: b-2\ninitial-cluster: a-1=https://10.0.0.1:2380,b-2=https://10.0.0.2:2380,c-3=https://[fd00::3]:2380\ninitial-cluster-state: existing\n"
	for name, tc := range map[string]struct {
		files map[string]string
		want  []string
		from  []string
	}{
		"first server":              {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns + "    --cluster-init\n"}, nil, nil},
		"server by its environment": {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns, k3stest.ServerUnit + ".env": "K3S_URL='https://10.0.0.1:6443'\n"}, []string{"10.0.0.1"}, []string{k3stest.ServerUnit + ".env"}},
		"server by its unit":        {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns + "    '--server' \\\n 'https://k3s.example:6443'\n"}, []string{"k3s.example"}, []string{k3stest.ServerUnit}},
		// Longer than go-systemd's reader of units takes a line; systemd takes 1 MiB.
		"server by a long line":    {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns + "    " + strings.Repeat("--tls-san k3s.example ", 200) + "--server https://10.0.0.1:6443\n"}, []string{"10.0.0.1"}, []string{k3stest.ServerUnit}},
		"server by its config":     {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns, "/etc/rancher/k3s/config.yaml": "server: https://[fd00::1]:6443\n"}, []string{"fd00::1"}, []string{"/etc/rancher/k3s/config.yaml"}},
		"server by a short option": {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns + " -s https://10.0.0.1:6443\n"}, []string{"10.0.0.1"}, []string{k3stest.ServerUnit}},
		"server by its etcd":       {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns + " --server https://lb.example\n", etcd: members}, []string{"lb.example", "10.0.0.1", "10.0.0.2", "fd00::3"}, []string{k3stest.ServerUnit, etcd}},
		"server, etcd is strange":  {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns, etcd: "initial-cluster: [1]\n"}, nil, nil},
		"server without apiserver": {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns, "/var/lib/rancher/k3s/agent/etc/k3s-api-server-agent-load-balancer.json": `{"ServerAddresses":["10.0.0.8:6443"]}`}, []string{"10.0.0.8"}, []string{"load-balancer.json"}},
		"agent before it joined":   {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, k3stest.AgentUnit + ".env": "K3S_URL='https://10.0.0.1:6443'\n"}, []string{"10.0.0.1"}, []string{k3stest.AgentUnit + ".env"}},
		"agent that has joined":    {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, k3stest.AgentUnit + ".env": "K3S_URL='https://10.0.0.1:6443'\n", balancer: `{"ServerURL":"https://10.0.0.1:6443","ServerAddresses":["10.0.0.2:6443","10.0.0.3:6443"]}`}, []string{"10.0.0.2", "10.0.0.3"}, []string{balancer}},
		"other data dir":           {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns + " --data-dir /mnt/k3s\n", "/mnt/k3s/agent/etc/k3s-agent-load-balancer.json": `{"ServerAddresses":["10.0.0.4:6443"]}`}, []string{"10.0.0.4"}, []string{"/mnt/k3s"}},
		"unreadable settings":      {map[string]string{k3stest.AgentUnit: "ExecStart=k3s agent '\n", balancer: `{"ServerAddresses":["10.0.0.5:6443"]}`}, []string{"10.0.0.5"}, []string{balancer}},
		"rke2 server":              {map[string]string{"/etc/rancher/rke2/config.yaml": "server: https://10.0.0.6:9345\n"}, []string{"10.0.0.6"}, []string{"/etc/rancher/rke2/config.yaml"}},
		"the host itself":          {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns + " --server https://127.0.0.1:6443\n"}, nil, nil},
	} {
		root := k3stest.HostWith(t, tc.files)
		got, from := Joins(onOtherHosts, root)
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
		for _, want := range tc.from {
			if !strings.Contains(from, want) {
				t.Errorf("%s: from %q, want %s in it", name, from, want)
			}
		}
	}
}

// TestTokenThatIsNotThere: a server that has not made it yet is waited for, an agent
// whose token is nowhere is told what to do; a node that needs none runs.
func TestTokenThatIsNotThere(t *testing.T) {
	t.Parallel()
	alone := config.Config{Gossip: config.Gossip{Bind: "127.0.0.1:7950"}, Transfer: config.Transfer{Bind: "127.0.0.1:7951"}}
	for name, tc := range map[string]struct {
		files map[string]string
		code  int
		says  []string
	}{
		"server":      {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns}, cli.ExitFailed, []string{"not made its token yet", "systemctl start k3s"}},
		"rke2 server": {map[string]string{"/usr/lib/systemd/system/rke2-server.service": "ExecStart=rke2 server\n"}, cli.ExitFailed, []string{"systemctl start rke2-server"}},
		"agent":       {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, k3stest.AgentUnit + ".env": "K3S_URL=https://10.0.0.1:6443\n"}, cli.ExitUsage, []string{"is an agent", "seeder secret generate > /etc/seeder/secret"}},
		"no k3s":      {nil, cli.ExitUsage, []string{"no secret: gossip.bind", "seeder secret generate > /etc/seeder/secret"}},
	} {
		root := k3stest.HostWith(t, tc.files)
		_, err := LoadSecrets(onOtherHosts, root)
		if err == nil || cli.ExitCode(err) != tc.code {
			t.Errorf("%s: %v, code %d; want %d", name, err, cli.ExitCode(err), tc.code)
			continue
		}
		clitest.WantAll(t, err.Error(), append(tc.says, "no secret")...)
		if f, err := LoadSecrets(alone, root); err != nil || !f.Alone {
			t.Errorf("%s, on loopback: %+v %v", name, f, err)
		}
	}
}

// TestTokenOfRoot: who may not read the token is told who may, and what else helps.
func TestTokenOfRoot(t *testing.T) {
	t.Parallel()
	root := k3stest.HostWith(t, map[string]string{k3stest.ServerUnit: k3stest.ServerRuns, "/var/lib/rancher/k3s/server/token": fullToken("server", k3stest.TokenPassword)})
	for _, dir := range []string{"..", "", "etc", "etc/systemd", "etc/systemd/system", "var", "var/lib", "var/lib/rancher", "var/lib/rancher/k3s"} {
		if err := os.Chmod(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, k3stest.ServerUnit), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "var/lib/rancher/k3s/server"), 0); err != nil { // else its owner, who runs this
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(root, "var/lib/rancher/k3s/server"), 0o700) })
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread, with its rights, ends with this
		if os.Geteuid() == 0 {
			unix.SetfsuidRetUid(65534)
		}
		_, err := LoadSecrets(onOtherHosts, root)
		done <- err
	}()
	if err := <-done; err == nil || cli.ExitCode(err) != cli.ExitUsage {
		t.Errorf("%v, want an error of usage", err)
	} else {
		clitest.WantAll(t, err.Error(), "server/", "permission denied", "root can read it", "seeder secret generate > /etc/seeder/secret")
	}
}

// TestConfigShowSaysWhy: what auto came to, and by what.
func TestConfigShowSaysWhy(t *testing.T) {
	t.Parallel()
	show := func(files map[string]string, flags ...string) string {
		t.Helper()
		cfg, err := configtest.Load(t, "", nil, flags...)
		if err != nil {
			t.Fatal(err)
		}
		root := k3stest.HostWith(t, files)
		NoteFound(t.Context(), &cfg, root)
		b, err := json.Marshal(cfg.Settings)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(b), root, "")
	}
	out := show(map[string]string{k3stest.ServerUnit: k3stest.ServerRuns, k3stest.ServerUnit + ".env": "K3S_TOKEN=" + k3stest.TokenPassword + "\nK3S_URL=https://10.0.0.1:6443\n", Socket: "", PlainSocket: ""})
	clitest.WantAll(t, out, `"containerd.address","value":"`+Socket+`","source":"default (auto: k3s server, by `+k3stest.ServerUnit+`)"`,
		`"containerd.snapshotter","value":"auto","source":"default (auto: the one that CRI uses, which does not answer now)"`,
		`"gossip.join","value":["10.0.0.1"],"source":"default (the servers in `+k3stest.ServerUnit+`.env)"`,
		`"secret_file","value":"","source":"default (the token in `+k3stest.ServerUnit+`.env)"`,
		`"containerd.namespace","value":"k8s.io","source":"default"`)
	if strings.Contains(out, k3stest.TokenPassword) {
		t.Errorf("the token is told: %s", out)
	}
	clitest.WantAll(t, show(map[string]string{k3stest.ServerUnit: k3stest.ServerRuns + " --docker\n"}), `"source":"default (auto: none now: no containerd to import images into: k3s of this host runs its pods in Docker`,
		"none that can be used: no secret: k3s of this host is a server")
	clitest.WantAll(t, show(nil, "--containerd-address", "/x.sock", "--containerd-snapshotter", "native"),
		`"containerd.address","value":"/x.sock","source":"flag --containerd-address"`, `"value":"native","source":"flag --containerd-snapshotter"`)
	clitest.WantAll(t, show(nil, "--containerd-address", "embedded"), "an embedded store has none")
}

func FuzzEtcdHosts(f *testing.F) {
	f.Add([]byte("initial-cluster: a-1=https://10.0.0.1:2380,b=https://[fd00::1]:2380\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		hosts := etcdHosts(b)
		if len(hosts) > maxK3sServers {
			t.Fatalf("%d hosts", len(hosts))
		}
		for _, h := range hosts {
			if _, err := config.JoinAddress(h, config.DefaultTransferPort); err != nil {
				t.Fatalf("host %q: %v", h, err)
			}
		}
	})
}
