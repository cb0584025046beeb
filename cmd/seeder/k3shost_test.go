package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/config/configtest"
	"seeder/p2p/trust"
)

const (
	serverUnit = "/etc/systemd/system/k3s.service"
	agentUnit  = "/etc/systemd/system/k3s-agent.service"
	serverRuns = "[Service]\nExecStart=/usr/local/bin/k3s \\\n    server \\\n"
	agentRuns  = "[Service]\nExecStart=/usr/local/bin/k3s \\\n    agent \\\n"
)

// TestFindK3s: what a host is, by its unit before what lies about.
func TestFindK3s(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		files            map[string]string
		want, role, from string
	}{
		"nothing":              {nil, "", "", ""},
		"plain containerd":     {map[string]string{plainSocket: ""}, "", "", ""},
		"server":               {map[string]string{serverUnit: serverRuns}, "k3s", "server", serverUnit},
		"agent":                {map[string]string{agentUnit: agentRuns}, "k3s", "agent", agentUnit},
		"agent in /usr":        {map[string]string{"/usr/lib/systemd/system/k3s-agent.service": agentRuns}, "k3s", "agent", "/usr/lib/systemd/system/k3s-agent.service"},
		"server by hand":       {map[string]string{"/var/lib/rancher/k3s/server/token": "", "/var/lib/rancher/k3s/agent/x": ""}, "k3s", "server", "/var/lib/rancher/k3s/server"},
		"agent by hand":        {map[string]string{"/var/lib/rancher/k3s/agent/x": ""}, "k3s", "agent", "/var/lib/rancher/k3s/agent"},
		"agent, once a server": {map[string]string{agentUnit: agentRuns, "/var/lib/rancher/k3s/server/token": ""}, "k3s", "agent", agentUnit},
		"both units":           {map[string]string{agentUnit: agentRuns, serverUnit: serverRuns}, "k3s", "", serverUnit},
		"rke2 server":          {map[string]string{"/usr/local/lib/systemd/system/rke2-server.service": "ExecStart=/usr/local/bin/rke2 server\n"}, "rke2", "server", "/usr/local/lib/systemd/system/rke2-server.service"},
		"rke2 agent by hand":   {map[string]string{"/var/lib/rancher/rke2/agent/x": ""}, "rke2", "agent", "/var/lib/rancher/rke2/agent"},
		"another k3s unit":     {map[string]string{"/etc/systemd/system/k3s-backup.service": "ExecStart=/usr/local/bin/k3s etcd-snapshot save\n"}, "", "", ""},
		"configured only":      {map[string]string{"/etc/rancher/k3s/config.yaml": "token: x\n"}, "k3s", "", "/etc/rancher/k3s/config.yaml"},
	} {
		root := hostWith(t, tc.files)
		h, ok := findK3s(root)
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
		"k3s":                       {map[string]string{agentUnit: agentRuns, k3sSocket: ""}, k3sSocket, "k3s agent, by "},
		"k3s beside a Docker":       {map[string]string{serverUnit: serverRuns, k3sSocket: "", plainSocket: ""}, k3sSocket, "k3s server, by "},
		"k3s that is not there yet": {map[string]string{agentUnit: agentRuns, plainSocket: ""}, "", "no socket at " + k3sSocket},
		"k3s by hand":               {map[string]string{"/var/lib/rancher/k3s/agent/x": "", k3sSocket: "", plainSocket: ""}, k3sSocket, "k3s agent, by "},
		"rke2":                      {map[string]string{"/usr/lib/systemd/system/rke2-agent.service": "ExecStart=/usr/bin/rke2 agent\n", k3sSocket: "", plainSocket: ""}, k3sSocket, "rke2 agent, by "},
		"plain":                     {map[string]string{plainSocket: ""}, plainSocket, "no k3s"},
		"both sockets, no k3s":      {map[string]string{plainSocket: "", k3sSocket: ""}, k3sSocket, "no k3s"},
		"none":                      {nil, "", "is k3s running?"},
		"docker in the unit":        {map[string]string{serverUnit: serverRuns + "    --docker --tls-san x\n", plainSocket: ""}, "", "runs its pods in Docker (docker in "},
		"docker in the config":      {map[string]string{agentUnit: agentRuns, "/etc/rancher/k3s/config.yaml": "docker: true\n", k3sSocket: ""}, "", "containerd.address to embedded"},
		"docker is off":             {map[string]string{agentUnit: agentRuns + "    --docker=false\n", k3sSocket: ""}, k3sSocket, "k3s agent"},
		"containerd of its own":     {map[string]string{agentUnit: agentRuns + "    --container-runtime-endpoint unix://" + own + "\n", own: "", k3sSocket: ""}, own, "container-runtime-endpoint in "},
		"that, configured":          {map[string]string{agentUnit: agentRuns, "/etc/rancher/k3s/config.yaml": "container-runtime-endpoint: " + own + "\n", own: ""}, own, "config.yaml"},
	} {
		socket, why, err := findSocket(hostWith(t, tc.files))
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
		"first server":              {map[string]string{serverUnit: serverRuns + "    --cluster-init\n"}, nil, nil},
		"server by its environment": {map[string]string{serverUnit: serverRuns, serverUnit + ".env": "K3S_URL='https://10.0.0.1:6443'\n"}, []string{"10.0.0.1"}, []string{serverUnit + ".env"}},
		"server by its unit":        {map[string]string{serverUnit: serverRuns + "    '--server' \\\n 'https://k3s.example:6443'\n"}, []string{"k3s.example"}, []string{serverUnit}},
		"server by its config":      {map[string]string{serverUnit: serverRuns, "/etc/rancher/k3s/config.yaml": "server: https://[fd00::1]:6443\n"}, []string{"fd00::1"}, []string{"/etc/rancher/k3s/config.yaml"}},
		"server by a short option":  {map[string]string{serverUnit: serverRuns + " -s https://10.0.0.1:6443\n"}, []string{"10.0.0.1"}, []string{serverUnit}},
		"server by its etcd":        {map[string]string{serverUnit: serverRuns + " --server https://lb.example\n", etcd: members}, []string{"lb.example", "10.0.0.1", "10.0.0.2", "fd00::3"}, []string{serverUnit, etcd}},
		"server, etcd is strange":   {map[string]string{serverUnit: serverRuns, etcd: "initial-cluster: [1]\n"}, nil, nil},
		"server without apiserver":  {map[string]string{serverUnit: serverRuns, "/var/lib/rancher/k3s/agent/etc/k3s-api-server-agent-load-balancer.json": `{"ServerAddresses":["10.0.0.8:6443"]}`}, []string{"10.0.0.8"}, []string{"load-balancer.json"}},
		"agent before it joined":    {map[string]string{agentUnit: agentRuns, agentUnit + ".env": "K3S_URL='https://10.0.0.1:6443'\n"}, []string{"10.0.0.1"}, []string{agentUnit + ".env"}},
		"agent that has joined":     {map[string]string{agentUnit: agentRuns, agentUnit + ".env": "K3S_URL='https://10.0.0.1:6443'\n", balancer: `{"ServerURL":"https://10.0.0.1:6443","ServerAddresses":["10.0.0.2:6443","10.0.0.3:6443"]}`}, []string{"10.0.0.2", "10.0.0.3"}, []string{balancer}},
		"other data dir":            {map[string]string{agentUnit: agentRuns + " --data-dir /mnt/k3s\n", "/mnt/k3s/agent/etc/k3s-agent-load-balancer.json": `{"ServerAddresses":["10.0.0.4:6443"]}`}, []string{"10.0.0.4"}, []string{"/mnt/k3s"}},
		"unreadable settings":       {map[string]string{agentUnit: "ExecStart=k3s agent '\n", balancer: `{"ServerAddresses":["10.0.0.5:6443"]}`}, []string{"10.0.0.5"}, []string{balancer}},
		"rke2 server":               {map[string]string{"/etc/rancher/rke2/config.yaml": "server: https://10.0.0.6:9345\n"}, []string{"10.0.0.6"}, []string{"/etc/rancher/rke2/config.yaml"}},
		"the host itself":           {map[string]string{serverUnit: serverRuns + " --server https://127.0.0.1:6443\n"}, nil, nil},
	} {
		root := hostWith(t, tc.files)
		got, from := joins(onOtherHosts, root)
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
		"server":      {map[string]string{serverUnit: serverRuns}, cli.ExitFailed, []string{"not made its token yet", "systemctl start k3s"}},
		"rke2 server": {map[string]string{"/usr/lib/systemd/system/rke2-server.service": "ExecStart=rke2 server\n"}, cli.ExitFailed, []string{"systemctl start rke2-server"}},
		"agent":       {map[string]string{agentUnit: agentRuns, agentUnit + ".env": "K3S_URL=https://10.0.0.1:6443\n"}, cli.ExitUsage, []string{"is an agent", "seeder secret generate > /etc/seeder/secret"}},
		"no k3s":      {nil, cli.ExitUsage, []string{"no secret: gossip.bind", "seeder secret generate > /etc/seeder/secret"}},
	} {
		root := hostWith(t, tc.files)
		_, err := loadSecrets(onOtherHosts, root)
		if err == nil || cli.ExitCode(err) != tc.code {
			t.Errorf("%s: %v, code %d; want %d", name, err, cli.ExitCode(err), tc.code)
			continue
		}
		wantAll(t, err.Error(), append(tc.says, "no secret")...)
		if f, err := loadSecrets(alone, root); err != nil || !f.alone {
			t.Errorf("%s, on loopback: %+v %v", name, f, err)
		}
	}
}

