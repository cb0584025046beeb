package harness

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Network is a switch with hosts on it.
type Network struct {
	T        *testing.T
	name     string
	Dir      string
	rate     string // of each link in both directions, e.g. 200mbit; "" for unshaped
	Program  string // the seeder that the daemons are; "" for bin/seeder
	lock     io.Closer
	spaces   []*Space
	Switched *Space
	Hosts    []*Host
}

// NewNetwork makes a switch; everything ends with the test.
func NewNetwork(t *testing.T, rate string) *Network {
	t.Helper()
	NeedRoot(t)
	name := networkPrefix() + strconv.FormatUint(uint64(rand.Uint32()), 10)
	// Before anything has the name: whatever has one that is not locked is removed.
	lock, err := lockNetwork(name)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(os.TempDir(), name)
	n := &Network{T: t, name: name, Dir: dir, rate: rate, lock: lock}
	t.Cleanup(n.close)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	n.Switched = n.newSpace("switch", fmt.Sprintf(`
mount --bind %s /mnt
ip link set lo up
ip link add br0 type bridge
ip link set br0 up`, dir))
	return n
}

// close ends everything on the network, having printed what helps to understand
// a failure.
func (n *Network) close() {
	if n.T.Failed() {
		for _, h := range n.Hosts {
			h.dump()
		}
	}
	var daemons []*Daemon
	for _, h := range n.Hosts {
		for _, d := range []*Daemon{h.Seeder, h.Containerd} {
			if d != nil {
				daemons = append(daemons, d)
			}
		}
	}
	for _, d := range daemons {
		select {
		case <-d.Done: // its pid may be somebody else's
		default:
			d.Thaw() // nsenter, which is stopped with a frozen daemon, does not end with it
		}
	}
	for _, s := range n.spaces {
		s.end()
	}
	for _, d := range daemons { // their output is read to the end
		<-d.Done
	}
	if err := remove(n.name); err != nil {
		n.T.Error(err)
	}
	n.lock.Close()
}

// AddHost plugs a host with a version of containerd into the switch.
func (n *Network) AddHost(version string) *Host {
	n.T.Helper()
	i := len(n.Hosts) + 1
	h := &Host{T: n.T, Net: n, Name: fmt.Sprintf("h%d", i), Address: fmt.Sprintf("10.77.0.%d", i)}
	h.Dir = filepath.Join(n.Dir, h.Name)
	h.Use(version)
	for _, d := range []string{"etc", "etc.work", "run", "lib/tmp"} {
		if err := os.MkdirAll(filepath.Join(h.Dir, d), 0o755); err != nil {
			n.T.Fatal(err)
		}
	}
	h.Space = n.newSpace(h.Name, fmt.Sprintf(`
mount -t overlay overlay -o lowerdir=/etc,upperdir=%[1]s/etc,workdir=%[1]s/etc.work /etc
mount --bind %[1]s/lib /var/lib
mount --bind %[1]s/run /run
%[3]s
hostname %[2]s
ip link set lo up
mkdir -p /etc/seeder /var/lib/rancher/k3s/agent/containerd /run/k3s/containerd`, h.Dir, h.Name, n.cgroups(h.Name)))
	n.plug(h, i)
	n.Hosts = append(n.Hosts, h)
	return h
}

// Use lets the host run a version of containerd from its next start on.
func (h *Host) Use(version string) {
	h.T.Helper()
	bin, err := filepath.Abs(Containerds[version])
	if err != nil {
		h.T.Fatal(err)
	}
	if h.Version, err = askVersion(h.T.Context(), filepath.Join(bin, "containerd")); err != nil {
		h.T.Fatalf("containerd %s: %v; `make containerds` builds it", version, err)
	}
	if !strings.HasPrefix(h.Version, version+".") {
		h.T.Fatalf("%s has containerd %s, want %s; `make containerds` builds it", bin, h.Version, version)
	}
	h.Bin = bin
}

// cgroups makes an own group for a host in each hierarchy and returns the
// commands that put it in place of the machine's.
func (n *Network) cgroups(host string) string {
	n.T.Helper()
	var script strings.Builder
	for _, m := range CgroupMounts() {
		group := filepath.Join(m, n.name+"_"+host)
		if err := os.Mkdir(group, 0o755); err != nil {
			n.T.Fatal(err)
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // empty in a new group of cgroup v1
			if v, err := os.ReadFile(filepath.Join(m, f)); err == nil {
				if err := os.WriteFile(filepath.Join(group, f), v, 0o644); err != nil {
					n.T.Fatal(err)
				}
			}
		}
		fmt.Fprintf(&script, "mount --bind %s %s\n", group, m)
	}
	return script.String()
}

// plug connects a host by a veth pair, shaped at both ends.
func (n *Network) plug(h *Host, i int) {
	n.T.Helper()
	ctx := n.T.Context()
	h.Port = fmt.Sprintf("p%d", i)
	Run(n.T, exec.CommandContext(ctx, "ip", "link", "add", h.Port, "netns", strconv.Itoa(n.Switched.PID),
		"type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(h.PID)))
	Run(n.T, n.Switched.In(ctx, "ip", "link", "set", h.Port, "master", "br0", "up"))
	Run(n.T, h.In(ctx, "ip", "addr", "add", h.Address+"/24", "dev", "eth0"))
	Run(n.T, h.In(ctx, "ip", "link", "set", "eth0", "up"))
	if n.rate != "" {
		shape := []string{"root", "tbf", "rate", n.rate, "burst", "256kb", "latency", "50ms"}
		Run(n.T, n.Switched.In(ctx, append([]string{"tc", "qdisc", "add", "dev", h.Port}, shape...)...))
		Run(n.T, h.In(ctx, append([]string{"tc", "qdisc", "add", "dev", "eth0"}, shape...)...))
	}
}

// Unplug pulls the host's cable at the switch.
func (h *Host) Unplug() {
	h.T.Helper()
	Run(h.T, h.Net.Switched.In(h.T.Context(), "ip", "link", "set", h.Port, "down"))
}

// Replug puts the cable back.
func (h *Host) Replug() {
	h.T.Helper()
	Run(h.T, h.Net.Switched.In(h.T.Context(), "ip", "link", "set", h.Port, "up"))
}
