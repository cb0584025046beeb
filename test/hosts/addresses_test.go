package hosts

import (
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// Interfaces of containers, as Docker, the bridge plugin and flannel make them.
const (
	linkDocker  = "ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up\n"
	linkCNI     = "ip link add cni0 type bridge; ip addr add 10.42.0.1/24 dev cni0; ip link set cni0 up\n"
	linkFlannel = "ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0; ip addr add 10.42.0.0/32 dev flannel.1; ip link set flannel.1 up\n"
	linkVPN     = "ip tuntap add tailscale0 mode tun; ip addr add 100.101.102.103/32 dev tailscale0; ip link set tailscale0 up\n"
)

// addCard gives the host a second card, eth1, on the same switch.
func addCard(h *harness.Host) {
	h.T.Helper()
	harness.Run(h.T, exec.CommandContext(h.T.Context(), "ip", "link", "add", h.Port+"b", "netns", strconv.Itoa(h.Net.Switched.PID),
		"type", "veth", "peer", "name", "eth1", "netns", strconv.Itoa(h.PID)))
	harness.Run(h.T, h.Net.Switched.In(h.T.Context(), "ip", "link", "set", h.Port+"b", "master", "br0", "up"))
	harness.Run(h.T, h.In(h.T.Context(), "ip", "link", "set", "eth1", "up"))
}

// renumber replaces the addresses and routes of the host's interfaces. eth1 is a second
// card on the same switch.
func renumber(h *harness.Host, script string) {
	h.T.Helper()
	if strings.Contains(script, "eth1") {
		addCard(h)
	}
	harness.Run(h.T, h.In(h.T.Context(), "sh", "-ec", "ip addr flush dev eth0\n"+script))
}

// toldAddress is the address that others are told of the host.
func toldAddress(h *harness.Host) (string, error) {
	var out report.Members
	if err := h.Try(&out, "members"); err != nil {
		return "", err
	}
	for _, m := range out.Members {
		if m.Name == h.Name {
			addr, _, err := net.SplitHostPort(m.Address)
			return addr, err
		}
	}
	return "", fmt.Errorf("%s is not among %+v", h.Name, out.Members)
}

// sees waits until h sees another host alive at an address.
func sees(h *harness.Host, o *harness.Host, address string, limit time.Duration) {
	h.T.Helper()
	harness.Eventually(h.T, limit, fmt.Sprintf("%s sees %s at %s", h.Name, o.Name, address), func() error {
		var out report.Members
		if err := h.Try(&out, "members"); err != nil {
			return err
		}
		for _, m := range out.Members {
			addr, _, err := net.SplitHostPort(m.Address)
			if err == nil && m.Name == o.Name && addr == address && m.State == "alive" && m.Reason == "" {
				return nil
			}
		}
		return fmt.Errorf("%+v", out.Members)
	})
}

// TestAddresses: on hosts of every kind of network, with nothing configured but a secret
// and no program `ip`, a host tells the others the address at which they reach it, and
// two that have to meet do.
func TestAddresses(t *testing.T) {
	t.Parallel()
	n := harness.NewNetwork(t, "")
	for _, row := range []struct {
		name   string
		script string
		files  map[string]string
		env    []string
		want   string
		meets  int // the row, from 0, of the host to join and to see
	}{
		{name: "LAN, containers, default route via a gateway", want: "10.79.0.11", meets: -1,
			script: linkDocker + linkCNI + "ip addr add 10.79.0.11/24 dev eth0; ip route add default via 10.79.0.1\n"},
		{name: "LAN, containers, default route without a gateway", want: "10.79.0.12", meets: 0,
			script: linkDocker + linkCNI + linkVPN + "ip addr add 10.79.0.12/24 dev eth0; ip route add default dev eth0\n"},
		{name: "LAN, containers, no default route", want: "10.79.0.13", meets: -1,
			script: linkDocker + linkCNI + "ip addr add 10.79.0.13/24 dev eth0\n" + linkFlannel + linkVPN},
		{name: "public address alone", want: "5.161.10.14", meets: -1,
			script: "ip addr add 5.161.10.14/24 dev eth0; ip route add default via 5.161.10.1\n"},
		{name: "public address, containers", want: "5.161.10.15", meets: 3,
			script: linkDocker + linkCNI + "ip addr add 5.161.10.15/24 dev eth0; ip route add default via 5.161.10.1\n"},
		{name: "two cards, k3s on the second", want: "192.168.50.16", meets: -1,
			script: "ip addr add 10.79.0.16/24 dev eth0; ip route add default via 10.79.0.1; ip addr add 192.168.50.16/24 dev eth1\n",
			files:  map[string]string{"/etc/rancher/k3s/config.yaml": "flannel-iface: eth1\n"}},
		{name: "two cards, joined over the second", want: "192.168.50.17", meets: 5,
			script: linkDocker + "ip addr add 10.79.0.17/24 dev eth0; ip route add default via 10.79.0.1; ip addr add 192.168.50.17/24 dev eth1\n"},
		{name: "IPv6 alone, private, bound to [::]", want: "fd00:79::18", meets: -1, env: []string{"SEEDER_GOSSIP_BIND=[::]:7950", "SEEDER_TRANSFER_BIND=[::]:7951"},
			script: linkDocker + "ip addr add fd00:79::18/64 dev eth0 nodad\n"},
		{name: "IPv6 alone, public and private", want: "2a01:4f8::19", meets: 7,
			script: "ip addr add fd00:79::19/64 dev eth0 nodad; ip addr add 2a01:4f8::19/64 dev eth0 nodad; ip -6 route add default via fd00:79::1\n",
			env:    []string{"SEEDER_GOSSIP_ADVERTISE=2a01:4f8::/32"}},
		{name: "both families", want: "10.79.0.20", meets: 0,
			script: linkDocker + "ip addr add 10.79.0.20/24 dev eth0; ip addr add fd00:79::20/64 dev eth0 nodad; ip route add default via 10.79.0.1; ip -6 route add default via fd00:79::1\n"},
		{name: "a VPN that k3s was given", want: "100.101.102.103", meets: -1,
			script: linkVPN + "ip addr add 10.79.0.22/24 dev eth0; ip route add default via 10.79.0.1\n",
			files:  map[string]string{"/etc/rancher/k3s/config.yaml": "flannel-iface: tailscale0\n"}},
	} {
		h := n.AddHost(harness.Newest)
		renumber(h, row.script)
		for path, content := range row.files {
			harness.Run(t, h.In(t.Context(), "mkdir", "-p", path[:strings.LastIndexByte(path, '/')]))
			h.Write(path, content, 0o600)
		}
		join := "SEEDER_GOSSIP_JOIN="
		if row.meets >= 0 {
			joined, err := toldAddress(n.Hosts[row.meets])
			if err != nil {
				t.Fatal(err)
			}
			join += joined
		}
		h.Write("/etc/seeder/secret", harness.Secret+"\n", 0o600)
		h.StartSeederRaw(append([]string{harness.StoreNode, join, "PATH=/nowhere"}, row.env...)...)
		harness.Eventually(t, 20*time.Second, row.name, func() error {
			select {
			case <-h.Seeder.Done:
				t.Fatalf("%s: seeder ended:\n%s", row.name, h.Seeder.Log.Tail(5))
			default:
			}
			got, err := toldAddress(h)
			if err == nil && got != row.want {
				err = fmt.Errorf("it tells the others %s, want %s", got, row.want)
			}
			return err
		})
		if row.meets >= 0 && row.want != "2a01:4f8::19" { // those are on different networks
			sees(n.Hosts[row.meets], h, row.want, 20*time.Second)
			joined, _ := toldAddress(n.Hosts[row.meets])
			sees(h, n.Hosts[row.meets], joined, 20*time.Second)
		}
		if shown := h.Run("config", "show"); !strings.Contains(shown, row.want) && row.env == nil && row.meets < 0 {
			t.Errorf("%s: config show does not say %s:\n%s", row.name, row.want, shown)
		}
	}
}
