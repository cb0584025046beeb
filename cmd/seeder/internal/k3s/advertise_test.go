package k3s

import (
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/k3s/k3stest"
	"seeder/p2p/netaddr"
)

// oneLAN is a host with a default route on eth0, a second network, a VPN and containers.
func oneLAN(targets []netaddr.Target) (netaddr.Snapshot, error) {
	nic := func(name, kind string, addresses ...string) netaddr.Interface {
		i := netaddr.Interface{Name: name, Kind: kind, Up: true, Carrier: true}
		for _, a := range addresses {
			i.Addresses = append(i.Addresses, netaddr.Address{Prefix: netip.MustParsePrefix(a)})
		}
		return i
	}
	s := netaddr.Snapshot{
		Interfaces: []netaddr.Interface{
			nic("lo", "", "127.0.0.1/8"), nic("eth0", "", "10.79.0.11/24", "2a01:4f8::11/64"), nic("eth1", "", "192.168.50.11/24"),
			nic("wg0", "wireguard", "10.8.0.2/24"), nic("docker0", "bridge", "172.17.0.1/16"),
		},
		Defaults: []netaddr.Route{{Interface: "eth0", Source: netip.MustParseAddr("10.79.0.11")}},
		Routes:   map[netip.Addr]netaddr.Route{},
	}
	for _, t := range targets { // on eth1, whatever they are
		s.Routes[t.Addr] = netaddr.Route{Interface: "eth1", Source: netip.MustParseAddr("192.168.50.11")}
	}
	return s, nil
}

// TestAddressOfK3s: the address that k3s was told is the host's, wherever it was told.
func TestAddressOfK3s(t *testing.T) {
	t.Parallel()
	const conf = "/etc/rancher/k3s/config.yaml"
	for name, tc := range map[string]struct {
		files     map[string]string
		want, why string
	}{
		"nothing":                     {nil, "10.79.0.11", "default route"},
		"node-ip in config.yaml":      {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, conf: "node-ip: 192.168.50.11\n"}, "192.168.50.11", "node-ip in " + conf},
		"node-ip in a drop-in":        {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, conf: "debug: true\n", conf + ".d/10.yaml": "node-ip: 192.168.50.11\n"}, "192.168.50.11", "node-ip in " + conf + ".d/10.yaml"},
		"node-ip of two families":     {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, conf: "node-ip: 192.168.50.11,fd00::11\n"}, "192.168.50.11", "node-ip"},
		"node-ip as a list":           {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, conf: "node-ip:\n- 2a01:4f8::11\n- 10.79.0.11\n"}, "2a01:4f8::11", "node-ip"},
		"node-ip in the unit":         {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns + "    --node-ip 192.168.50.11 \\\n"}, "192.168.50.11", "node-ip in " + k3stest.AgentUnit},
		"its short form":              {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns + "    '-i=192.168.50.11' \\\n"}, "192.168.50.11", "node-ip in " + k3stest.AgentUnit},
		"twice":                       {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns + "    --node-ip=2a01:4f8::11 --node-ip=10.79.0.11 \\\n"}, "2a01:4f8::11", "node-ip"},
		"of a variable":               {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns + "    --node-ip=${IP} \\\n"}, "10.79.0.11", "default route"},
		"no text":                     {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, conf: "node-ip: 5\n"}, "10.79.0.11", "default route"},
		"a file of the environment":   {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, k3stest.AgentUnit + ".env": "K3S_CONFIG_FILE=/etc/k3s.yaml\n", "/etc/k3s.yaml": "node-ip: 192.168.50.11\n"}, "192.168.50.11", "node-ip in /etc/k3s.yaml"},
		"flannel-iface":               {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns + "    --flannel-iface=wg0 \\\n"}, "10.8.0.2", "flannel-iface in " + k3stest.ServerUnit},
		"node-ip and flannel-iface":   {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns + "    --flannel-iface=wg0 --node-ip=192.168.50.11 \\\n"}, "192.168.50.11", "node-ip"},
		"external-ip of this host":    {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns, conf: "node-external-ip: 10.8.0.2\n"}, "10.8.0.2", "node-external-ip"},
		"external-ip of a gateway":    {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns, conf: "node-external-ip: 5.161.10.11\n"}, "10.79.0.11", "default route"},
		"node-ip and external-ip":     {map[string]string{k3stest.ServerUnit: k3stest.ServerRuns, conf: "node-external-ip: 10.79.0.11\nnode-ip: 192.168.50.11\n"}, "192.168.50.11", "node-ip"},
		"the server that agents join": {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns, k3stest.AgentUnit + ".env": "K3S_URL=https://192.168.50.1:6443\n"}, "192.168.50.11", "the route to 192.168.50.1"},
		"node-ip before the server":   {map[string]string{k3stest.AgentUnit: k3stest.AgentRuns + "    --node-ip=10.79.0.11 \\\n", k3stest.AgentUnit + ".env": "K3S_URL=https://192.168.50.1:6443\n"}, "10.79.0.11", "node-ip"},
		"rke2":                        {map[string]string{"/etc/rancher/rke2/config.yaml": "node-ip: 192.168.50.11\n"}, "192.168.50.11", "node-ip"},
	} {
		root := k3stest.HostWith(t, tc.files)
		a := NewAddressing(config.Config{Gossip: config.Gossip{Bind: "0.0.0.0:7950"}}, root)
		a.read = oneLAN
		c, err := a.Choose(t.Context(), nil)
		if err != nil || c.Addr != netip.MustParseAddr(tc.want) || !strings.Contains(strings.ReplaceAll(c.Why, root, ""), tc.why) {
			t.Errorf("%s: %+v, %v; want %s because of %q", name, c, err, tc.want, tc.why)
		}
	}
}

