package netaddr

import (
	"net/netip"
	"slices"
	"strings"
)

// containerPrefixes begin the names of interfaces that container engines, CNI plugins,
// kube-proxy and hypervisors make for what runs on the host. The names are those in the
// documentation or sources of each: Docker (docker0, br-<id>, docker_gwbridge), podman,
// nerdctl, k3s's flannel and the bridge plugin (cni0), Calico, Cilium, Weave, kube-router,
// Antrea, OVN, node-local DNS, kube-proxy (kube-ipvs0), kube-vip, libvirt, LXC, Incus.
var containerPrefixes = []string{
	"docker", "br-", "podman", "nerdctl", "cni", "flannel", "veth", "cali", "tunl", "vxlan.calico", "wireguard.cali", "cilium", "lxc", "lxd",
	"weave", "vethwe", "datapath", "kube-", "antrea", "ovn", "ovs-", "genev_sys", "nodelocaldns", "virbr", "vnet", "incusbr",
}

// container reports whether an interface belongs to containers, by its name.
func container(name string) bool {
	return slices.ContainsFunc(containerPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// Container reports whether an interface of that name belongs to containers or virtual
// machines, so that its address means something else on every host.
func Container(name string) bool { return container(name) }

// real reports whether a route over the interface says where the cluster is. A dummy
// carries nothing: k3s's documentation puts the default route of a host without a network
// on one. The kernel's own loopback interface is always the first.
func (i Interface) real() bool { return !container(i.Name) && !i.dummy() && i.Name != "lo" }

// The ranks of interfaces where no route tells them apart.
func (i Interface) dummy() bool  { return i.Kind == "dummy" || i.Kind == "ifb" }
func (i Interface) bridge() bool { return i.Kind == "bridge" }
func (i Interface) tunnel() bool { return slices.Contains(tunnels, i.Kind) }

// hardware counts what stands for it in a container or a virtual machine (veth, macvlan),
// and what lies straight on it.
func (i Interface) hardware() bool {
	return i.Name != "lo" && (i.Kind == "" || slices.Contains([]string{"veth", "macvlan", "ipvlan", "vlan", "bond", "team"}, i.Kind))
}

func (i Interface) virtual() bool {
	return i.Name != "lo" && !i.hardware() && !i.dummy() && !i.bridge() && !i.tunnel()
}

// tunnels are the kinds of interfaces whose packets travel inside others'.
var tunnels = []string{"wireguard", "tun", "gre", "gretap", "ip6gre", "ipip", "ip6tnl", "sit", "vti", "vti6", "vxlan", "geneve", "xfrm", "ppp"}

// has reports whether the interface has an address.
func (i Interface) has(addr netip.Addr) bool {
	return slices.ContainsFunc(i.Addresses, func(a Address) bool { return a.Addr() == addr })
}

// dialable reports whether another host could mean this one by addr.
func dialable(addr netip.Addr) bool {
	addr = addr.Unmap()
	return addr.IsValid() && !addr.IsLoopback() && !addr.IsUnspecified() && !addr.IsLinkLocalUnicast() && !addr.IsMulticast() &&
		addr != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// Dialable reports whether another host can be meant to reach this one at addr: it is no
// loopback, unspecified, link-local, multicast or broadcast address.
func Dialable(addr netip.Addr) bool { return dialable(addr) }

// usable are the addresses at which others may reach the interface, the best first:
// not those that will go soon, nor those that may be on another host tomorrow.
func (i Interface) usable() []Address {
	if !i.Up {
		return nil
	}
	out := slices.DeleteFunc(slices.Clone(i.Addresses), func(a Address) bool { return !dialable(a.Addr()) || a.Tentative })
	slices.SortStableFunc(out, func(a, b Address) int { return a.demerit() - b.demerit() })
	return out
}

// demerit is how little an address is worth: a few flags, each worse than those after it.
func (a Address) demerit() int {
	n := 0
	for _, bad := range []bool{a.Deprecated, a.Temporary, a.floating(), a.Addr().Is6() && ula.Contains(a.Addr())} {
		n *= 2
		if bad {
			n++
		}
	}
	return n
}

// ula are the private addresses of IPv6 (RFC 4193). The choice between them and public
// ones is arbitrary; it has to be the same on all hosts.
var ula = netip.MustParsePrefix("fc00::/7")

// floating reports whether an address may be one that moves between hosts, as those of
// keepalived and kube-vip do: they are further ones, or have a prefix of one address. DHCP
// of IPv6 gives such prefixes to all.
func (a Address) floating() bool { return a.Secondary || a.Addr().Is4() && a.Bits() == 32 }

// pick returns the address of a family: the one that is asked for where it is as good as
// any other, else the best.
func (i Interface) pick(want netip.Addr, six bool) (netip.Addr, bool) {
	var family []Address
	for _, a := range i.usable() {
		if a.Addr().Is6() == six {
			family = append(family, a)
		}
	}
	if len(family) == 0 {
		return netip.Addr{}, false
	}
	for _, a := range family {
		if a.Addr() == want.Unmap() && !(a.Deprecated || a.Temporary || a.floating()) {
			return want.Unmap(), true
		}
	}
	return family[0].Addr(), true
}
