package netaddr

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Read takes a snapshot of the network namespace of this process. The routes of it are
// those to the targets, and the default routes. Its error is ErrUnread.
func Read(targets []Target) (Snapshot, error) {
	// One socket for all questions: a process that runs out of descriptors between two of
	// them would take a route that it cannot ask for as one that is not there.
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Snapshot{}, fmt.Errorf("%w: open a netlink socket: %w", ErrUnread, err)
	}
	defer kernel.Close()
	s := Snapshot{Routes: map[netip.Addr]Route{}}
	links, err := kernel.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // what came is good, and it is asked again soon
		return Snapshot{}, fmt.Errorf("%w: list the network interfaces: %w", ErrUnread, err)
	}
	addrs, err := kernel.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return Snapshot{}, fmt.Errorf("%w: list the network addresses: %w", ErrUnread, err)
	}
	at := map[int]int{}
	for _, l := range links {
		a := l.Attrs()
		kind := l.Type()
		if kind == "device" {
			kind = ""
		}
		at[a.Index] = len(s.Interfaces)
		s.Interfaces = append(s.Interfaces, Interface{
			Index: a.Index, Name: a.Name, Kind: kind, Up: a.Flags&net.FlagUp != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
		})
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		i, known := at[a.LinkIndex]
		if !ok || !known {
			continue
		}
		bits, _ := a.Mask.Size()
		s.Interfaces[i].Addresses = append(s.Interfaces[i].Addresses, address(netip.PrefixFrom(ip.Unmap(), bits), a.Flags))
	}
	slices.SortStableFunc(s.Interfaces, func(a, b Interface) int { return a.Index - b.Index })
	for _, t := range targets {
		if r, ok := s.lookup(kernel, t.Addr); ok {
			s.Routes[t.Addr] = r
		}
	}
	for _, somewhere := range elsewhere {
		if r, ok := s.defaultRoute(kernel, somewhere); ok {
			s.Defaults = append(s.Defaults, r)
		}
	}
	return s, nil
}

// address reads the flags of one; IPv4 has another meaning of the first than IPv6.
func address(p netip.Prefix, flags int) Address {
	return Address{
		Prefix:     p,
		Secondary:  p.Addr().Is4() && flags&unix.IFA_F_SECONDARY != 0,
		Temporary:  p.Addr().Is6() && flags&unix.IFA_F_TEMPORARY != 0,
		Deprecated: flags&unix.IFA_F_DEPRECATED != 0,
		Tentative:  flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && flags&unix.IFA_F_OPTIMISTIC == 0,
	}
}

// elsewhere are addresses of documentation (RFC 5737, RFC 9637), to which only the default
// route leads. Asking for one route costs one message, where the list of all may have a
// million.
var elsewhere = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("3fff::1")}

// lookup asks the kernel for the route to an address, without a packet.
func (s *Snapshot) lookup(kernel *netlink.Handle, to netip.Addr) (Route, bool) {
	routes, err := kernel.RouteGet(to.Unmap().AsSlice())
	if err != nil || len(routes) == 0 {
		return Route{}, false // there is none
	}
	return s.route(routes[0])
}

func (s *Snapshot) route(r netlink.Route) (Route, bool) {
	i := slices.IndexFunc(s.Interfaces, func(i Interface) bool { return i.Index == r.LinkIndex })
	if i < 0 {
		return Route{}, false
	}
	src, _ := netip.AddrFromSlice(r.Src)
	return Route{Interface: s.Interfaces[i].Name, Source: src.Unmap()}, true
}

// defaultRoute is the route to everywhere. A VPN that takes all traffic does so in a
// routing table of its own, which says nothing about the cluster: then the main table's
// default route counts, as it does to k3s.
func (s *Snapshot) defaultRoute(kernel *netlink.Handle, somewhere netip.Addr) (Route, bool) {
	r, ok := s.lookup(kernel, somewhere)
	i, known := s.byName(r.Interface)
	if !ok || known && !i.tunnel() {
		return r.of(somewhere), ok
	}
	family := netlink.FAMILY_V4
	if somewhere.Is6() {
		family = netlink.FAMILY_V6
	}
	best, metric := r.of(somewhere), -1
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN}
	_ = kernel.RouteListFilteredIter(family, filter, netlink.RT_FILTER_TABLE, func(m netlink.Route) bool { // else the tunnel's
		if m.Dst != nil {
			if ones, _ := m.Dst.Mask.Size(); ones != 0 {
				return true
			}
		}
		if other, ok := s.route(m); ok && (metric < 0 || m.Priority < metric) {
			best, metric = other.of(somewhere), m.Priority
		}
		return true
	})
	return best, true
}

// of gives a route without a source the family of an address.
func (r Route) of(somewhere netip.Addr) Route {
	if !r.Source.IsValid() && somewhere.Is6() {
		r.Source = netip.IPv6Unspecified()
	}
	return r
}

// Watch sends when the interfaces, their addresses or the routes of this host may have
// changed, until ctx ends; then it has closed the channel and nothing of it is left.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("watch the network interfaces: %w", err)
	}
	out := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, s.Close)
	go func() {
		defer close(out)
		defer stop()
		for ctx.Err() == nil {
			_, _, err := s.Receive()
			if err != nil && !errors.Is(err, syscall.ENOBUFS) && !errors.Is(err, syscall.EINTR) {
				return // closed; where it is not, anyone who watches looks now and then anyway
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out, nil
}
