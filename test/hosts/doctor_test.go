package hosts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/trust"
	"seeder/test/harness"
)

// checkup is `seeder doctor -o json`.
type checkup struct {
	OK     bool
	Checks []struct{ Name, State, Subject, Detail, Fix string }
}

// doctor runs it on the host with an environment; the exit code has to say what the
// report says.
func doctor(h *harness.Host, env ...string) checkup {
	h.T.Helper()
	program := h.Net.Program // as the daemon's: it says where the versions differ
	if program == "" {
		program = harness.SeederBin(h.T)
	}
	cmd := h.In(h.T.Context(), append(append([]string{"env", "HOME=/nowhere", "KUBECONFIG="}, env...), program, "doctor", "-o", "json")...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	var out checkup
	if jerr := json.Unmarshal(stdout.Bytes(), &out); jerr != nil {
		h.T.Fatalf("doctor on %s: %v, %v: %s%s", h.Name, err, jerr, stdout.String(), stderr.String())
	}
	if took := time.Since(began); took > 25*time.Second { // 15 on a machine that is not busy
		h.T.Errorf("doctor on %s took %s", h.Name, took)
	}
	if want := map[bool]int{true: 0, false: 1}[out.OK]; harness.ExitCode(err) != want {
		h.T.Errorf("doctor on %s: exit code %d, ok %v: %s", h.Name, harness.ExitCode(err), out.OK, stderr.String())
	}
	return out
}

// wrong lists what is not as it should be, as "problem name subject".
func (c checkup) wrong() []string {
	var out []string
	for _, f := range c.Checks {
		if f.State == "problem" || f.State == "warning" {
			out = append(out, f.State+" "+f.Name+" "+f.Subject)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (c checkup) String() string {
	var b strings.Builder
	for _, f := range c.Checks {
		fmt.Fprintf(&b, "  %s %s %s: %s; fix: %s\n", f.State, f.Name, f.Subject, f.Detail, f.Fix)
	}
	return b.String()
}

// finds waits until doctor on the host finds that and nothing else wrong; a node has
// to notice some of it first.
func finds(h *harness.Host, env []string, want ...string) (c checkup) {
	h.T.Helper()
	slices.Sort(want)
	harness.Eventually(h.T, 60*time.Second, fmt.Sprintf("doctor on %s finds %q", h.Name, want), func() error {
		if c = doctor(h, env...); !slices.Equal(c.wrong(), want) {
			return fmt.Errorf("%q\n%s", c.wrong(), c)
		}
		return nil
	})
	return c
}

// says fails where no finding has all of the texts.
func (c checkup) says(t *testing.T, name string, texts ...string) {
	t.Helper()
	for _, f := range c.Checks {
		all := f.Name == name
		for _, text := range texts {
			all = all && strings.Contains(f.Detail+" "+f.Fix, text)
		}
		if all {
			return
		}
	}
	t.Errorf("nothing of %s says %q:\n%s", name, texts, c)
}

// refuse drops what a rule of nftables matches on its way into the host, until the
// returned function is called.
func refuse(h *harness.Host, rules ...string) (end func()) {
	h.T.Helper()
	h.Write("/etc/doctor.nft", "table inet doctor {\n  chain in {\n    type filter hook input priority 0;\n    "+strings.Join(rules, "\n    ")+"\n  }\n}\n", 0o644)
	h.Sh("nft -f /etc/doctor.nft")
	return func() { h.Sh("nft delete table inet doctor") }
}

// TestDoctorNetwork: each way between two members that is closed is found from both
// ends of it, with the direction; so are packets that are too large, a clock that is
// off, and a host that is gone.
func TestDoctorNetwork(t *testing.T) {
	t.Parallel() // it waits most of the time
	n := harness.NewNetwork(t, "")
	n.Program = jumpProgram(t)
	for range 3 {
		n.AddHost(harness.Newest).StartSeeder(harness.StoreNode)
	}
	a, b, c := n.Hosts[0], n.Hosts[1], n.Hosts[2]
	a.AwaitMembers(3)
	finds(a, nil)
	finds(b, nil)

	end := refuse(b, "ip saddr "+a.Address+" tcp dport 7951 drop")
	out := finds(a, nil, "problem transfer h1 -> h2")
	out.says(t, "transfer", b.Address+":7951/tcp cannot be reached: no answer", "on h2 allow 7951/tcp from "+a.Address, "ufw allow proto tcp from "+a.Address)
	out.says(t, "transfer", "cannot be asked")
	finds(b, nil, "problem transfer h1 -> h2")
	end()

	end = refuse(b, "ip saddr "+a.Address+" udp dport 7950 drop")
	out = finds(a, nil, "problem gossip-udp h1 -> h2")
	out.says(t, "gossip-udp", b.Address+":7950/udp cannot be reached: no packet arrives", "on h2 allow 7950/udp")
	finds(b, nil, "problem gossip-udp h1 -> h2")
	finds(c, nil)
	end()

	end = refuse(b, "ip saddr "+a.Address+" meta length > 1300 drop")
	out = finds(a, nil, "problem mtu h1 -> h2")
	out.says(t, "mtu", "full ones of connections do not", "ping -M do -s 1372 "+b.Address)
	out.says(t, "mtu", "full ones of gossip's packets do not")
	finds(b, nil, "problem mtu h1 -> h2")
	end()

	jump(b, time.Hour)
	finds(a, nil, "problem clock h2").says(t, "clock", "ahead of most hosts'", "timedatectl set-ntp true")
	finds(b, nil, "problem clock h2")
	jump(b, 0)
	finds(a, nil)

	c.Unplug()
	finds(a, nil, "problem members h3").says(t, "members", "nothing answers at "+c.Address+":7950", "systemctl status seeder")
	c.Replug()
	finds(a, nil)
}

// TestDoctorSecrets: a host with another secret is found from both sides, and a token
// that has been rotated on the host itself.
func TestDoctorSecrets(t *testing.T) {
	t.Parallel() // it waits most of the time
	n := harness.NewNetwork(t, "")
	a, b, c := n.AddHost(harness.Newest), n.AddHost(harness.Newest), n.AddHost(harness.Newest)
	a.StartSeeder(harness.StoreNode)
	b.Write("/etc/seeder/secret", trust.GenerateSecret()+"\n", 0o600)
	b.StartSeederRaw(harness.StoreNode)
	join := []string{"SEEDER_GOSSIP_JOIN=" + a.Address, harness.StoreNode}
	finds(b, join, "problem secret "+a.Address+":7951 (from gossip.join)", "warning members ").says(t, "secret", "its secret differs", "seeder reload")
	finds(a, nil, "problem secret "+b.Address).says(t, "secret", "tried to connect", "another secret")
	b.Seeder.Stop(t, syscall.SIGTERM)
	out := doctor(b, join...)
	out.says(t, "daemon", "not running", "systemctl enable --now seeder")
	out.says(t, "secret", "its secret differs") // told without a daemon

	c.Sh("mkdir -p /var/lib/rancher/k3s/server")
	token := func(password string) {
		c.Write("/var/lib/rancher/k3s/server/token", "K10"+strings.Repeat("ab", 32)+"::server:"+password+"\n", 0o600)
	}
	token("9f86d081884c7d659a2feaa0c55ad015") // the kind that k3s makes
	c.StartSeederRaw(harness.StoreNode, "SEEDER_GOSSIP_JOIN=")
	harness.Eventually(t, 20*time.Second, "the daemon answers", func() error { return c.Try(nil, "status") })
	finds(c, nil)
	token("2c26b46b68ffc68ff99b453c1d304134")
	finds(c, nil, "problem secret the token in /var/lib/rancher/k3s/server/token").says(t, "secret", "still uses the previous secret", "as K3S_TOKEN on each agent", "seeder reload")
	c.Run("reload")
	finds(c, nil)
}

// TestDoctorPorts: another process on a port keeps the daemon from starting, and is
// named.
func TestDoctorPorts(t *testing.T) {
	t.Parallel() // it waits most of the time
	n := harness.NewNetwork(t, "")
	h := n.AddHost(harness.Newest)
	h.Write("/etc/seeder/secret", harness.Secret+"\n", 0o600)
	h.Start(nil, "busybox", "nc", "-l", "-p", "7951")
	harness.Eventually(t, 20*time.Second, "the port is taken", func() error {
		if out := h.Sh("ss -Hltn 'sport = :7951'"); strings.TrimSpace(out) == "" {
			return fmt.Errorf("nobody listens")
		}
		return nil
	})
	h.StartSeederRaw(harness.StoreNode)
	select {
	case <-h.Seeder.Done:
	case <-time.After(30 * time.Second):
		t.Fatal("the daemon has started")
	}
	out := finds(h, []string{harness.StoreNode}, "problem daemon /run/seeder/seeder.sock", "problem ports transfer.bind 0.0.0.0:7951/tcp")
	out.says(t, "ports", "another process has the port: busybox (pid", "set transfer.bind to a free port")
	out.says(t, "daemon", "not running: transfer.bind 0.0.0.0:7951/tcp: another process", "systemctl restart seeder")
}

// TestDoctorContainerd: a socket that is not the kubelet's, images in another
// namespace, a CRI that is off, and layers that are gone, on each version.
func TestDoctorContainerd(t *testing.T) {
	t.Parallel()
	for version := range harness.Containerds {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			n := harness.NewNetwork(t, "")
			h := n.AddHost(version)
			h.StartContainerd()
			h.StartSeeder()
			finds(h, nil)
			stray := harness.NewImage(t, harness.ImageSpec{Ref: "docker.io/library/stray:1", Says: "stray"})
			h.Sh(h.Bin + "/ctr -a " + harness.Socket + " -n default images import " + stray.DockerArchive(t, n.Dir))
			finds(h, nil, "problem namespace default").says(t, "namespace", "1 image in it and not in k8s.io, which the kubelet uses: docker.io/library/stray:1",
				"k3s ctr -n default images export - docker.io/library/stray:1 | k3s ctr -n k8s.io images import -")
			img := harness.NewImage(t, harness.ImageSpec{Ref: harness.ShortName, Says: "hello"})
			layer := digest.FromBytes(img.Layers[0]).String()
			h.Ctr("images", "import", img.DockerArchive(t, n.Dir))
			finds(h, nil, "warning namespace default")
			h.Sh(h.Bin + "/ctr -a " + harness.Socket + " -n default images rm docker.io/library/stray:1")
			finds(h, nil)

			h.Ctr("content", "rm", layer)
			finds(h, nil, "problem layers "+harness.FullName).says(t, "layers", "layer "+layer+" is missing from the content store", "seeder announce k3s-dashboard:latest")
			h.Ctr("images", "rm", harness.FullName)
			h.Ctr("images", "import", img.DockerArchive(t, n.Dir))
			finds(h, nil)

			h.Seeder.Stop(t, syscall.SIGTERM)
			wrongSocket(t, h)
			noCRI(t, h)
		})
	}
}

// wrongSocket starts a second containerd where Docker's is, with discard_unpacked_layers,
// and points seeder at it.
func wrongSocket(t *testing.T, h *harness.Host) {
	t.Helper()
	config := `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri".containerd]
  discard_unpacked_layers = true
`
	if strings.HasPrefix(h.Version, "2.") { // the option has moved
		config = strings.NewReplacer("version = 2", "version = 3", `"io.containerd.grpc.v1.cri".containerd`, `"io.containerd.cri.v1.images"`).Replace(config)
	}
	h.Write("/etc/second.toml", config, 0o644)
	second := h.Start(nil, h.Bin+"/containerd", "-c", "/etc/second.toml")
	address := "SEEDER_CONTAINERD_ADDRESS=/run/containerd/containerd.sock"
	found := []string{"problem daemon /run/seeder/seeder.sock", "problem containerd /run/containerd/containerd.sock"}
	tells := strings.HasPrefix(h.Version, "1.") // 2.0 to 2.3 say nothing of the option, 2.4 does again
	if tells {
		found = append(found, "warning layers discard_unpacked_layers")
	}
	out := finds(h, []string{address}, found...)
	out.says(t, "containerd", "wrong socket: this one answers, but the kubelet of k3s asks that at "+harness.Socket, "remove containerd.address")
	if tells {
		out.says(t, "layers", "set discard_unpacked_layers = false")
	}
	second.Stop(t, syscall.SIGTERM)
	finds(h, []string{address}, "problem daemon /run/seeder/seeder.sock", "problem containerd /run/containerd/containerd.sock").
		says(t, "containerd", "wrong socket: ", "there is one at "+harness.Socket)
	finds(h, []string{"SEEDER_CONTAINERD_ADDRESS=/run/none.sock"}, "problem daemon /run/seeder/seeder.sock", "problem containerd /run/none.sock").
		says(t, "containerd", "the socket does not exist")
	finds(h, []string{"SEEDER_CONTAINERD_NAMESPACE=other"}, "problem daemon /run/seeder/seeder.sock", "problem namespace other").
		says(t, "namespace", "wrong namespace: containerd.namespace is other (0 images), the kubelet's images are in k8s.io (1 images)")
}

// noCRI starts containerd as Docker's packages configure it.
func noCRI(t *testing.T, h *harness.Host) {
	t.Helper()
	h.Containerd.Stop(t, syscall.SIGTERM)
	finds(h, nil, "problem daemon /run/seeder/seeder.sock", "problem containerd auto").says(t, "containerd", "no socket at", "systemctl start k3s")
	h.Write("/etc/docker-like.toml", fmt.Sprintf("disabled_plugins = [\"cri\"]\nroot = \"/var/lib/rancher/k3s/agent/containerd\"\nstate = \"/run/k3s/containerd\"\n[grpc]\n  address = %q\n", harness.Socket), 0o644)
	h.Containerd = h.Start(nil, h.Bin+"/containerd", "-c", "/etc/docker-like.toml")
	finds(h, nil, "problem daemon /run/seeder/seeder.sock", "problem cri "+harness.Socket).says(t, "cri", "CRI is off", `disabled_plugins = ["cri"]`)
}
