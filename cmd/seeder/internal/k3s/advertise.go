package k3s

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"seeder/cmd/seeder/internal/config"
	"seeder/p2p/netaddr"
)

// addressing chooses the address at which others reach this host, from the configuration,
// the k3s below root and what the kernel says. It is safe for concurrent use.
type addressing struct {
	cfg  config.Config
	root string
	read func([]netaddr.Target) (netaddr.Snapshot, error)

	mu    sync.Mutex
	names map[string]resolved // of gossip.join
}

// resolved is what a host name stands for.
type resolved struct {
	addrs []netip.Addr
	at    time.Time
}

const (
	// resolveTimeout bounds looking a name up, resolveAgain is how long the answer counts:
	// the choice is made every few seconds.
	resolveTimeout = 2 * time.Second
	resolveAgain   = time.Minute
)

// NewAddressing chooses by cfg and the k3s below root.
func NewAddressing(cfg config.Config, root string) *addressing {
	return &addressing{cfg: cfg, root: root, read: netaddr.Read, names: map[string]resolved{}}
}

// Choose chooses anew. Known are the addresses of other members: they say where the
// cluster is on a host that was told of nobody to join. The error says what to set, or is
// netaddr.ErrUnread.
func (a *addressing) Choose(ctx context.Context, known []netip.Addr) (netaddr.Choice, error) {
	if c, ok := a.fixed(); ok {
		return c, nil
	}
	w, err := a.wish(ctx, known)
	if err != nil {
		return netaddr.Choice{}, err
	}
	s, err := a.read(w.Targets)
	if err != nil {
		return netaddr.Choice{}, err
	}
	return netaddr.Choose(s, w)
}

// fixed is the choice that needs no look at the host: an address to bind to is the one
// that is reached, and one with a port is forwarded to this host by somebody else.
func (a *addressing) fixed() (netaddr.Choice, bool) {
	if ap, err := netip.ParseAddrPort(a.cfg.Gossip.Advertise); err == nil {
		return netaddr.Choice{Addr: ap.Addr().Unmap(), Why: "gossip.advertise"}, true
	}
	if addr, err := netip.ParseAddr(a.cfg.Gossip.Advertise); err == nil && addr.IsLoopback() {
		return netaddr.Choice{Addr: addr.Unmap(), Why: "gossip.advertise"}, true
	}
	bind, err := netip.ParseAddrPort(a.cfg.Gossip.Bind)
	if err != nil || bind.Addr().IsUnspecified() || a.cfg.Gossip.Advertise != "" {
		return netaddr.Choice{}, false
	}
	return netaddr.Choice{Addr: bind.Addr().Unmap(), Why: "gossip.bind"}, true
}

func (a *addressing) wish(ctx context.Context, known []netip.Addr) (netaddr.Wish, error) {
	if a.cfg.Gossip.Advertise != "" {
		return netaddr.Wish{Advertise: netaddr.Named{Value: a.cfg.Gossip.Advertise, From: "gossip.advertise"}}, nil
	}
	prefer, err := k3sAddresses(a.root)
	if err != nil {
		return netaddr.Wish{}, err
	}
	w := netaddr.Wish{Prefer: prefer}
	hosts, from := Joins(a.cfg, a.root)
	if from == "" {
		from = "gossip.join"
	}
	for _, host := range hosts {
		for _, addr := range a.resolve(ctx, host) {
			w.Targets = append(w.Targets, netaddr.Target{Addr: addr, From: from})
		}
	}
	if len(w.Targets) == 0 {
		for _, addr := range known {
			w.Targets = append(w.Targets, netaddr.Target{Addr: addr, From: "a member"})
		}
	}
	return w, nil
}

// resolve is what a host, with or without a port, stands for.
func (a *addressing) resolve(ctx context.Context, host string) []netip.Addr {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr.Unmap()}
	}
	a.mu.Lock()
	last, ok := a.names[host]
	a.mu.Unlock()
	if ok && time.Since(last.at) < resolveAgain {
		return last.addrs
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		addrs = last.addrs // what it stood for is the best that is known
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	addrs = slices.DeleteFunc(addrs, netip.Addr.IsLoopback) // as /etc/hosts has it for this host
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names[host] = resolved{addrs: addrs, at: time.Now()}
	return addrs
}

// k3sAddresses are what the k3s or rke2 below root was told about this host's address, in
// the order in which k3s itself heeds it: its internal address is node-ip, else that of
// flannel-iface. The external address is behind them, since other hosts of the cluster
// reach it only where an interface has it. A process without a free descriptor cannot tell
// what k3s was told, and another address must not be chosen for that: netaddr.ErrUnread.
func k3sAddresses(root string) ([]netaddr.Named, error) {
	h, ok := Find(root)
	if errors.Is(h.unclear, syscall.EMFILE) || errors.Is(h.unclear, syscall.ENFILE) {
		return nil, fmt.Errorf("%w: %s: %w", netaddr.ErrUnread, h.where, h.unclear)
	}
	if !ok {
		return nil, nil
	}
	var out []netaddr.Named
	for _, name := range addressOptions {
		for _, s := range h.set[name] {
			out = append(out, netaddr.Named{Value: s.value, From: name + " in " + s.from})
		}
	}
	return out, nil
}

// whyAddress says for people why an address was chosen.
func whyAddress(c netaddr.Choice) string {
	out := c.Why
	if c.Interface != "" {
		out = c.Interface + "; " + out
	}
	if c.Doubt != "" {
		out += "; " + c.Doubt
	}
	return out
}

// CheckAddresses compares the addresses of the configuration with those of this host.
func CheckAddresses(ctx context.Context, l *config.Loaded, a *addressing) error {
	var p config.Problems
	s, err := a.read(nil)
	if err != nil {
		return err
	}
	for _, b := range []struct{ key, value string }{{"gossip.bind", l.Gossip.Bind}, {"transfer.bind", l.Transfer.Bind}, {"http.bind", l.HTTP.Bind}} {
		bind, err := netip.ParseAddrPort(b.value)
		if err == nil && !bind.Addr().IsUnspecified() && !s.Has(bind.Addr()) {
			p.Add(b.key, b.value, "no interface of this host has that address; it has %s", s)
		}
	}
	if addr, err := netip.ParseAddr(l.Transfer.Advertise); err == nil && !s.Has(addr) {
		p.Add("transfer.advertise", l.Transfer.Advertise, "no interface of this host has that address; it has %s; where another host forwards the port to this one, name the port as well", s)
	}
	for _, join := range l.Gossip.Join {
		addr, err := config.AdvertisedAddr(join)
		if config.IsLoopback(l.Gossip.Bind) && err == nil && !addr.IsLoopback() {
			p.Add("gossip.bind", l.Gossip.Bind, "a node on a loopback address reaches no other host, and gossip.join names %s; bind to 0.0.0.0:%d", join, config.DefaultGossipPort)
			break
		}
	}
	if _, err := a.Choose(ctx, nil); err != nil && l.Gossip.Advertise == "" {
		l.Warnings = append(l.Warnings, err.Error()) // the cable may be out
	} else if err != nil {
		p.Add("gossip.advertise", l.Gossip.Advertise, "%v", err)
	}
	return p.Err()
}
