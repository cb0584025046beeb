package k3s

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
)

// Host is what a host is to its k3s or rke2.
type Host struct {
	distribution
	role    string // server or agent; empty where that cannot be told
	from    string // what says that there is a k3s
	data    string // the data directory, below root
	set     settings
	unclear error // what of the settings cannot be read, at unclearFrom
	where   string
}

// Find recognises the k3s or rke2 of the host below root by its unit or, where it is
// started in some other way, its data directory; its uninstaller removes both.
func Find(root string) (h Host, ok bool) {
	for _, d := range distributions() {
		if h, ok := d.host(root); ok {
			return h, true
		}
	}
	return Host{}, false
}

func (d distribution) host(root string) (h Host, ok bool) {
	h = Host{distribution: d}
	h.set, h.where, h.unclear = d.settings(root)
	h.data = filepath.Join(root, h.set.last("data-dir", d.data))
	for _, s := range h.set["role"] {
		switch {
		case h.from == "":
			h.role, h.from = s.value, s.from
		case h.role != s.value:
			h.role = "" // a host that was one, and is the other now
		}
	}
	for _, dir := range []string{"server", "agent"} { // a server has both
		if _, err := os.Stat(filepath.Join(h.data, dir)); err == nil && h.from == "" {
			h.role, h.from = dir, filepath.Join(h.data, dir)
		}
	}
	if h.from == "" { // only configured: it is about to be installed
		for _, name := range slices.Sorted(maps.Keys(h.set)) {
			h.from = h.set[name][0].from
		}
	}
	return h, h.from != "" || h.unclear != nil
}

// String is what the host runs and by which file that is known.
func (h Host) String() string {
	name := h.name
	if h.role != "" {
		name += " " + h.role
	}
	if h.from == "" {
		return name
	}
	return name + ", by " + h.from
}

// Socket is where k3s and rke2 have their containerd.
const Socket = "/run/k3s/containerd/containerd.sock"

// ErrNoContainerd: what the kubelet of this host has is no containerd.
var ErrNoContainerd = errors.New("no containerd to import images into")

// PlainSocket is where containerd listens by itself. Docker's is there, too.
const PlainSocket = "/run/containerd/containerd.sock"

// FindSocket says where the containerd of this host's kubelet listens, and why it is
// that one. On a host of k3s it is k3s's, also while that is not there: the one of a
// Docker beside it is nothing that the kubelet looks at.
func FindSocket(root string) (socket, why string, err error) {
	if h, ok := Find(root); ok {
		if s, docker := h.set.docker(); docker {
			return "", "", fmt.Errorf("%w: %s of this host runs its pods in Docker (docker in %s), so images in containerd are of no use to them: remove that option, or set containerd.address to embedded, so that this host only passes images on", ErrNoContainerd, h.name, s.from)
		}
		socket, why = Socket, h.String()
		if endpoint := h.set["container-runtime-endpoint"]; len(endpoint) > 0 {
			s := endpoint[len(endpoint)-1]
			socket, why = strings.TrimPrefix(s.value, "unix://"), "container-runtime-endpoint in "+s.from
		}
		if _, err := os.Stat(filepath.Join(root, socket)); err != nil {
			return socket, why, fmt.Errorf("no socket at %s (%s); is %s running? Set containerd.address if it is elsewhere", socket, why, h.name)
		}
		return socket, why, nil
	}
	for _, s := range []string{Socket, PlainSocket} {
		if _, err := os.Stat(filepath.Join(root, s)); err == nil {
			return s, "it is there, and there is no k3s", nil
		}
	}
	return "", "", fmt.Errorf("no socket at %s or %s; is k3s running? Set containerd.address if it is elsewhere", Socket, PlainSocket)
}

// SocketFinder is FindSocket as ctrd asks it: the one answer to which containerd auto is,
// for the daemon and for doctor.
func SocketFinder(root string) func() (string, error) {
	return func() (string, error) {
		socket, _, err := FindSocket(root)
		return filepath.Join(root, socket), err
	}
}

