package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/platforms"

	"seeder/internal/pattern"
	"seeder/p2p/netaddr"
	"seeder/p2p/trust"
)

const (
	// DefaultTransferPort is used where gossip.join names no port and transfer.bind is
	// not valid.
	DefaultTransferPort = 7951
	// DefaultGossipPort is what gossip.bind has by default.
	DefaultGossipPort = 7950

	// sun_path of a unix address has room for 107 bytes; the socket is made
	// beside its final place under a slightly longer name.
	maxSocketPathBytes = 90
	maxNodeNameBytes   = 64 // Linux' HOST_NAME_MAX
	maxKeepPrevious    = 100
)

// validate adds whatever is wrong with the values, each with the key and the
// fix.
func (l *Loaded) validate(p *Problems) {
	checkNodeName(p, l.NodeName)
	checkAbsolute(p, "data_dir", l.DataDir)
	if l.SecretFile != "" {
		checkAbsolute(p, "secret_file", l.SecretFile)
	}
	l.validateAddresses(p)
	for _, limit := range []struct{ key, value string }{
		{"transfer.upload_limit", l.Transfer.UploadLimit},
		{"transfer.download_limit", l.Transfer.DownloadLimit},
	} {
		if _, err := ParseRate(limit.value); err != nil {
			p.Add(limit.key, limit.value, "%v", err)
		}
	}
	if _, err := ParseMinFree(l.Transfer.Cache); err != nil {
		p.Add("transfer.cache", l.Transfer.Cache, "%v", err)
	}
	if l.Transfer.Deltas != DeltasAuto && l.Transfer.Deltas != DeltasOff {
		p.Add("transfer.deltas", l.Transfer.Deltas, "want %s or %s", DeltasAuto, DeltasOff)
	}
	l.validateContainerd(p)
	l.validateImages(p)
	for _, id := range l.Announcers {
		if err := checkNodeID(strings.TrimPrefix(id, "!")); err != nil {
			p.Add("announcers", id, "%v; `seeder status` on a node shows its id", err)
		}
	}
	l.validateLabels(p)
	checkAbsolute(p, "api.socket", l.API.Socket)
	if len(l.API.Socket) > maxSocketPathBytes {
		p.Add("api.socket", l.API.Socket, "%d bytes long: at most %d fit a unix socket; choose a shorter path", len(l.API.Socket), maxSocketPathBytes)
	}
	if _, _, err := NewLogger(nil, l.Log); err != nil {
		*p = append(*p, err.Error())
	}
}

var nodeName = regexp.MustCompile(`^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$`)

func checkNodeName(p *Problems, name string) {
	switch {
	case name == "":
		p.Add("node_name", name, "this host has no hostname; set node_name")
	case len(name) > maxNodeNameBytes:
		p.Add("node_name", name, "%d bytes long: at most %d; set a shorter node_name", len(name), maxNodeNameBytes)
	case !nodeName.MatchString(name):
		p.Add("node_name", name, "want letters, digits, '-', '.' and '_', beginning and ending with a letter or digit")
	}
}

func checkAbsolute(p *Problems, key, value string) {
	if !filepath.IsAbs(value) {
		p.Add(key, value, "want an absolute path")
	}
}

func (l *Loaded) validateAddresses(p *Problems) {
	gossip := checkBind(p, "gossip.bind", l.Gossip.Bind)
	transfer := checkBind(p, "transfer.bind", l.Transfer.Bind)
	if gossip.IsValid() && gossip.Port() == transfer.Port() && gossip.Port() != 0 && sameHost(gossip, transfer) {
		p.Add("transfer.bind", l.Transfer.Bind, "gossip.bind has the same port; give each its own")
	}
	checkAdvertise(p, "gossip.advertise", l.Gossip.Advertise, gossip, true)
	checkAdvertise(p, "transfer.advertise", l.Transfer.Advertise, transfer, false)
	if host, port, err := net.SplitHostPort(l.HTTP.Bind); err == nil && host == "" {
		p.Add("http.bind", l.HTTP.Bind, "an address is missing; the listener needs no secret: write 127.0.0.1:%[1]s for this host alone, or 0.0.0.0:%[1]s for every host that reaches this one", port)
	} else if l.HTTP.Bind != "" {
		checkBind(p, "http.bind", l.HTTP.Bind)
	}
	l.validateRegistry(p)
	for i, join := range l.Gossip.Join {
		full, err := JoinAddress(join, cmp.Or(transfer.Port(), DefaultTransferPort))
		if err != nil {
			p.Add("gossip.join", join, "%v", err)
			continue
		}
		if _, port, err := net.SplitHostPort(full); err == nil && port == strconv.Itoa(int(gossip.Port())) {
			p.Add("gossip.join", join, "%s is the port of gossip's packets (gossip.bind); hosts are joined at their transfer port: leave the port out, or name that one", port)
		}
		l.Gossip.Join[i] = full
	}
}

