// Package netaddr chooses the address at which the other nodes reach this host.
//
// It owns the order of the rules and the list of interfaces that belong to containers.
// Choose is a pure function of what the kernel says (Snapshot) and of what people and
// k3s have configured (Wish); Read takes the snapshot over netlink, and Watch says when
// it may have changed. It never runs a program, sends no packet, and knows nothing of
// gossip, k3s or the configuration file.
//
// Invariant: without a name that somebody configured, the address of a container bridge,
// of a tunnel between containers or of a loopback interface is never chosen.
package netaddr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ErrUnread: this host could not be looked at, for example without a free file descriptor.
// Nothing is known of its addresses then; it does not mean that there is none.
var ErrUnread = errors.New("failed to look at this host's network")

// Snapshot is what the kernel says of this host's network at one moment.
type Snapshot struct {
	Interfaces []Interface // in the order of their index
	// Defaults are the default routes, that of IPv4 first; a family without one is
	// missing.
	Defaults []Route
	// Routes are the routes to the targets of the Wish, by target; a target that
	// cannot be routed is missing.
	Routes map[netip.Addr]Route
}

// Interface is one network interface.
type Interface struct {
	Index     int
	Name      string
	Kind      string // the kernel's word for a virtual one: bridge, veth, dummy, wireguard …; empty: hardware
	Up        bool
	Carrier   bool // there is a cable, or whatever stands for it
	Addresses []Address
}

// Address is one address of an interface, in the kernel's order.
type Address struct {
	netip.Prefix
	Secondary  bool // a further one of the same subnet: an alias, or one that moves between hosts
	Temporary  bool // IPv6 privacy: it is replaced within a day
	Deprecated bool // about to go
	Tentative  bool // IPv6: not yet known to be unique, or found not to be
}

// Route is the first hop of a route.
type Route struct {
	Interface string
	Source    netip.Addr // the address that packets on it have; may be invalid
}

// Wish is what narrows the choice down.
type Wish struct {
	// Advertise is what people have configured: an address, the name of an interface or
	// a CIDR; empty: nothing. Nothing else is chosen then.
	Advertise Named
	// Prefer is what k3s was told, in order of weight; what this host does not have is
	// passed over.
	Prefer []Named
	// Targets are hosts of the cluster, to which there has to be a route.
	Targets []Target
}

// Named is an address, the name of an interface, or a CIDR.
type Named struct {
	Value string
	From  string // for people: the key and the file
}

// Target is a host of the cluster.
type Target struct {
	Addr netip.Addr
	From string // for people: who says so
}

// Choice is the address that was chosen.
type Choice struct {
	Addr      netip.Addr `json:"address"`
	Interface string     `json:"interface"` // empty: no interface of this host has it
	Why       string     `json:"why"`
	Doubt     string     `json:"doubt,omitempty"` // why it may be the wrong one
}

// NoneError says that no address can be chosen.
type NoneError struct {
	Reason string
	Seen   string // what the host has, for people
}

// Error implements error.
func (e *NoneError) Error() string {
	return fmt.Sprintf("%s; this host has %s; set gossip.advertise to an address, an interface or a CIDR at which the other hosts reach this one", e.Reason, e.Seen)
}

// Choose returns the address at which the other nodes reach this host. The error is a
// *NoneError.
func Choose(s Snapshot, w Wish) (Choice, error) {
	if w.Advertise.Value != "" {
		return s.named(w.Advertise)
	}
	for _, n := range w.Prefer {
		for value := range strings.SplitSeq(n.Value, ",") {
			c, err := s.named(Named{Value: strings.TrimSpace(value), From: n.From})
			if err == nil {
				return c, nil
			}
		}
	}
	if c, ok := s.byRoute(w.Targets); ok {
		return c, nil
	}
	for _, r := range s.Defaults {
		i, ok := s.byName(r.Interface)
		if !ok || !i.real() {
			continue
		}
		if a, ok := i.pick(r.Source, r.Source.Is6()); ok {
			return Choice{Addr: a, Interface: i.Name, Why: "the default route goes over " + i.Name}, nil
		}
	}
	return s.only()
}

// named is the address that a name stands for, on whatever interface.
func (s Snapshot) named(n Named) (Choice, error) {
	none := func(format string, args ...any) (Choice, error) {
		return Choice{}, &NoneError{Reason: fmt.Sprintf(format, args...) + " (" + n.From + ")", Seen: s.String()}
	}
	why := n.From
	if addr, err := netip.ParseAddr(n.Value); err == nil {
		if !dialable(addr) {
			return none("no other host can reach %s", addr)
		}
		if i, ok := s.having(addr); ok {
			return Choice{Addr: addr.Unmap(), Interface: i.Name, Why: why}, nil
		}
		return none("no interface of this host has the address %s", addr)
	}
	if prefix, err := netip.ParsePrefix(n.Value); err == nil {
		for _, i := range s.Interfaces {
			for _, a := range i.usable() {
				if prefix.Contains(a.Addr()) {
					return Choice{Addr: a.Addr(), Interface: i.Name, Why: why}, nil
				}
			}
		}
		return none("no interface of this host has an address in %s", prefix)
	}
	i, ok := s.byName(n.Value)
	if !ok {
		return none("this host has no interface %q", n.Value)
	}
	for _, six := range []bool{false, true} {
		if a, ok := i.pick(netip.Addr{}, six); ok {
			return Choice{Addr: a, Interface: i.Name, Why: why}, nil
		}
	}
	return none("the interface %s has no address, or is down", i.Name)
}

