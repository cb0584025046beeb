package netaddr

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// nic is an interface that is up and has a cable. An address is a prefix, with flags
// behind it: s secondary, t temporary, d deprecated, n tentative.
func nic(name, kind string, addresses ...string) Interface {
	i := Interface{Name: name, Kind: kind, Up: true, Carrier: true}
	for _, text := range addresses {
		text, flags, _ := strings.Cut(text, " ")
		i.Addresses = append(i.Addresses, Address{
			Prefix: netip.MustParsePrefix(text), Secondary: strings.Contains(flags, "s"), Temporary: strings.Contains(flags, "t"),
			Deprecated: strings.Contains(flags, "d"), Tentative: strings.Contains(flags, "n"),
		})
	}
	return i
}

func (i Interface) noCarrier() Interface { i.Carrier = false; return i }
func (i Interface) down() Interface      { i.Up, i.Carrier = false, false; return i }

// over is the default routes over an interface, with the source of each.
func over(name string, sources ...string) []Route {
	var out []Route
	for _, s := range sources {
		out = append(out, Route{Interface: name, Source: netip.MustParseAddr(s)})
	}
	return out
}

var (
	lo      = nic("lo", "", "127.0.0.1/8", "::1/128")
	docker0 = nic("docker0", "bridge", "172.17.0.1/16").noCarrier()
	cni0    = nic("cni0", "bridge", "10.42.0.1/24", "fe80::1/64")
	flannel = nic("flannel.1", "vxlan", "10.42.0.0/32")
	dummy0  = nic("dummy0", "dummy", "203.0.113.254/31")
	lan     = nic("eth0", "", "10.79.0.11/24", "fe80::2/64")
	public  = nic("eth0", "", "5.161.10.11/24")
	wlan    = nic("wlan0", "", "192.168.1.7/24")
	second  = nic("eth1", "", "192.168.50.11/24")
	wg0     = nic("wg0", "wireguard", "10.8.0.2/24")
	ts      = nic("tailscale0", "tun", "100.101.102.103/32", "fd7a:115c:a1e0::1/128")
)