// validateRegistry: what reads from the registry sends a password in the clear.
func (l *Loaded) validateRegistry(p *Problems) {
	if l.Registry.Bind == "" {
		if l.Registry.Push {
			p.Add("registry.push", "true", "pushing needs the registry; set registry.bind too, e.g. 127.0.0.1:7953")
		}
		return
	}
	addr, err := netip.ParseAddrPort(l.Registry.Bind)
	if err != nil || !addr.Addr().IsLoopback() {
		p.Add("registry.bind", l.Registry.Bind, "want a loopback ip:port, e.g. 127.0.0.1:7953; every host has a registry of its own")
		return
	}
	for _, other := range []struct{ key, bind string }{{"transfer.bind", l.Transfer.Bind}, {"http.bind", l.HTTP.Bind}} {
		if taken, err := netip.ParseAddrPort(other.bind); err == nil && addr.Port() != 0 && taken.Port() == addr.Port() && sameHost(addr, taken) {
			p.Add("registry.bind", l.Registry.Bind, "%s has the same port; give each its own", other.key)
		}
	}
}

func sameHost(a, b netip.AddrPort) bool {
	return a.Addr() == b.Addr() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified()
}

// checkBind parses ip:port; the zero value stands for an address that is wrong.
func checkBind(p *Problems, key, value string) netip.AddrPort {
	if host, port, err := net.SplitHostPort(value); err == nil && host == "" {
		value = net.JoinHostPort("0.0.0.0", port)
	}
	addr, err := netip.ParseAddrPort(value)
	if err != nil {
		example := map[string]string{"http.bind": "127.0.0.1:7952", "transfer.bind": "0.0.0.0:7951"}[key]
		p.Add(key, value, "want ip:port, e.g. %s", cmp.Or(example, fmt.Sprintf("0.0.0.0:%d", DefaultGossipPort)))
		return netip.AddrPort{}
	}
	return addr
}

// checkAdvertise checks what others are told: an address, one with a port, or where named
// also the name of an interface or a CIDR.
func checkAdvertise(p *Problems, key, value string, bind netip.AddrPort, named bool) {
	addr, err := AdvertisedAddr(value)
	switch {
	case value == "":
	case err != nil && named && (validPrefix(value) || interfaceName.MatchString(value) && !looksLikeAddress.MatchString(value)):
	case err != nil && named:
		p.Add(key, value, "want an address of this host, an interface of it, e.g. eth1, a CIDR, e.g. 10.0.0.0/24, or ip:port if another host forwards that port to this one")
	case err != nil:
		p.Add(key, value, "want ip or ip:port at which other hosts reach this one")
	case addr.IsLoopback() && bind.Addr().IsLoopback(): // a node that stays alone
	case !netaddr.Dialable(addr):
		p.Add(key, value, "no other host can reach that address; name one of this host's own")
	}
}

var (
	interfaceName    = regexp.MustCompile(`^[^\s/:,%]{1,15}$`) // IFNAMSIZ
	looksLikeAddress = regexp.MustCompile(`^[0-9.]+$`)
)

func validPrefix(s string) bool {
	_, err := netip.ParsePrefix(s)
	return err == nil
}