// TestAddressOfTheConfiguration: what people set comes first, and the members that are
// known last.
func TestAddressOfTheConfiguration(t *testing.T) {
	t.Parallel()
	member := []netip.Addr{netip.MustParseAddr("192.168.50.2")}
	for name, tc := range map[string]struct {
		gossip    config.Gossip
		known     []netip.Addr
		want, why string
	}{
		"bind":                 {config.Gossip{Bind: "192.168.50.11:7950"}, nil, "192.168.50.11", "gossip.bind"},
		"bind to all of IPv6":  {config.Gossip{Bind: "[::]:7950"}, nil, "10.79.0.11", "default route"},
		"loopback":             {config.Gossip{Bind: "127.0.0.1:7950"}, nil, "127.0.0.1", "gossip.bind"},
		"advertise":            {config.Gossip{Bind: "0.0.0.0:7950", Advertise: "wg0"}, nil, "10.8.0.2", "gossip.advertise"},
		"advertise and bind":   {config.Gossip{Bind: "10.79.0.11:7950", Advertise: "192.168.50.0/24"}, nil, "192.168.50.11", "gossip.advertise"},
		"a forwarded port":     {config.Gossip{Bind: "0.0.0.0:7950", Advertise: "5.161.10.11:17950"}, nil, "5.161.10.11", "gossip.advertise"},
		"a foreign address":    {config.Gossip{Bind: "0.0.0.0:7950", Advertise: "5.161.10.11"}, nil, "", "no interface of this host has the address 5.161.10.11"},
		"join":                 {config.Gossip{Bind: "0.0.0.0:7950", Join: []string{"192.168.50.1:7950"}}, nil, "192.168.50.11", "gossip.join"},
		"a member":             {config.Gossip{Bind: "0.0.0.0:7950"}, member, "192.168.50.11", "a member"},
		"join before a member": {config.Gossip{Bind: "0.0.0.0:7950", Join: []string{"10.79.0.11:7950"}}, member, "10.79.0.11", "gossip.join"},
	} {
		a := NewAddressing(config.Config{Gossip: tc.gossip}, t.TempDir())
		a.read = oneLAN
		c, err := a.Choose(t.Context(), tc.known)
		if tc.want == "" {
			if err == nil || !strings.Contains(err.Error(), tc.why) || !strings.Contains(err.Error(), "gossip.advertise") {
				t.Errorf("%s: %+v, %v; want an error with %q", name, c, err, tc.why)
			}
			continue
		}
		if err != nil || c.Addr != netip.MustParseAddr(tc.want) || !strings.Contains(c.Why, tc.why) {
			t.Errorf("%s: %+v, %v; want %s because of %q", name, c, err, tc.want, tc.why)
		}
	}
}