// TestTokenOfRoot: who may not read the token is told who may, and what else helps.
func TestTokenOfRoot(t *testing.T) {
	t.Parallel()
	root := hostWith(t, map[string]string{serverUnit: serverRuns, "/var/lib/rancher/k3s/server/token": fullToken("server", tokenPassword)})
	for _, dir := range []string{"..", "", "etc", "etc/systemd", "etc/systemd/system", "var", "var/lib", "var/lib/rancher", "var/lib/rancher/k3s"} {
		if err := os.Chmod(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, serverUnit), 0o644); err != nil {
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
		_, err := loadSecrets(onOtherHosts, root)
		done <- err
	}()
	if err := <-done; err == nil || cli.ExitCode(err) != cli.ExitUsage {
		t.Errorf("%v, want an error of usage", err)
	} else {
		wantAll(t, err.Error(), "server/", "permission denied", "root can read it", "seeder secret generate > /etc/seeder/secret")
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
		root := hostWith(t, files)
		noteFound(t.Context(), &cfg, root)
		b, err := json.Marshal(cfg.Settings)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(b), root, "")
	}
	out := show(map[string]string{serverUnit: serverRuns, serverUnit + ".env": "K3S_TOKEN=" + tokenPassword + "\nK3S_URL=https://10.0.0.1:6443\n", k3sSocket: "", plainSocket: ""})
	wantAll(t, out, `"containerd.address","value":"`+k3sSocket+`","source":"default (auto: k3s server, by `+serverUnit+`)"`,
		`"containerd.snapshotter","value":"auto","source":"default (auto: the one that CRI uses, which does not answer now)"`,
		`"gossip.join","value":["10.0.0.1"],"source":"default (the servers in `+serverUnit+`.env)"`,
		`"secret_file","value":"","source":"default (the token in `+serverUnit+`.env)"`,
		`"containerd.namespace","value":"k8s.io","source":"default"`)
	if strings.Contains(out, tokenPassword) {
		t.Errorf("the token is told: %s", out)
	}
	wantAll(t, show(map[string]string{serverUnit: serverRuns + " --docker\n"}), `"source":"default (auto: none now: no containerd to bring images to: k3s of this host runs its pods in Docker`,
		"none that can be used: no secret: k3s of this host is a server")
	wantAll(t, show(nil, "--containerd-address", "/x.sock", "--containerd-snapshotter", "native"),
		`"containerd.address","value":"/x.sock","source":"flag --containerd-address"`, `"value":"native","source":"flag --containerd-snapshotter"`)
	wantAll(t, show(nil, "--containerd-address", "embedded"), "an embedded store has none")
}