func TestChoose(t *testing.T) {
	viaLAN := over("eth0", "10.79.0.11")
	viaPublic := over("eth0", "5.161.10.11")
	for _, tt := range []struct {
		name     string
		have     []Interface
		defaults []Route
		routes   map[string]Route // target → route
		wish     Wish
		want     string // empty: none
		why      string // or the error
		doubt    string
	}{
		// The table of findings.
		{name: "LAN, docker0, cni0, default via gw", have: []Interface{lan, docker0, cni0}, defaults: viaLAN, want: "10.79.0.11", why: "default route"},
		{name: "LAN, no default route, docker0 and cni0", have: []Interface{docker0, cni0, lan}, want: "10.79.0.11", why: "only address"},
		{name: "LAN, no default route, docker0, cni0, flannel, wg, tailscale", have: []Interface{docker0, cni0, flannel, wg0, ts, lan}, want: "10.79.0.11"},
		{name: "public only", have: []Interface{public}, defaults: viaPublic, want: "5.161.10.11"},
		{name: "public and cni0", have: []Interface{cni0, flannel, public}, defaults: viaPublic, want: "5.161.10.11"},
		{name: "public, cni0 and docker0", have: []Interface{docker0, cni0, public}, defaults: viaPublic, want: "5.161.10.11"},
		{name: "LAN, cni0, flannel, no default route", have: []Interface{cni0, flannel, lan}, want: "10.79.0.11"},
		{name: "default route on dummy0, as k3s documents for air gaps", have: []Interface{dummy0, cni0, lan}, defaults: over("dummy0", "203.0.113.254"), want: "10.79.0.11"},
		{name: "nothing but dummy0", have: []Interface{dummy0, cni0}, defaults: over("dummy0", "203.0.113.254"), want: "203.0.113.254"},

		// k3s.
		{name: "node-ip", have: []Interface{lan, second}, defaults: viaLAN, wish: Wish{Prefer: []Named{{"192.168.50.11", "node-ip in a"}}}, want: "192.168.50.11", why: "node-ip in a"},
		{name: "node-ip of two families", have: []Interface{lan, nic("eth1", "", "192.168.50.11/24", "fd00:50::11/64")}, defaults: viaLAN, wish: Wish{Prefer: []Named{{"fd00:50::11,192.168.50.11", "node-ip in a"}}}, want: "fd00:50::11"},
		{name: "node-ip that this host does not have", have: []Interface{lan, second}, defaults: viaLAN, wish: Wish{Prefer: []Named{{"192.168.9.9", "node-ip in a"}}}, want: "10.79.0.11"},
		{name: "flannel-iface", have: []Interface{lan, wg0}, defaults: viaLAN, wish: Wish{Prefer: []Named{{"wg0", "flannel-iface in a"}}}, want: "10.8.0.2", why: "flannel-iface in a"},
		{name: "flannel-iface tailscale0", have: []Interface{lan, ts}, defaults: viaLAN, wish: Wish{Prefer: []Named{{"tailscale0", "flannel-iface in a"}}}, want: "100.101.102.103"},
		{name: "flannel-iface that is down", have: []Interface{lan, wg0.down()}, defaults: viaLAN, wish: Wish{Prefer: []Named{{"wg0", "flannel-iface in a"}}}, want: "10.79.0.11"},
		{name: "node-ip before flannel-iface before node-external-ip", have: []Interface{lan, public, wg0}, defaults: viaLAN, wish: Wish{Prefer: []Named{{"10.79.0.11", "node-ip"}, {"wg0", "flannel-iface"}, {"5.161.10.11", "node-external-ip"}}}, want: "10.79.0.11"},

		// Several networks.
		{name: "cluster on the second NIC, by the k3s server", have: []Interface{lan, second}, defaults: viaLAN, routes: map[string]Route{"192.168.50.1": {"eth1", netip.MustParseAddr("192.168.50.11")}}, want: "192.168.50.11", why: "the route to 192.168.50.1"},
		{name: "cluster over WireGuard, by the join address", have: []Interface{lan, wg0}, defaults: viaLAN, routes: map[string]Route{"10.8.0.1": {"wg0", netip.MustParseAddr("10.8.0.2")}}, want: "10.8.0.2"},
		{name: "a join address in a container's network", have: []Interface{lan, docker0}, defaults: viaLAN, routes: map[string]Route{"172.17.0.5": {"docker0", netip.MustParseAddr("172.17.0.1")}}, want: "10.79.0.11"},
		{name: "most targets", have: []Interface{lan, second}, routes: map[string]Route{"10.79.0.1": {"eth0", netip.MustParseAddr("10.79.0.11")}, "192.168.50.1": {"eth1", netip.MustParseAddr("192.168.50.11")}, "192.168.50.2": {"eth1", netip.MustParseAddr("192.168.50.11")}}, want: "192.168.50.11"},
		{name: "this host among the targets", have: []Interface{lan, second}, defaults: viaLAN, routes: map[string]Route{"192.168.50.11": {}}, want: "192.168.50.11", why: "interface of 192.168.50.11"},
		{name: "this host has the address of all servers for now", have: []Interface{nic("eth0", "", "10.79.0.11/24", "10.79.0.100/32")}, defaults: viaLAN, routes: map[string]Route{"10.79.0.100": {}}, want: "10.79.0.11"},
		{name: "the same as an alias", have: []Interface{nic("eth0", "", "10.79.0.11/24", "10.79.0.100/24 s")}, defaults: viaLAN, routes: map[string]Route{"10.79.0.100": {}}, want: "10.79.0.11"},
		{name: "cable and Wi-Fi without any route", have: []Interface{lan, wlan}, want: "10.79.0.11", doubt: "192.168.1.7 (wlan0)"},
		{name: "the cable is out", have: []Interface{lan.noCarrier(), wlan}, want: "192.168.1.7"},
		{name: "all cables are out", have: []Interface{lan.noCarrier(), docker0}, want: "10.79.0.11"},
		{name: "VLAN on bond", have: []Interface{nic("bond0", "bond"), nic("bond0.5", "vlan", "10.5.0.11/24"), docker0}, want: "10.5.0.11"},
		{name: "bond", have: []Interface{docker0, nic("bond0", "bond", "10.5.0.11/24")}, defaults: over("bond0", "10.5.0.11"), want: "10.5.0.11"},
		{name: "the host's own bridge has the default route", have: []Interface{nic("eth0", ""), nic("vmbr0", "bridge", "10.6.0.11/24")}, defaults: over("vmbr0", "10.6.0.11"), want: "10.6.0.11"},
		{name: "a bridge of an unknown name and a LAN", have: []Interface{nic("mybridge", "bridge", "10.200.0.1/24"), lan}, want: "10.79.0.11"},
		{name: "kube-ipvs0 and node-local DNS have all addresses of services", have: []Interface{nic("nodelocaldns", "dummy", "169.254.20.10/32"), nic("kube-ipvs0", "dummy", "10.43.0.1/32"), lan}, want: "10.79.0.11"},
		{name: "only VPN", have: []Interface{wg0, docker0}, want: "10.8.0.2"},
		{name: "a public address with a prefix of 32 bits", have: []Interface{nic("eth0", "", "5.161.10.11/32"), cni0}, defaults: viaPublic, want: "5.161.10.11"},
		{name: "in a container", have: []Interface{nic("eth0", "veth", "172.18.0.3/16")}, defaults: over("eth0", "172.18.0.3"), want: "172.18.0.3"},

		// IPv6.
		{name: "IPv6 only, ULA", have: []Interface{nic("eth0", "", "fe80::2/64", "fd00::11/64"), cni0}, defaults: over("eth0", "fd00::11"), want: "fd00::11"},
		{name: "IPv6 only, ULA, no default route", have: []Interface{nic("eth0", "", "fe80::2/64", "fd00::11/64"), docker0}, want: "fd00::11"},
		{name: "IPv6 only, global with privacy addresses", have: []Interface{nic("eth0", "", "2a01:4f8::5/64 t", "2a01:4f8::11/64", "2a01:4f8::6/64 td", "2a01:4f8::7/64 n")}, defaults: over("eth0", "2a01:4f8::5"), want: "2a01:4f8::11"},
		{name: "IPv6 only, DHCP", have: []Interface{nic("eth0", "", "2a01:4f8::11/128")}, defaults: over("eth0", "2a01:4f8::11"), want: "2a01:4f8::11"},
		{name: "dual stack", have: []Interface{nic("eth0", "", "2a01:4f8::11/64", "10.79.0.11/24")}, defaults: append(over("eth0", "10.79.0.11"), over("eth0", "2a01:4f8::11")...), want: "10.79.0.11"},
		{name: "dual stack, joined by IPv6", have: []Interface{nic("eth0", "", "2a01:4f8::11/64", "10.79.0.11/24")}, defaults: viaLAN, routes: map[string]Route{"2a01:4f8::1": {"eth0", netip.MustParseAddr("2a01:4f8::11")}}, want: "2a01:4f8::11"},

		// What people configure.
		{name: "advertise an address", have: []Interface{lan, second}, defaults: viaLAN, wish: Wish{Advertise: Named{"192.168.50.11", "gossip.advertise"}}, want: "192.168.50.11", why: "gossip.advertise"},
		{name: "advertise an interface", have: []Interface{lan, second}, defaults: viaLAN, wish: Wish{Advertise: Named{"eth1", "gossip.advertise"}}, want: "192.168.50.11"},
		{name: "advertise a CIDR", have: []Interface{lan, second}, defaults: viaLAN, wish: Wish{Advertise: Named{"192.168.0.0/16", "gossip.advertise"}}, want: "192.168.50.11"},
		{name: "advertise a container's bridge", have: []Interface{lan, docker0}, defaults: viaLAN, wish: Wish{Advertise: Named{"docker0", "gossip.advertise"}}, want: "172.17.0.1"},
		{name: "advertise before node-ip", have: []Interface{lan, second}, defaults: viaLAN, wish: Wish{Advertise: Named{"eth1", "gossip.advertise"}, Prefer: []Named{{"10.79.0.11", "node-ip"}}}, want: "192.168.50.11"},
		{name: "advertise a foreign address", have: []Interface{lan}, defaults: viaLAN, wish: Wish{Advertise: Named{"192.168.9.9", "gossip.advertise"}}, why: "no interface of this host has the address 192.168.9.9 (gossip.advertise); this host has eth0 10.79.0.11; set gossip.advertise"},
		{name: "advertise [::]", have: []Interface{lan}, defaults: viaLAN, wish: Wish{Advertise: Named{"::", "gossip.advertise"}}, why: "no other host can reach ::"},
		{name: "advertise loopback", have: []Interface{lo, lan}, defaults: viaLAN, wish: Wish{Advertise: Named{"127.0.0.1", "gossip.advertise"}}, why: "no other host can reach 127.0.0.1"},
		{name: "advertise an interface that is not there", have: []Interface{lan}, defaults: viaLAN, wish: Wish{Advertise: Named{"wg0", "gossip.advertise"}}, why: `this host has no interface "wg0"`},

		// Nothing.
		{name: "only containers", have: []Interface{docker0, cni0, flannel}, why: "no address that other hosts could reach was found; this host has docker0 172.17.0.1, cni0 10.42.0.1, flannel.1 10.42.0.0; set gossip.advertise"},
		{name: "no network", why: "this host has no address"},
		{name: "only link-local", have: []Interface{nic("eth0", "", "fe80::2/64", "169.254.3.4/16")}, why: "this host has no address"},
		{name: "all are down", have: []Interface{lan.down()}, defaults: viaLAN, why: "no address that other hosts could reach"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := Snapshot{Interfaces: append([]Interface{lo}, tt.have...), Defaults: tt.defaults, Routes: map[netip.Addr]Route{}}
			for n := range s.Interfaces {
				s.Interfaces[n].Index = n + 1
			}
			for text, r := range tt.routes {
				to := netip.MustParseAddr(text)
				tt.wish.Targets = append(tt.wish.Targets, Target{Addr: to, From: "a test"})
				if r.Interface != "" {
					s.Routes[to] = r
				}
			}
			c, err := Choose(s, tt.wish)
			var none *NoneError
			switch {
			case tt.want == "" && (!errors.As(err, &none) || !strings.Contains(err.Error(), tt.why)):
				t.Fatalf("chose %+v, %v; want an error with %q", c, err, tt.why)
			case tt.want == "":
			case err != nil:
				t.Fatal(err)
			case c.Addr != netip.MustParseAddr(tt.want) || !strings.Contains(c.Why, tt.why):
				t.Fatalf("chose %+v, want %s because of %q", c, tt.want, tt.why)
			case (tt.doubt == "") != (c.Doubt == "") || !strings.Contains(c.Doubt, tt.doubt):
				t.Fatalf("doubt %q, want %q", c.Doubt, tt.doubt)
			}
		})
	}
}

// The kernel of whatever machine this runs on answers.
func TestRead(t *testing.T) {
	s, err := Read([]Target{{Addr: netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	if i, ok := s.byName("lo"); !ok || !i.has(netip.MustParseAddr("127.0.0.1")) {
		t.Fatalf("lo lacks 127.0.0.1: %+v", s.Interfaces)
	}
	if r := s.Routes[netip.MustParseAddr("127.0.0.1")]; r.Interface != "lo" || r.Source != netip.MustParseAddr("127.0.0.1") {
		t.Fatalf("the route to 127.0.0.1 is %+v", r)
	}
}
