package test

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
)

// checkup is `seeder doctor -o json`.
type checkup struct {
	OK     bool
	Checks []struct{ Name, State, Subject, Detail, Fix string }
}

// doctor runs it on the host with an environment; the exit code has to say what the
// report says.
func (h *host) doctor(env ...string) checkup {
	h.t.Helper()
	program := h.net.program // as the daemon's: it says where the versions differ
	if program == "" {
		program = seederBin(h.t)
	}
	cmd := h.in(h.t.Context(), append(append([]string{"env", "HOME=/nowhere", "KUBECONFIG="}, env...), program, "doctor", "-o", "json")...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	var out checkup
	if jerr := json.Unmarshal(stdout.Bytes(), &out); jerr != nil {
		h.t.Fatalf("doctor on %s: %v, %v: %s%s", h.name, err, jerr, stdout.String(), stderr.String())
	}
	if took := time.Since(began); took > 25*time.Second { // 15 on a machine that is not busy
		h.t.Errorf("doctor on %s took %s", h.name, took)
	}
	if want := map[bool]int{true: 0, false: 1}[out.OK]; exitCode(err) != want {
		h.t.Errorf("doctor on %s: exit code %d, ok %v: %s", h.name, exitCode(err), out.OK, stderr.String())
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
func (h *host) finds(env []string, want ...string) (c checkup) {
	h.t.Helper()
	slices.Sort(want)
	eventually(h.t, 60*time.Second, fmt.Sprintf("doctor on %s finds %q", h.name, want), func() error {
		if c = h.doctor(env...); !slices.Equal(c.wrong(), want) {
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
func (h *host) refuse(rules ...string) (end func()) {
	h.t.Helper()
	h.write("/etc/doctor.nft", "table inet doctor {\n  chain in {\n    type filter hook input priority 0;\n    "+strings.Join(rules, "\n    ")+"\n  }\n}\n", 0o644)
	h.sh("nft -f /etc/doctor.nft")
	return func() { h.sh("nft delete table inet doctor") }
}

// storeNode is the environment of a node without containerd.
const storeNode = "SEEDER_CONTAINERD_ADDRESS=embedded"

// TestDoctorNetwork: each way between two members that is closed is found from both
// ends of it, with the direction; so are packets that are too large, a clock that is
// off, and a host that is gone.
func TestDoctorNetwork(t *testing.T) {
	t.Parallel() // it waits most of the time
	n := newNetwork(t, "")
	n.program = jumpProgram(t)
	for range 3 {
		n.addHost(newest).startSeeder(storeNode)
	}
	a, b, c := n.hosts[0], n.hosts[1], n.hosts[2]
	a.awaitMembers(3)
	a.finds(nil)
	b.finds(nil)

	end := b.refuse("ip saddr " + a.address + " tcp dport 7951 drop")
	out := a.finds(nil, "problem transfer h1 -> h2")
	out.says(t, "transfer", b.address+":7951/tcp cannot be reached: no answer", "on h2 allow 7951/tcp from "+a.address, "ufw allow proto tcp from "+a.address)
	out.says(t, "transfer", "cannot be asked")
	b.finds(nil, "problem transfer h1 -> h2")
	end()

	end = b.refuse("ip saddr " + a.address + " udp dport 7950 drop")
	out = a.finds(nil, "problem gossip-udp h1 -> h2")
	out.says(t, "gossip-udp", b.address+":7950/udp cannot be reached: no packet arrives", "on h2 allow 7950/udp")
	b.finds(nil, "problem gossip-udp h1 -> h2")
	c.finds(nil)
	end()

	end = b.refuse("ip saddr " + a.address + " meta length > 1300 drop")
	out = a.finds(nil, "problem mtu h1 -> h2")
	out.says(t, "mtu", "full ones of connections do not", "ping -M do -s 1372 "+b.address)
	out.says(t, "mtu", "full ones of gossip's packets do not")
	b.finds(nil, "problem mtu h1 -> h2")
	end()

	b.jump(time.Hour)
	a.finds(nil, "problem clock h2").says(t, "clock", "ahead of most hosts'", "timedatectl set-ntp true")
	b.finds(nil, "problem clock h2")
	b.jump(0)
	a.finds(nil)

	c.pull()
	a.finds(nil, "problem members h3").says(t, "members", "nothing answers at "+c.address+":7950", "systemctl status seeder")
	c.push()
	a.finds(nil)
}

// TestDoctorSecrets: a host with another secret is found from both sides, and a token
// that has been rotated on the host itself.
func TestDoctorSecrets(t *testing.T) {
	t.Parallel() // it waits most of the time
	n := newNetwork(t, "")
	a, b, c := n.addHost(newest), n.addHost(newest), n.addHost(newest)
	a.startSeeder(storeNode)
	b.write("/etc/seeder/secret", trust.GenerateSecret()+"\n", 0o600)
	b.startSeederRaw(storeNode)
	join := []string{"SEEDER_GOSSIP_JOIN=" + a.address, storeNode}
	b.finds(join, "problem secret "+a.address+":7951 (from gossip.join)", "warning members ").says(t, "secret", "its secret differs", "seeder reload")
	a.finds(nil, "problem secret "+b.address).says(t, "secret", "tried to connect", "another secret")
	b.seeder.stop(t, syscall.SIGTERM)
	out := b.doctor(join...)
	out.says(t, "daemon", "not running", "systemctl enable --now seeder")
	out.says(t, "secret", "its secret differs") // told without a daemon

	c.sh("mkdir -p /var/lib/rancher/k3s/server")
	token := func(password string) {
		c.write("/var/lib/rancher/k3s/server/token", "K10"+strings.Repeat("ab", 32)+"::server:"+password+"\n", 0o600)
	}
	token("9f86d081884c7d659a2feaa0c55ad015") // the kind that k3s makes
	c.startSeederRaw(storeNode, "SEEDER_GOSSIP_JOIN=")
	eventually(t, 20*time.Second, "the daemon answers", func() error { return c.try(nil, "status") })
	c.finds(nil)
	token("2c26b46b68ffc68ff99b453c1d304134")
	c.finds(nil, "problem secret the token in /var/lib/rancher/k3s/server/token").says(t, "secret", "still uses the previous secret", "K3S_TOKEN has to follow", "seeder reload")
	c.run("reload")
	c.finds(nil)
}

// TestDoctorPorts: another process on a port keeps the daemon from starting, and is
// named.
func TestDoctorPorts(t *testing.T) {
	t.Parallel() // it waits most of the time
	n := newNetwork(t, "")
	h := n.addHost(newest)
	h.write("/etc/seeder/secret", secret+"\n", 0o600)
	h.start(nil, "busybox", "nc", "-l", "-p", "7951")
	eventually(t, 20*time.Second, "the port is taken", func() error {
		if out := h.sh("ss -Hltn 'sport = :7951'"); strings.TrimSpace(out) == "" {
			return fmt.Errorf("nobody listens")
		}
		return nil
	})
	h.startSeederRaw(storeNode)
	select {
	case <-h.seeder.done:
	case <-time.After(30 * time.Second):
		t.Fatal("the daemon has started")
	}
	out := h.finds([]string{storeNode}, "problem daemon /run/seeder/seeder.sock", "problem ports transfer.bind 0.0.0.0:7951/tcp")
	out.says(t, "ports", "another process has the port: busybox (pid", "set transfer.bind to a free port")
	out.says(t, "daemon", "not running: transfer.bind 0.0.0.0:7951/tcp: another process", "systemctl restart seeder")
}

// TestDoctorContainerd: a socket that is not the kubelet's, images in another
// namespace, a CRI that is off, and layers that are gone, on each version.
func TestDoctorContainerd(t *testing.T) {
	t.Parallel()
	for version := range containerds {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t, "")
			h := n.addHost(version)
			h.startContainerd()
			h.startSeeder()
			h.finds(nil)
			stray := newImage(t, imageSpec{ref: "docker.io/library/stray:1", says: "stray"})
			h.sh(h.bin + "/ctr -a " + sockPath + " -n default images import " + stray.dockerArchive(t, n.dir))
			h.finds(nil, "problem namespace default").says(t, "namespace", "1 image in it and not in k8s.io, which the kubelet uses: docker.io/library/stray:1",
				"k3s ctr -n default images export - docker.io/library/stray:1 | k3s ctr -n k8s.io images import -")
			img := newImage(t, imageSpec{ref: short, says: "hello"})
			layer := digest.FromBytes(img.layers[0]).String()
			h.ctr("images", "import", img.dockerArchive(t, n.dir))
			h.finds(nil, "warning namespace default")
			h.sh(h.bin + "/ctr -a " + sockPath + " -n default images rm docker.io/library/stray:1")
			h.finds(nil)

			h.ctr("content", "rm", layer)
			h.finds(nil, "problem layers "+full).says(t, "layers", "layer "+layer+" is missing from the content store", "seeder announce k3s-dashboard:latest")
			h.ctr("images", "rm", full)
			h.ctr("images", "import", img.dockerArchive(t, n.dir))
			h.finds(nil)

			h.seeder.stop(t, syscall.SIGTERM)
			wrongSocket(t, h)
			noCRI(t, h)
		})
	}
}

// wrongSocket starts a second containerd where Docker's is, with discard_unpacked_layers,
// and points seeder at it.
func wrongSocket(t *testing.T, h *host) {
	t.Helper()
	config := `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri".containerd]
  discard_unpacked_layers = true
`
	if strings.HasPrefix(h.version, "2.") { // the option has moved
		config = strings.NewReplacer("version = 2", "version = 3", `"io.containerd.grpc.v1.cri".containerd`, `"io.containerd.cri.v1.images"`).Replace(config)
	}
	h.write("/etc/second.toml", config, 0o644)
	second := h.start(nil, h.bin+"/containerd", "-c", "/etc/second.toml")
	address := "SEEDER_CONTAINERD_ADDRESS=/run/containerd/containerd.sock"
	found := []string{"problem daemon /run/seeder/seeder.sock", "problem containerd /run/containerd/containerd.sock"}
	tells := strings.HasPrefix(h.version, "1.") // 2.0 to 2.3 say nothing of the option, 2.4 does again
	if tells {
		found = append(found, "warning layers discard_unpacked_layers")
	}
	out := h.finds([]string{address}, found...)
	out.says(t, "containerd", "wrong socket: this one answers, but the kubelet of k3s asks that at "+sockPath, "remove containerd.address")
	if tells {
		out.says(t, "layers", "set discard_unpacked_layers = false")
	}
	second.stop(t, syscall.SIGTERM)
	h.finds([]string{address}, "problem daemon /run/seeder/seeder.sock", "problem containerd /run/containerd/containerd.sock").
		says(t, "containerd", "wrong socket: ", "there is one at "+sockPath)
	h.finds([]string{"SEEDER_CONTAINERD_ADDRESS=/run/none.sock"}, "problem daemon /run/seeder/seeder.sock", "problem containerd /run/none.sock").
		says(t, "containerd", "the socket does not exist")
	h.finds([]string{"SEEDER_CONTAINERD_NAMESPACE=other"}, "problem daemon /run/seeder/seeder.sock", "problem namespace other").
		says(t, "namespace", "wrong namespace: containerd.namespace is other (0 images), the kubelet's images are in k8s.io (1 images)")
}

// noCRI starts containerd as Docker's packages configure it.
func noCRI(t *testing.T, h *host) {
	t.Helper()
	h.containerd.stop(t, syscall.SIGTERM)
	h.finds(nil, "problem daemon /run/seeder/seeder.sock", "problem containerd auto").says(t, "containerd", "there is no socket at", "systemctl start k3s")
	h.write("/etc/docker-like.toml", fmt.Sprintf("disabled_plugins = [\"cri\"]\nroot = \"/var/lib/rancher/k3s/agent/containerd\"\nstate = \"/run/k3s/containerd\"\n[grpc]\n  address = %q\n", sockPath), 0o644)
	h.containerd = h.start(nil, h.bin+"/containerd", "-c", "/etc/docker-like.toml")
	h.finds(nil, "problem daemon /run/seeder/seeder.sock", "problem cri "+sockPath).says(t, "cri", "CRI is off", `disabled_plugins = ["cri"]`)
}