// AdvertisePort is the port of gossip.advertise; 0: that of gossip.bind.
func (c Gossip) AdvertisePort() int {
	ap, _ := netip.ParseAddrPort(c.Advertise) // else it names no port
	return int(ap.Port())
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$`)

// IsHostName says whether s can be the name of a host.
func IsHostName(s string) bool { return hostName.MatchString(s) }

// JoinAddress completes "host", "host:port" or "ip" with a default port.
func JoinAddress(s string, defaultPort uint16) (string, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(ip, defaultPort).String(), nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, strconv.Itoa(int(defaultPort))
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", fmt.Errorf("invalid port %q: want host or host:port", port)
	}
	if _, err := netip.ParseAddr(host); err != nil && !IsHostName(host) {
		return "", errors.New("want host or host:port")
	}
	return net.JoinHostPort(host, port), nil
}

var identifier = regexp.MustCompile(`^[A-Za-z0-9]+([-._][A-Za-z0-9]+)*$`)

func (l *Loaded) validateContainerd(p *Problems) {
	c := &l.Containerd
	c.Address = strings.TrimPrefix(c.Address, "unix://")
	if c.Address != "auto" && c.Address != "embedded" && !filepath.IsAbs(c.Address) {
		p.Add("containerd.address", c.Address, "want auto, embedded or the absolute path of containerd's socket")
	}
	if !identifier.MatchString(c.Namespace) {
		p.Add("containerd.namespace", c.Namespace, "want a namespace of containerd; the kubelet's is k8s.io")
	}
	if !identifier.MatchString(c.Snapshotter) {
		p.Add("containerd.snapshotter", c.Snapshotter, "want auto or the name of a snapshotter, e.g. overlayfs")
	}
	if _, err := platforms.Parse(c.Platform); err != nil && c.Platform != "auto" {
		p.Add("containerd.platform", c.Platform, "want auto, or os/architecture[/variant], e.g. linux/arm64")
	}
}

func (l *Loaded) validateImages(p *Problems) {
	if n := l.Images.KeepPrevious; n < 0 || n > maxKeepPrevious {
		p.Add("images.keep_previous", n, "want 0 to %d", maxKeepPrevious)
	}
	if _, err := ParseMinFree(l.Images.MinFree); err != nil {
		p.Add("images.min_free", l.Images.MinFree, "%v", err)
	}
	if _, _, err := l.Images.ParseAuto(); err != nil {
		p.Add("images.auto", l.Images.Auto, "%v", err)
	}
	if _, err := pattern.ParseList(l.Images.Accept); err != nil {
		p.Add("images.accept", l.Images.Accept, "%v", err)
	}
}

// autoLocal among the patterns of images.auto stands for every image that came from no
// registry.
const autoLocal = "local"

// ParseAuto are the patterns of images.auto, and whether autoLocal is among them.
func (c Images) ParseAuto() (list pattern.List, local bool, err error) {
	var patterns []string
	for _, s := range c.Auto {
		if s == autoLocal {
			local = true
		} else {
			patterns = append(patterns, s)
		}
	}
	list, err = pattern.ParseList(patterns)
	return list, local, err
}

// maxLabels bounds the labels of a node, which travel with every answer of it.
const maxLabels = 32

// label keys and values are Kubernetes', so that the same words do for both.
var (
	labelKey   = regexp.MustCompile(`^[A-Za-z0-9]([-./_A-Za-z0-9]{0,251}[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?)?$`)
)

func (l *Loaded) validateLabels(p *Problems) {
	if len(l.Labels) > maxLabels {
		p.Add("labels", len(l.Labels), "at most %d", maxLabels)
	}
	seen := map[string]bool{}
	for _, label := range l.Labels {
		k, v, ok := strings.Cut(label, "=")
		switch {
		case !ok || !labelKey.MatchString(k) || !labelValue.MatchString(v):
			p.Add("labels", label, "want key=value, as Kubernetes writes labels")
		case seen[k]:
			p.Add("labels", k, "duplicate label")
		}
		seen[k] = true
	}
}

// ParseLabels are those of this node by key.
func (c Config) ParseLabels() map[string]string {
	out := map[string]string{}
	for _, label := range c.Labels {
		k, v, _ := strings.Cut(label, "=")
		out[k] = v
	}
	return out
}

// checkNodeID says whether id can be the id of a node.
func checkNodeID(id string) error {
	_, err := trust.ParseNodeID(strings.TrimSpace(id))
	return err
}