// TestAddressWithoutDescriptors: a process that is out of file descriptors chooses no other
// address than before, and does not take its address for lost.
func TestAddressWithoutDescriptors(t *testing.T) { // alone: the limit is that of the process
	root := k3stest.HostWith(t, map[string]string{"/etc/rancher/k3s/config.yaml": "node-ip: 192.168.50.11\n"})
	a := NewAddressing(config.Config{Gossip: config.Gossip{Bind: "0.0.0.0:7950"}}, root)
	thisKernel := func(targets []netaddr.Target) (netaddr.Snapshot, error) {
		if _, err := netaddr.Read(targets); err != nil {
			return netaddr.Snapshot{}, err
		}
		return oneLAN(targets)
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func([]netaddr.Target) (netaddr.Snapshot, error){"files": oneLAN, "the kernel": thisKernel} {
		a.read = read
		unread, chosen := 0, 0
		for limit := range uint64(64) {
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit, Max: before.Max}); err != nil {
				t.Fatal(err)
			}
			c, err := a.Choose(t.Context(), nil)
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
				t.Fatal(err)
			}
			switch {
			case errors.Is(err, netaddr.ErrUnread):
				unread++
			case err == nil && c.Addr == netip.MustParseAddr("192.168.50.11"):
				chosen++
			default:
				t.Errorf("%s, limit %d: %+v, %v", name, limit, c, err)
			}
		}
		if unread == 0 || chosen == 0 {
			t.Errorf("%s: %d looks failed, %d did not", name, unread, chosen)
		}
	}
}

// TestCheckAddresses: what cannot be meant on this host is refused, with what there is.
func TestCheckAddresses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		gossip config.Gossip
		want   string // empty: good
	}{
		"defaults":                {config.Gossip{Bind: "0.0.0.0:7950"}, ""},
		"all of IPv6":             {config.Gossip{Bind: "[::]:7950"}, ""},
		"loopback, alone":         {config.Gossip{Bind: "127.0.0.1:7950"}, ""},
		"loopback, of a cluster":  {config.Gossip{Bind: "127.0.0.1:7950", Join: []string{"10.79.0.12:7950"}}, "reaches no other host, and gossip.join names 10.79.0.12:7950"},
		"bind to a foreign one":   {config.Gossip{Bind: "10.123.0.9:7950"}, `gossip.bind: "10.123.0.9:7950": no interface of this host has that address; it has eth0 10.79.0.11`},
		"advertise a foreign one": {config.Gossip{Bind: "0.0.0.0:7950", Advertise: "10.123.0.9"}, "no interface of this host has the address 10.123.0.9"},
		"advertise no interface":  {config.Gossip{Bind: "0.0.0.0:7950", Advertise: "eth7"}, `this host has no interface "eth7"`},
		"advertise an interface":  {config.Gossip{Bind: "0.0.0.0:7950", Advertise: "eth1"}, ""},
		"advertise behind a NAT":  {config.Gossip{Bind: "0.0.0.0:7950", Advertise: "5.161.10.11:7950"}, ""},
	} {
		l := config.Loaded{Config: config.Config{Gossip: tc.gossip, Transfer: config.Transfer{Bind: "0.0.0.0:7951"}, HTTP: config.HTTP{Bind: "127.0.0.1:7952"}}}
		a := NewAddressing(l.Config, filepath.Join(t.TempDir()))
		a.read = oneLAN
		err := CheckAddresses(t.Context(), &l, a)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	for advertise, want := range map[string]string{
		"":                 "",
		"192.168.50.11":    "",
		"5.161.10.11:7951": "",
		"10.123.0.9":       `transfer.advertise: "10.123.0.9": no interface of this host has that address`,
	} {
		l := config.Loaded{Config: config.Config{Gossip: config.Gossip{Bind: "0.0.0.0:7950"}, Transfer: config.Transfer{Bind: "0.0.0.0:7951", Advertise: advertise}}}
		a := NewAddressing(l.Config, t.TempDir())
		a.read = oneLAN
		if err := CheckAddresses(t.Context(), &l, a); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("transfer.advertise %q: %v, want %q", advertise, err, want)
		}
	}
}