// docker reports whether k3s is configured to use Docker.
func (set settings) docker() (s k3sSetting, on bool) {
	for _, s = range set["docker"] {
		if b, err := strconv.ParseBool(s.value); err == nil && b {
			return s, true
		}
	}
	return k3sSetting{}, false
}

const (
	maxBalancerBytes = 1 << 20
	maxEtcdBytes     = 1 << 20
	maxK3sServers    = 64
)

// k3sServers are the hosts of servers that the k3s or rke2 of this host knows now, and
// where it keeps them: an agent the list that it keeps current itself, and before it
// has one the server that it is configured to join; a server that one, too, and the members
// that its etcd began with. The first server of a cluster knows nobody: the others come
// to it.
func k3sServers(root string) (hosts []string, from string) {
	for _, d := range distributions() {
		h, ok := d.host(root)
		if !ok {
			continue
		}
		for _, service := range []string{d.name + "-agent", d.name + "-api-server-agent"} {
			path := filepath.Join(h.data, "agent/etc", service+"-load-balancer.json")
			b, err := cli.ReadBounded(path, maxBalancerBytes)
			if err != nil {
				continue // not an agent, or not one that has joined yet
			}
			if hosts := balancedHosts(b); len(hosts) > 0 {
				return hosts, path
			}
		}
		var places []string
		add := func(found []string, place string) {
			found = slices.DeleteFunc(found, func(host string) bool { return slices.Contains(hosts, host) })
			if len(found) > 0 {
				hosts, places = append(hosts, found...), append(places, place)
			}
		}
		for _, s := range h.set["server"] {
			add(joinableHosts([]string{s.value}), s.from)
		}
		path := filepath.Join(h.data, "server/db/etcd/config")
		if b, err := cli.ReadBounded(path, maxEtcdBytes); err == nil {
			add(etcdHosts(b), path)
		}
		if len(hosts) > 0 {
			return hosts[:min(len(hosts), maxK3sServers)], strings.Join(places, " and ")
		}
	}
	return nil, ""
}

// etcdHosts are the members in the configuration that k3s gives its etcd when that
// joins the others: initial-cluster is name=https://ip:2380,…
func etcdHosts(b []byte) []string {
	var in struct {
		Cluster string `yaml:"initial-cluster"`
	}
	if yaml.Unmarshal(b, &in) != nil {
		return nil
	}
	var urls []string
	for member := range strings.SplitSeq(in.Cluster, ",") {
		_, peer, _ := strings.Cut(member, "=")
		urls = append(urls, peer)
	}
	return joinableHosts(urls)
}

// joinableHosts are the hosts of addresses and URLs that another program wrote: what is
// not understood is left out. A host's own loopback address leads nowhere.
func joinableHosts(addresses []string) []string {
	var out []string
	for _, address := range addresses {
		if u, err := url.Parse(address); err == nil && u.Host != "" {
			address = u.Host
		}
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			host = strings.Trim(address, "[]")
		}
		ip, err := netip.ParseAddr(host)
		if (err != nil && !config.IsHostName(host)) || host == "localhost" || ip.IsLoopback() || ip.IsUnspecified() || slices.Contains(out, host) {
			continue
		}
		if out = append(out, host); len(out) == maxK3sServers {
			break
		}
	}
	return out
}

// errNoToken: there is a k3s, and no token of it.
var errNoToken = errors.New("no secret")

// noToken says why a host of k3s has none, as far as that is not as it should be.
func (h Host) noToken() error {
	switch h.role {
	case "server":
		return fmt.Errorf("%w: %s of this host is a server (%s) that has not made its token yet, which it does when it first starts: start it, as with `systemctl start %s`", errNoToken, h.name, h.from, h.service())
	case "agent":
		return cli.Usagef("%w: %s of this host is an agent (%s), and neither its unit, nor the unit's environment files, nor %s/config.yaml has the token that it joined with; %s", errNoToken, h.name, h.from, h.etc, tokenFix)
	}
	return nil
}

// service is the unit of the server.
func (d distribution) service() string {
	if d.name == "k3s" {
		return "k3s"
	}
	return d.name + "-server"
}
