package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// network is a switch with hosts on it.
type network struct {
	t        *testing.T
	name     string
	dir      string
	rate     string // of each link in both directions, e.g. 200mbit; "" for unshaped
	program  string // the seeder that the daemons are; "" for bin/seeder
	lock     *os.File
	spaces   []*space
	switched *space
	hosts    []*host
}

// newNetwork makes a switch; everything ends with the test.
func newNetwork(t *testing.T, rate string) *network {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", networkPrefix())
	if err != nil {
		t.Fatal(err)
	}
	n := &network{t: t, name: filepath.Base(dir), dir: dir, rate: rate}
	t.Cleanup(n.close)
	if n.lock, err = lockNetwork(dir); err != nil {
		t.Fatal(err)
	}
	n.switched = n.newSpace("switch", fmt.Sprintf(`
mount --bind %s /mnt
ip link set lo up
ip link add br0 type bridge
ip link set br0 up`, dir))
	return n
}

// close ends everything on the network, having printed what helps to understand
// a failure.
func (n *network) close() {
	if n.t.Failed() {
		for _, h := range n.hosts {
			h.dump()
		}
	}
	for _, s := range n.spaces {
		s.end()
	}
	for _, h := range n.hosts { // their output is read to the end
		for _, d := range []*daemon{h.seeder, h.containerd} {
			if d != nil {
				<-d.done
			}
		}
	}
	if n.lock != nil {
		n.lock.Close()
	}
	if err := remove(n.name); err != nil {
		n.t.Error(err)
	}
}

// addHost plugs a host with a version of containerd into the switch.
func (n *network) addHost(version string) *host {
	n.t.Helper()
	i := len(n.hosts) + 1
	h := &host{t: n.t, net: n, name: fmt.Sprintf("h%d", i), address: fmt.Sprintf("10.77.0.%d", i)}
	h.dir = filepath.Join(n.dir, h.name)
	h.use(version)
	for _, d := range []string{"etc", "etc.work", "run", "lib/tmp"} {
		if err := os.MkdirAll(filepath.Join(h.dir, d), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	h.space = n.newSpace(h.name, fmt.Sprintf(`
mount -t overlay overlay -o lowerdir=/etc,upperdir=%[1]s/etc,workdir=%[1]s/etc.work /etc
mount --bind %[1]s/lib /var/lib
mount --bind %[1]s/run /run
%[3]s
hostname %[2]s
ip link set lo up
mkdir -p /etc/seeder /var/lib/rancher/k3s/agent/containerd /run/k3s/containerd`, h.dir, h.name, n.cgroups(h.name)))
	n.plug(h, i)
	n.hosts = append(n.hosts, h)
	return h
}

// use lets the host run a version of containerd from its next start on.
func (h *host) use(version string) {
	h.t.Helper()
	bin, err := filepath.Abs(containerds[version])
	if err != nil {
		h.t.Fatal(err)
	}
	if h.version, err = askVersion(h.t.Context(), filepath.Join(bin, "containerd")); err != nil {
		h.t.Fatalf("containerd %s: %v; `make containerds` builds it", version, err)
	}
	if !strings.HasPrefix(h.version, version+".") {
		h.t.Fatalf("%s has containerd %s, want %s; `make containerds` builds it", bin, h.version, version)
	}
	h.bin = bin
}

// cgroups makes an own group for a host in each hierarchy and returns the
// commands that put it in place of the machine's.
func (n *network) cgroups(host string) string {
	n.t.Helper()
	var script strings.Builder
	for _, m := range cgroupMounts() {
		group := filepath.Join(m, n.name+"_"+host)
		if err := os.Mkdir(group, 0o755); err != nil {
			n.t.Fatal(err)
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // empty in a new group of cgroup v1
			if v, err := os.ReadFile(filepath.Join(m, f)); err == nil {
				if err := os.WriteFile(filepath.Join(group, f), v, 0o644); err != nil {
					n.t.Fatal(err)
				}
			}
		}
		fmt.Fprintf(&script, "mount --bind %s %s\n", group, m)
	}
	return script.String()
}

// plug connects a host by a veth pair, shaped at both ends.
func (n *network) plug(h *host, i int) {
	n.t.Helper()
	ctx := n.t.Context()
	h.port = fmt.Sprintf("p%d", i)
	run(n.t, exec.CommandContext(ctx, "ip", "link", "add", h.port, "netns", strconv.Itoa(n.switched.pid),
		"type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(h.pid)))
	run(n.t, n.switched.in(ctx, "ip", "link", "set", h.port, "master", "br0", "up"))
	run(n.t, h.in(ctx, "ip", "addr", "add", h.address+"/24", "dev", "eth0"))
	run(n.t, h.in(ctx, "ip", "link", "set", "eth0", "up"))
	if n.rate != "" {
		shape := []string{"root", "tbf", "rate", n.rate, "burst", "256kb", "latency", "50ms"}
		run(n.t, n.switched.in(ctx, append([]string{"tc", "qdisc", "add", "dev", h.port}, shape...)...))
		run(n.t, h.in(ctx, append([]string{"tc", "qdisc", "add", "dev", "eth0"}, shape...)...))
	}
}

// pull pulls the host's cable at the switch; push puts it back.
func (h *host) pull() {
	h.t.Helper()
	run(h.t, h.net.switched.in(h.t.Context(), "ip", "link", "set", h.port, "down"))
}

func (h *host) push() {
	h.t.Helper()
	run(h.t, h.net.switched.in(h.t.Context(), "ip", "link", "set", h.port, "up"))
}