// byRoute chooses the source address of the routes to the targets. Where they differ,
// that of the most targets wins, and of two with as many that of the first target.
func (s Snapshot) byRoute(targets []Target) (Choice, bool) {
	var (
		best  Choice
		most  int
		votes = map[netip.Addr]int{}
		found []Choice
	)
	for _, t := range targets {
		if c, ok := s.toward(t); ok {
			votes[c.Addr]++
			found = append(found, c)
		}
	}
	for _, c := range found {
		if votes[c.Addr] > most {
			best, most = c, votes[c.Addr]
		}
	}
	return best, most > 0
}

// toward is the choice by the route to one target. A target that is this host itself
// names the address, unless that may move to another host: then it names the interface.
func (s Snapshot) toward(t Target) (Choice, bool) {
	if i, ok := s.having(t.Addr); ok && i.real() {
		a, ok := i.pick(t.Addr, t.Addr.Is6() && !t.Addr.Is4In6())
		return Choice{Addr: a, Interface: i.Name, Why: "it is on the interface of " + t.Addr.String() + ", " + t.From}, ok
	}
	r, ok := s.Routes[t.Addr]
	if !ok {
		return Choice{}, false
	}
	i, ok := s.byName(r.Interface)
	if !ok || !i.real() {
		return Choice{}, false
	}
	a, ok := i.pick(r.Source, t.Addr.Is6() && !t.Addr.Is4In6())
	return Choice{Addr: a, Interface: i.Name, Why: "the route to " + t.Addr.String() + ", " + t.From + ", starts there"}, ok
}

// only chooses among the interfaces where nothing tells them apart: hardware before
// what is virtual, IPv4 before IPv6, and then the first.
func (s Snapshot) only() (Choice, error) {
	for _, rank := range []func(Interface) bool{Interface.hardware, Interface.virtual, Interface.tunnel, Interface.bridge, Interface.dummy} {
		for _, carrier := range []bool{true, false} {
			found := s.all(func(i Interface) bool { return !container(i.Name) && rank(i) && i.Carrier == carrier })
			if len(found) > 0 {
				return certain(found), nil
			}
		}
	}
	return Choice{}, &NoneError{Reason: "no address that other hosts could reach was found", Seen: s.String()}
}

// all are the addresses of certain interfaces, IPv4 first.
func (s Snapshot) all(of func(Interface) bool) []Choice {
	var out []Choice
	for _, six := range []bool{false, true} {
		for _, i := range s.Interfaces {
			if !of(i) {
				continue
			}
			if a, ok := i.pick(netip.Addr{}, six); ok {
				out = append(out, Choice{Addr: a, Interface: i.Name})
			}
		}
	}
	return out
}

// certain is the first of several choices, and says how certain that is.
func certain(found []Choice) Choice {
	c := found[0]
	c.Why = "it is the only address of this host that others could reach"
	if len(found) > 1 {
		var others []string
		for _, o := range found[1:] {
			others = append(others, o.Addr.String()+" ("+o.Interface+")")
		}
		c.Why = "it is the first of the addresses that others could reach"
		if slices.ContainsFunc(found, func(o Choice) bool { return o.Interface != c.Interface }) {
			c.Doubt = "no default route and no host to join; this host also has " + strings.Join(others, ", ") + ": set gossip.advertise if that is the cluster's"
		}
	}
	return c
}

func (s Snapshot) byName(name string) (Interface, bool) {
	at := slices.IndexFunc(s.Interfaces, func(i Interface) bool { return i.Name == name })
	if at < 0 {
		return Interface{}, false
	}
	return s.Interfaces[at], true
}

// having is the interface with an address.
func (s Snapshot) having(addr netip.Addr) (Interface, bool) {
	addr = addr.Unmap().WithZone("")
	for _, i := range s.Interfaces {
		if i.has(addr) {
			return i, true
		}
	}
	return Interface{}, false
}

// Has reports whether an interface of this host has addr, which every host has in the
// case of a loopback address.
func (s Snapshot) Has(addr netip.Addr) bool {
	_, ok := s.having(addr)
	return ok || addr.IsLoopback()
}

// InterfaceOf is the name of the interface that has addr, empty where none has.
func (s Snapshot) InterfaceOf(addr netip.Addr) string {
	i, _ := s.having(addr)
	return i.Name
}

// String lists the addresses by interface, for people.
func (s Snapshot) String() string {
	var out []string
	for _, i := range s.Interfaces {
		for _, a := range i.Addresses {
			if !a.Addr().IsLoopback() && !a.Addr().IsLinkLocalUnicast() {
				out = append(out, i.Name+" "+a.Addr().String())
			}
		}
	}
	if len(out) == 0 {
		return "no address"
	}
	const most = 12 // a host of many pods has hundreds
	if len(out) > most {
		out = append(out[:most], fmt.Sprintf("and %d more", len(out)-most))
	}
	return strings.Join(out, ", ")
}