// TestSecretThatChanges: a secret that becomes another one on disk, as when a k3s token
// is rotated, is said once and shown until it is in force or back.
func TestSecretThatChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		token := func(password string) found {
			secret, err := trust.SecretOfToken([]byte(password))
			if err != nil {
				t.Fatal(err)
			}
			return found{secrets: trust.Secrets{secret}, source: "the token in /etc/k3s.env"}
		}
		var now atomic.Pointer[found]
		put := func(f found) { now.Store(&f) }
		held := token(tokenPassword)
		put(held)
		last, err := configtest.Load(t, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		r := &reloader{
			load: func() (config.Loaded, error) { return last, nil }, node: &secretsNode{}, level: &slog.LevelVar{},
			log: slog.New(slog.NewTextHandler(&log, nil)), last: last, held: held,
			secrets: func(config.Config) (found, error) {
				if f := now.Load(); f.source != "" {
					return *f, nil
				}
				return found{}, fmt.Errorf("read it: %w", io.ErrUnexpectedEOF)
			},
		}
		go r.watchSecret(t.Context())
		expect := func(what string, changed bool, lines int) {
			t.Helper()
			time.Sleep(3 * secretInterval)
			synctest.Wait()
			if r.SecretChanged() != changed || strings.Count(log.String(), "level=WARN") != lines {
				t.Errorf("%s: changed %v, log:\n%s", what, r.SecretChanged(), log.String())
			}
		}
		expect("as it was", false, 0)
		put(token(otherPassword))
		expect("rotated", true, 1)
		put(held)
		expect("back", false, 1)
		put(found{})
		expect("unreadable", true, 2)
		put(found{alone: true, source: "none"})
		expect("gone", true, 3)
		put(token(otherPassword))
		expect("rotated again", true, 4)
		if _, err := r.Reload(); err != nil {
			t.Fatal(err)
		}
		expect("reloaded", false, 4)
		wantAll(t, log.String(), "the token in /etc/k3s.env has another one now", "seeder reload")
		if strings.Contains(log.String(), otherPassword) || strings.Contains(log.String(), tokenPassword) {
			t.Error("the log tells the token")
		}
	})
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
